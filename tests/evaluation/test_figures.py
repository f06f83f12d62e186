"""Groups of tokens by hand, and what they add up to."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from data import prepare
from gpt.evaluation import Material, Scored
from gpt.evaluation import figures as module
from gpt.evaluation.figures import calibration, figures_of
from gpt.shards import Dataset, sampled_counts
from gpt.tokenizer import build_tokenizer

BYTES = build_tokenizer("byte", [])


def scored_of(ids: np.ndarray, seed: int = 0) -> Scored:
    generator = np.random.default_rng(seed)
    N = len(ids)
    return Scored(ids, generator.gamma(2, 1, N).astype(np.float32), np.arange(N) % 32 + 1,
                  generator.uniform(0, 1, N).astype(np.float32), generator.random(N) < 0.5)


@pytest.fixture
def mixed(tmp_path, monkeypatch) -> Material:
    """A validation split of two sources with documents of their own."""
    monkeypatch.chdir(tmp_path)
    for name, word in (("a", "apple "), ("b", "bear ")):
        Path(f"{name}.jsonl").write_text("".join(
            json.dumps({"text": f"{word * (3 + i % 5)}{i}"}) + "\n" for i in range(200)))
    prepare.main(["a.jsonl", "b.jsonl", "tokenizer=byte", "val_fraction=0.2", "out=data"])
    return Material.of_dataset(Dataset(Path("data")))


def test_figures_of_groups_add_up_to_those_of_the_whole(mixed):
    ids = mixed.text.read(0, len(mixed.text))
    scored = scored_of(ids)
    found = figures_of(scored, mixed)
    assert found.tokens == len(ids) and found.loss == pytest.approx(scored.losses.mean(), rel=1e-6)
    text_bytes = int((ids != mixed.text.end_of_text).sum())
    assert found.text_bytes == text_bytes
    assert found.bits_per_byte == pytest.approx(
        scored.losses.sum() / math.log(2) / text_bytes, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.accuracy == pytest.approx(scored.hits.mean())
    for groups in (found.by_source, found.by_position, found.by_frequency):
        assert sum(each.tokens for each in groups) == len(ids)
        assert sum(each.tokens * each.loss for each in groups) == pytest.approx(
            scored.losses.sum(), rel=1e-5)
    assert found.loss_interval.low < found.loss < found.loss_interval.high
    assert found.bits_interval.low < found.bits_per_byte < found.bits_interval.high


def test_sources_are_told_apart_by_their_documents(mixed):
    ids = mixed.text.read(0, len(mixed.text))
    losses = np.zeros(len(ids), dtype=np.float32)
    of_bears = np.array([b"bear" in each for each in BYTES.decode_bytes(
        [10 if i == BYTES.end_of_text else int(i) for i in ids]).split(b"\n")[:-1]])
    losses[of_bears[mixed.documents]] = 2.0
    found = figures_of(Scored(ids, losses, np.ones_like(ids), losses / 4, losses > 0), mixed)
    by_name = {each.name: each for each in found.by_source}
    assert [each.loss for each in by_name.values()] == [0.0, 2.0]
    assert list(by_name) == ["a.jsonl", "b.jsonl"]
    assert by_name["b.jsonl"].tokens == of_bears[mixed.documents].sum()
    assert found.units == "documents" and found.unit_count == len(of_bears)


def test_positions_are_grouped_by_powers_of_two(mixed):
    ids = mixed.text.read(0, 320)
    scored = scored_of(ids)
    of, names = module._places(scored.read)
    assert names == ["1", "2 to 3", "4 to 7", "8 to 15", "16 to 31", "32"]
    assert np.bincount(of).tolist() == [10, 20, 40, 80, 160, 10]


@pytest.mark.parametrize("counted", [20_000_000, 1000])
def test_tokens_are_counted_in_stretches_of_a_long_text(mixed, counted):
    training = mixed.training
    counts = sampled_counts(training, training.vocab_size, counted)
    every = np.bincount(training.read(0, len(training)), minlength=len(counts))
    if counted > len(training):
        assert counts.tolist() == every.tolist()
    else:
        assert counts.sum() == counted
        assert np.abs(counts / counts.sum() - every / every.sum()).max() < 0.05


def test_tokens_are_grouped_by_how_often_training_text_has_them(mixed):
    of, names = module._frequencies(np.array([ord("a"), ord("7"), 0]), mixed)
    assert [names[i] for i in of] == ["10,000 and more", "1,000 to 10,000", "less than 1"]


def test_calibration_compares_what_was_expected_with_what_came():
    confidence = np.array([0.05, 0.15, 0.15, 0.95, 0.95, 0.95, 1.0], dtype=np.float32)
    hits = np.array([False, True, False, True, True, False, True])
    zeros = np.zeros(7)
    found = calibration(Scored(zeros, zeros, zeros, confidence, hits))
    assert [(round(each.confidence, 4), each.accuracy, each.tokens) for each in found] == [
        (0.05, 0.0, 1), (0.15, 0.5, 2), (0.9625, 0.75, 4)]


def test_the_calibration_error_is_the_mean_distance_by_tokens(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefgh")
    material = Material.of_file(tmp_path / "a.txt", BYTES)
    confidence = np.array([0.15, 0.15, 0.95, 0.95, 0.95, 0.95, 0.95, 0.95], dtype=np.float32)
    hits = np.array([True, True, False, False, False, True, True, True])
    ids = material.text.read(0, 8)
    found = figures_of(Scored(ids, np.ones(8, np.float32), ids, confidence, hits), material)
    assert found.calibration_error == pytest.approx((2 * 0.85 + 6 * 0.45) / 8, abs=1e-5)


def test_of_a_file_frequencies_are_its_own_and_there_are_no_sources(tmp_path):
    (tmp_path / "a.txt").write_text("aaab" * 3000)
    material = Material.of_file(tmp_path / "a.txt", BYTES)
    found = figures_of(scored_of(material.text.read(0, 12_000)), material)
    assert found.by_source == [] and found.units == "blocks of 4,096 bytes"
    assert [each.name for each in found.by_frequency] == ["10,000 and more"]
    (tmp_path / "b.txt").write_text("aa")
    short = Material.of_file(tmp_path / "b.txt", BYTES)
    assert figures_of(scored_of(short.text.read(0, 2)), short).loss_interval is None
