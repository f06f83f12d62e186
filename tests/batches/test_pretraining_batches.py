"""From a dataset folder to batches, as train.py wires it: each field of `data` changes what it
says, and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import gpt.__main__
import train
from gpt.batches import IGNORE, Batches, Order
from gpt.batches.order import sequence_order
from gpt.configuration import PretrainConfig, validate
from gpt.errors import UserError
from gpt.files import sha256_of
from gpt.runs import checkpoint
from gpt.shards import (
    Amount,
    Dataset,
    Manifest,
    ShardInfo,
    SourceInfo,
    SplitInfo,
    TokenizerInfo,
    write_manifest,
)
from gpt.tokenizer import build_tokenizer
from gpt.training.choices import Portion
from gpt.training.pretraining import pretraining, training_source

BYTES = build_tokenizer("byte")
END = BYTES.end_of_text
SMALL = ["model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=32",
         "train.batch_size=4", "train.steps=6", "eval.every_steps=null", "run.dtype=float32",
         "optim.lr=0.01", "optim.warmup_steps=0"]


def documents(letter: str, count: int) -> list[bytes]:
    """Texts of 1 to 60 letters."""
    return [letter.encode() * (1 + 23 * i % 60) for i in range(count)]


def write_dataset(folder: Path, sources: dict[str, list[bytes]],
                  weights: list[float | None]) -> Dataset:
    """A dataset folder, written without the toolkit's writer. A shard per source."""
    BYTES.save(folder / "tokenizer")
    train = [write_shard(folder, f"train-{n:05d}", texts, n) for n, texts in
             enumerate(sources.values())]
    val = [write_shard(folder, "val-00000", [t for texts in sources.values() for t in texts[:9]])]
    splits = {split: SplitInfo(shards=shards, **totals(shards).model_dump())
              for split, shards in (("train", train), ("val", val))}
    write_manifest(folder, Manifest(
        format_version=1, name="tiny", dtype="uint16", splits=splits, recipe={}, bad_text={},
        tokenizer=TokenizerInfo(spec="byte", sha256=BYTES.fingerprint,
                                vocab_size=BYTES.vocab_size),
        sources=[SourceInfo(path=path, weight=weight)
                 for path, weight in zip(sources, weights, strict=True)]))
    return Dataset(folder)


def write_shard(folder: Path, name: str, texts: list[bytes], source: int | None = None
                ) -> ShardInfo:
    ids = [np.array([*text, END], dtype="<u2") for text in texts]
    starts = np.cumsum([0, *map(len, ids)])[:-1].astype("<u8")
    np.concatenate(ids).tofile(folder / f"{name}.bin")
    starts.tofile(folder / f"{name}.offsets")
    return ShardInfo(file=f"{name}.bin", tokens=sum(map(len, ids)), documents=len(ids),
                     source=source, sha256=sha256_of(folder / f"{name}.bin"),
                     offsets_sha256=sha256_of(folder / f"{name}.offsets"))


def totals(shards: list[ShardInfo]) -> Amount:
    return Amount(documents=sum(s.documents for s in shards), tokens=sum(s.tokens for s in shards),
                  bytes=sum(s.tokens - s.documents for s in shards))


@pytest.fixture
def plain(tmp_path) -> Dataset:
    """Two sources without weights: one stream."""
    return write_dataset(tmp_path / "plain", {"a": documents("a", 40), "b": documents("b", 25)},
                         [None, None])


@pytest.fixture
def mixed(tmp_path) -> Dataset:
    """The same with weights 3 to 1."""
    return write_dataset(tmp_path / "mixed", {"a": documents("a", 40), "b": documents("b", 25)},
                         [3, 1])


def configured(block_size: int = 16, **data: Any) -> PretrainConfig:
    return validate(PretrainConfig, {"data": {"dataset": "x", **data},
                                     "model": {"block_size": block_size},
                                     "train": {"batch_size": 8}}, {})


def batches(dataset: Dataset, batch_size: int = 8, **data: Any) -> Batches:
    source = training_source(configured(**data), dataset)
    return Batches(source, Order(batch_size, batch_size))


