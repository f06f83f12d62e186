"""Prepared datasets: manifest, shards, tokenizer, reports beside them, unfinished ones."""

from __future__ import annotations

import contextlib
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sharding.journal import Journal
from data.sharding.parts import PART, merge
from gpt.errors import UserError
from gpt.reports.dataset import dataset_figures, dataset_page
from gpt.reports.reporting import finite
from gpt.shards import Dataset, Manifest, verify_dataset
from gpt.shards.reading import own_hash
from tests.fuzz.inputs import as_json, damaged, fuzzed, is_read, json_files, mutated
from tests.shards.test_reading import write_dataset

OVERLAP = {"n": 13, "evaluation": "a.txt", "documents": 2, "documents_with_overlap": 1, "ngrams": 9,
           "ngrams_shared": 3, "training_documents_with_overlap": 1, "one_in": 1,
           "most": [{"document": "a", "ngrams": 4, "shared": 3, "first": "x y z"}]}


@pytest.fixture
def folder(tmp_path):
    folder = write_dataset(tmp_path / "d", shard_tokens=40).folder
    (folder / "overlap.json").write_bytes(as_json(OVERLAP))
    files = ["overlap.json", "bad_text.jsonl"]
    seal(folder, json.loads((folder / "dataset.json").read_text()) | {
        "cleaning": {"duplicates": 1}, "recipe": {"on_bad_text": "skip", "normalize": "NFC"},
        "files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
                  for name in files}})
    return folder


def seal(folder, value):
    """Write a manifest with the hash that it has to have, as somebody who means harm would."""
    if isinstance(value, dict):
        with contextlib.suppress(ValueError, RecursionError):  # it is none
            manifest = Manifest.model_validate(json.loads(as_json(value)))
            value = value | {"sha256": own_hash(manifest)}
    (folder / "dataset.json").write_bytes(as_json(value))


def look(folder):
    """All that is read of a dataset."""
    dataset = Dataset(folder)
    assert dataset.manifest.fingerprint and dataset.tokenizer
    for stream in (dataset.train, dataset.val, *(one.stream for one in dataset.mixture)):
        stream.read(0, min(10, len(stream)))
    json.dumps(finite(dataset_figures(folder)), allow_nan=False)
    dataset_page(folder).write(folder / "report.html")


def test_any_manifest_is_a_dataset_or_refused(folder):
    value = json.loads((folder / "dataset.json").read_text())
    look(folder)
    seen = set()

    @fuzzed(80)
    @given(mutated(value))
    def tried(changed):
        seal(folder, changed)
        seen.add(is_read(lambda: look(folder)))
        assert is_read(lambda: verify_dataset(folder))

    tried()
    assert False in seen  # and what is sound was read above


def test_any_bytes_of_a_manifest_are_a_dataset_or_refused(folder):
    sound = (folder / "dataset.json").read_bytes()

    @fuzzed(40)
    @given(damaged(sound))
    def tried(data):
        (folder / "dataset.json").write_bytes(data)
        is_read(lambda: look(folder))
        assert is_read(lambda: verify_dataset(folder))

    tried()


def same_length(data):
    """Other bytes, as many: what is shorter is refused by its size alone."""
    return st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=8).map(
        lambda changes: bytes(dict(changes).get(i, byte) for i, byte in enumerate(data)))


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00000.offsets", "val-00000.offsets",
                                  "overlap.json", "bad_text.jsonl", "tokenizer/ranks.tiktoken",
                                  "tokenizer/encoding.json"])
def test_any_file_beside_it_is_read_or_refused(name, folder):
    sound = (folder / name).read_bytes()
    contents = st.one_of(damaged(sound), same_length(sound))
    if name == "overlap.json":
        contents = json_files(OVERLAP)
    value = json.loads((folder / "dataset.json").read_text())

    @fuzzed(15)
    @given(contents)
    def tried(data):
        (folder / name).write_bytes(data)
        if name in value["files"]:  # by a hand that knows the format
            seal(folder, value | {"files": {name: hashlib.sha256(data).hexdigest()}})
        is_read(lambda: look(folder))

    tried()


def test_any_part_of_another_machine_is_joined_or_refused(folder, tmp_path):
    (folder / PART).write_bytes((folder / "dataset.json").read_bytes())
    value = json.loads((folder / PART).read_text())
    other, whole = write_dataset(tmp_path / "e", shard_tokens=40).folder, tmp_path / "whole"
    whole.mkdir()
    seen = set()

    @fuzzed(40)
    @given(mutated(value))
    def tried(changed):
        seal(other, changed)
        (other / "dataset.json").replace(other / PART)
        seen.add(is_read(lambda: merge([folder, other], whole), OSError))

    tried()
    assert seen == {True, False}


def test_any_journal_is_gone_on_with_or_begun_again(tmp_path):
    value = {"key": "k", "place": [1, 2], "stored": 5, "counts": {"a": 1}, "complete": False,
             "incidents": [["f", 1, "p", "skipped"]], "sources": [{"path": "a"}],
             "writers": {"train": {"tokens": 3, "documents": 1, "sha256": "0", "finished": []}}}
    (tmp_path / "journal.json").write_bytes(as_json(value))
    assert Journal.load(tmp_path, "k") is not None
    seen = set()

    @fuzzed(60)
    @given(json_files(value))
    def tried(data):
        (tmp_path / "journal.json").write_bytes(data)
        assert is_read(lambda: seen.add(Journal.load(tmp_path, "k") is not None))

    tried()
    assert False in seen  # and what is sound was read above


def test_a_seal_is_what_the_reader_asks_for(folder):
    value = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_bytes(as_json(value | {"name": "another"}))
    with pytest.raises(UserError, match="is damaged: its own hash is"):
        Dataset(folder)
    seal(folder, value | {"name": "another"})
    assert Dataset(folder).manifest.name == "another"
