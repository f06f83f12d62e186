"""How long rows are: bounded by finetune.max_length, and all that follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finetune
from gpt import __main__ as verbs
from gpt.batches import portions
from gpt.configuration import FinetuneConfig, TrainConfig
from gpt.finetuning import TaskRows
from gpt.finetuning.lengths import Lengths
from gpt.finetuning.run import finetuning, with_defaults
from gpt.machine.device import choose_machine
from gpt.model import activation_bytes
from gpt.runs import checkpoint
from gpt.runs.saved_model import find_model
from gpt.training import choices
from gpt.training.choices import choose_portion, evaluation_tokens
from tests.finetuning.conversations import BYTES
from tests.tiny import call_main, tiny_config, tiny_gpt

CPU = choose_machine("cpu", "float32")
LONG = 4096
SHORT = [{"prompt": f"{i}?", "completion": "yes" * (1 + i % 5)} for i in range(40)]


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    """A model that reads far more than its data have."""
    monkeypatch.chdir(tmp_path)
    checkpoint.save_model(tmp_path / "base", tiny_gpt(vocab_size=257, block_size=LONG), BYTES, "x")
    Path("short.jsonl").write_text("".join(json.dumps(one) + "\n" for one in SHORT))
    Path("text.txt").write_text("A line of some text to go on with.\n" * 400)
    return tmp_path


def rows_of(data: str, **section: Any) -> tuple[FinetuneConfig, TaskRows]:
    config = FinetuneConfig(finetune={"from": "base", "data": data, **section})
    return config, TaskRows.load(config, BYTES, LONG)


def test_a_plain_text_is_cut_into_rows_of_a_thousand_tokens_unless_others_are_asked_for(base):
    lengths = [len(row) for row in rows_of("text.txt")[1].train.rows.rows]
    assert set(lengths[:-1]) == {1024} and 0 < lengths[-1] <= 1024
    lengths = [len(row) for row in rows_of("text.txt", max_length=100)[1].train.rows.rows]
    assert set(lengths[:-1]) == {100}
    assert max(len(row) for row in rows_of("text.txt", max_length=LONG)[1].train.rows.rows) == LONG


def test_conversations_may_have_the_whole_context_unless_a_bound_is_given(base):
    long = [{"prompt": "p", "completion": "x" * 3000}] * 3 + SHORT
    Path("long.jsonl").write_text("".join(json.dumps(one) + "\n" for one in long))
    given = {"val_fraction": 0}
    assert max(map(len, rows_of("long.jsonl", **given)[1].train.rows.rows)) > 3000
    bounded = rows_of("long.jsonl", max_length=40, **given)[1].train.rows
    assert len(bounded.dropped) == 3 and max(map(len, bounded.rows)) <= 40


def test_a_bound_beyond_the_context_is_refused_in_one_line(base, monkeypatch, capsys):
    code, _, errors = call_main(finetune, "finetune.from=base", "finetune.data=short.jsonl",
                                "finetune.max_length=5000", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, errors) == (2, "error: finetune.max_length=5000 is more than the base model "
                                 "reads (4096 tokens); lower it, or leave it out\n")


def test_rows_of_several_examples_are_no_longer_than_that_either(base):
    config, rows = rows_of("short.jsonl", packing=True)
    assert rows.longest(config.finetune) == 1024
    config, rows = rows_of("short.jsonl", packing=True, max_length=64)
    sequences = rows.sequences(packing=True)
    assert max(sequences.lengths(np.arange(len(sequences)))) <= 64 == rows.longest(config.finetune)


def test_what_rows_are_cut_at_is_part_of_what_a_run_is(base):
    """But only where it is not the context: older runs go on."""
    def cut_at(data: str, **section: Any) -> int | None:
        config, rows = rows_of(data, **section)
        return rows.identity(config).get("finetune.max_length")
    assert cut_at("short.jsonl") is None
    assert cut_at("short.jsonl", max_length=64) == 64
    assert cut_at("text.txt") == cut_at("short.jsonl", packing=True) == 1024
    config = FinetuneConfig(finetune={"from": "base", "data": "text.txt"})
    assert "finetune.max_length" not in TaskRows.load(config, BYTES, 512).identity(config)


def test_micro_batches_and_evaluation_follow_from_the_rows(base, monkeypatch):
    monkeypatch.setattr(choices, "activation_budget", lambda machine: 10**8)
    config, rows = rows_of("short.jsonl")
    config, _ = with_defaults(config, rows, find_model("base"))
    task = finetuning(config, find_model("base"), rows, tiny_gpt(vocab_size=257, block_size=LONG))
    portion = choose_portion(config.train, task.model, CPU, task.longest)
    assert task.longest == max(map(len, rows.train.rows.rows)) < 20
    (batch,) = task.batches(portion).step(0)
    assert len(batch.inputs) == config.train.batch_size
    validation = task.validation(evaluation_tokens(config.train, task.model, CPU, task.longest))
    assert len(validation) == 1 and validation[0].inputs.shape[1] < 20
    monkeypatch.setattr(choices, "activation_budget",
                        lambda machine: 40 * activation_bytes(task.model, False))
    portion = choose_portion(config.train, task.model, CPU, task.longest)
    assert portion.tokens == 40
    parts = task.batches(portion).step(0)
    assert sum(len(part.inputs) for part in parts) == config.train.batch_size and len(parts) > 1
    assert all(part.inputs.numel() <= 40 or len(part.inputs) == 1 for part in parts)


def test_a_size_that_is_given_counts_sequences(base):
    train = TrainConfig(batch_size=32, micro_batch_size=3)
    model = tiny_config(vocab_size=257, block_size=LONG)
    assert str(choose_portion(train, model, CPU, 20)) == "3 sequences"
    assert evaluation_tokens(train, model, CPU, 20) == 60
    assert evaluation_tokens(train.model_copy(update={"micro_batch_size": "auto"}), model, CPU,
                             20) == 8192


@pytest.mark.parametrize(("lengths", "sequences", "tokens", "expected"), [
    ([], 4, 10, []), ([3, 3, 3], 2, None, [2, 1]), ([1, 2, 3, 9], 9, 6, [2, 1, 1]),
    ([20, 30], 9, 10, [1, 1]), ([2, 2, 2, 2], 9, 8, [4])])
def test_portions_hold_no_more_than_their_padding_allows(lengths, sequences, tokens, expected):
    found = list(portions(lengths, sequences, tokens))
    assert [part.stop - part.start for part in found] == expected
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(len(lengths)))


def test_a_short_text_is_scored_at_its_own_length(base, monkeypatch, capsys):
    seen = []
    forward = type(tiny_gpt()).hidden
    monkeypatch.setattr(type(tiny_gpt()), "hidden",
                        lambda self, tokens, *a, **k: seen.append(tuple(tokens.shape)) or forward(
                            self, tokens, *a, **k))
    Path("few.txt").write_text("A few words.")
    assert call_main(verbs, "evaluate", "base", "--text", "few.txt", monkeypatch=monkeypatch,
                     capsys=capsys)[0] == 0
    assert seen == [(1, 12)]


def test_lengths_say_what_they_are_measured_by():
    section = FinetuneConfig(finetune={"from": "b", "data": "d"}).finetune
    assert Lengths.of(section, 512) == (Lengths(512, 512, "the model's context of 512 tokens"))