def test_the_defaults_read_windows_of_the_whole_split_in_the_order_of_earlier_versions(plain):
    stream = np.concatenate([np.fromfile(plain.folder / f"train-{n:05d}.bin", "<u2")
                             for n in range(2)]).astype(np.int64)
    read = batches(plain)
    n = read.sequences_per_epoch
    assert n == -(-(len(stream) - 1) // 16)
    for step in (0, 3, 40):
        [batch] = read.step(step)
        numbers = sequence_order(np.arange(8 * step, 8 * step + 8), n, 1337)
        for row, number in enumerate(numbers.tolist()):
            start = min(16 * number, len(stream) - 17)
            assert batch.inputs[row].tolist() == stream[start:start + 16].tolist()
            assert batch.targets[row].tolist() == stream[start + 1:start + 17].tolist()
        assert batch.segments is None and batch.tokens == 128


def test_document_packing_reads_every_token_of_real_shards_once_per_epoch(plain, capsys):
    read = batches(plain, batch_size=1, packing="documents")
    found = Counter(t for step in range(read.sequences_per_epoch)
                    for t in read.step(step)[0].targets.flatten().tolist() if t != IGNORE)
    texts = documents("a", 40) + documents("b", 25)
    assert found == Counter(b"".join(texts)) + Counter({END: 65})
    assert f"{read.sequences_per_epoch:,} rows of documents, " in capsys.readouterr().out
    assert read.sequences_per_epoch != batches(plain).sequences_per_epoch


@pytest.mark.parametrize("packing", ["windows", "documents"])
def test_weights_decide_how_much_of_each_source_is_read(plain, mixed, packing):
    def share_of_a(dataset: Dataset) -> float:
        [batch] = batches(dataset, batch_size=4096, packing=packing).step(0)
        letters = Counter(batch.targets[batch.targets != IGNORE].tolist())
        return letters[ord("a")] / (letters[ord("a")] + letters[ord("b")])

    assert share_of_a(mixed) == pytest.approx(0.75, abs=0.02)
    assert share_of_a(plain) == pytest.approx(40 / 65, abs=0.03)


def test_a_source_that_is_too_small_is_named(tmp_path):
    dataset = write_dataset(tmp_path / "d", {"a": documents("a", 40), "b": [b"b"]}, [1, 1])
    with pytest.raises(UserError, match=r"d: the source b has 2 tokens, fewer than one sequence"):
        batches(dataset)


@pytest.mark.parametrize("packing", ["windows", "documents"])
def test_isolation_numbers_documents_in_training_and_validation(plain, packing):
    for isolate in (False, True):
        config = configured(packing=packing, isolate_documents=isolate)
        task = pretraining(config, plain)
        tokens = 4 * task.model.block_size
        for batch in (*task.batches(Portion(4)).step(0), *task.validation(tokens)):
            assert (batch.segments is not None) == isolate
            if isolate:
                begins = batch.inputs == END
                assert (batch.segments.diff(dim=1)[begins[:, 1:]] == 1).all()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_id_is_named_before_it_reaches_the_model(plain, split):
    path = plain.folder / f"{split}-00000.bin"
    ids = np.fromfile(path, "<u2")
    ids[33] = 257
    ids.tofile(path)
    task = pretraining(configured(), Dataset(plain.folder))
    name = "training" if split == "train" else "validation"
    with pytest.raises(UserError) as caught:
        list(task.validation(4 * task.model.block_size)) if split == "val" else [
            task.batches(Portion(4)).step(step) for step in range(20)]
    assert str(caught.value) == (
        f"{plain.folder}: the {name} split has the id 257 at token 33, outside its vocabulary of "
        "257: a shard is damaged; prepare the dataset again")


def trained(name: str, *settings: str) -> Path:
    """Train in this process; returns the run's folder."""
    train.main(["data.dataset=plain", f"run.name={name}", *SMALL, *settings])
    return Path("runs") / name


def lines(run: Path, event: str) -> list[dict[str, Any]]:
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in logged if line["event"] == event]


def weights(run: Path) -> str:
    return checkpoint.weight_hash(checkpoint.find(str(run)))


def test_workers_change_nothing_but_the_waiting(plain, monkeypatch):
    monkeypatch.chdir(plain.folder.parent)
    runs = {n: trained(f"workers-{n}", f"data.loader_workers={n}") for n in (0, 1, 2, 4)}
    assert len({weights(run) for run in runs.values()}) == 1
    for run in runs.values():
        waits = [line["data_seconds"] for line in lines(run, "train")]
        assert len(waits) == 6 and all(wait >= 0 for wait in waits)


@pytest.mark.parametrize("field", ["data.packing=documents", "data.isolate_documents=true"])
def test_what_is_read_and_seen_belongs_to_the_run(plain, monkeypatch, field):
    monkeypatch.chdir(plain.folder.parent)
    run = trained("default")
    assert weights(trained("other", field)) != weights(run)
    with pytest.raises(UserError, match=field.split("=")[0]):
        trained("default", field)


@pytest.mark.auto
def test_evaluation_of_a_run_isolates_when_its_training_did(plain, monkeypatch, capsys):
    monkeypatch.chdir(plain.folder.parent)
    run = trained("isolated", "data.isolate_documents=true")

    def evaluated() -> float:
        capsys.readouterr()
        gpt.__main__.main(["evaluate", str(run)])
        return float(capsys.readouterr().out.split("\n")[1].split()[0])

    assert evaluated() == pytest.approx(lines(run, "eval")[-1]["val_loss"], abs=1e-4)
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["data"]["isolate_documents"] = False
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    assert evaluated() != pytest.approx(lines(run, "eval")[-1]["val_loss"], abs=1e-4)
