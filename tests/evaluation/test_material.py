"""Texts as tokens of several tokenizers: the same documents, the same bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from data import prepare
from gpt.errors import UserError
from gpt.evaluation import Material
from gpt.shards import Dataset
from gpt.tokenizer import build_tokenizer
from tests.tiny import ROOT

BYTES = build_tokenizer("byte", [])
PIECES = build_tokenizer("bpe:300", [(ROOT / "README.md").read_text()])


@pytest.fixture
def split(tmp_path, monkeypatch) -> Material:
    monkeypatch.chdir(tmp_path)
    for i in range(40):
        Path(f"d{i:02d}.txt").write_text(f"# Document {i}: naïve {'x' * i}\n")
    prepare.main([".", "tokenizer=byte", "val_fraction=0.4", "out=data"])
    return Material.of_dataset(Dataset(Path("data")))


def test_a_split_has_its_hash_its_training_text_and_its_documents(split):
    dataset = Dataset(Path("data"))
    assert split.sha256 == dataset.manifest.fingerprint
    assert len(split.training) == len(dataset.train)
    starts = dataset.val.document_starts
    assert split.documents.tolist() == [sum(starts <= i) - 1 for i in range(len(split.text))]
    assert len(split.source_of_documents) in (0, len(starts))


def test_in_another_tokenizers_tokens_it_is_the_same_text(split):
    other = split.in_tokens_of(PIECES)
    assert split.in_tokens_of(BYTES) is split and other.sha256 == split.sha256
    texts = []
    for each in (split, other):
        ids, end = each.text.read(0, len(each.text)), each.tokenizer.end_of_text
        assert each.text.end_of_text == end and (ids == end).sum() == each.documents[-1] + 1
        texts.append(each.tokenizer.decode_bytes([int(i) for i in ids if i != end]))
        assert each.tokenizer.byte_lengths()[ids].sum() == len(texts[-1])
    assert texts[0] == texts[1] and "naïve".encode() in texts[0]
    assert len(other.text) < len(split.text) and other.training is None
    assert (other.documents.max(), other.sources) == (split.documents.max(), split.sources)


def test_a_file_is_one_document_with_the_hash_of_its_bytes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc\xff")
    found = Material.of_file(path, BYTES)
    assert found.text.read(-1, 4).tolist() == [BYTES.end_of_text, 97, 98, 99, 255]
    assert not found.documents.any() and found.training is None
    assert found.sha256 == hashlib.sha256(b"abc\xff").hexdigest()
    for name, what in (("none.txt", "cannot read .*none.txt: No such"), ("e", "is empty")):
        (tmp_path / "e").write_text("")
        with pytest.raises(UserError, match=what):
            Material.of_file(tmp_path / name, BYTES)
