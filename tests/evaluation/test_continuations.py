"""Likelihoods of texts behind others: in batches, and with beginnings read once, as one by one."""

from __future__ import annotations

import pytest
import torch

from gpt.evaluation import continuations
from gpt.evaluation.continuations import Row, common_prefix, judge
from gpt.language_model import LanguageModel
from gpt.machine.device import Machine
from gpt.machine.ranks import joined
from gpt.tokenizer import build_tokenizer
from tests.parallel.processes import run_ranks
from tests.tiny import ARCHITECTURES, CPU, random_tokens, tiny_gpt

BYTES = build_tokenizer("byte", [])
V = 300


def lm_of(block_size: int = 64, machine: Machine = CPU, **changes) -> LanguageModel:
    return LanguageModel(tiny_gpt(vocab_size=V, block_size=block_size, **changes), BYTES, machine)


def questions_of(*shapes: tuple[int, tuple[int, ...]], seed: int = 0) -> list[list[Row]]:
    """Of (tokens that rows begin with, tokens of each row behind them)."""
    found = []
    for number, (shared, tails) in enumerate(shapes):
        begin = random_tokens(shared, vocab_size=V, seed=seed + number).tolist()
        found.append([Row([*begin, *random_tokens(n, vocab_size=V, seed=100 + 10 * number + i)
                           .tolist()], shared) for i, n in enumerate(tails)])
    return found


MIXED = questions_of((3, (2, 5)), (20, (1, 7, 3, 4)), (1, (9,)), (40, (3, 3)), (50, (14, 1, 2)))


def one_by_one(lm: LanguageModel, questions):
    found = []
    for question in questions:
        for ids, start in question:
            over = max(0, len(ids) - lm.block_size - 1)
            read, first = ids[over:], max(1, start - over)
            with torch.no_grad():
                logprobs = lm.model(torch.tensor([read[:-1]]))[0].log_softmax(-1)
            told = [float(logprobs[i - 1, read[i]]) for i in range(first, len(read))]
            best = [int(logprobs[i - 1].argmax()) == read[i] for i in range(first, len(read))]
            found.append((sum(told), len(told), all(best)))
    return found


@pytest.mark.parametrize("shared", [2, 64, 1000])
@pytest.mark.parametrize("name", ["default", "windows", "phi", "gemma", "vaswani"])
def test_rows_are_judged_as_one_by_one(name, shared, monkeypatch):
    monkeypatch.setattr(continuations, "SHARED", shared)
    monkeypatch.setattr(continuations, "BATCH_TOKENS", 50)
    lm = lm_of(**ARCHITECTURES[name])
    found = [one for question in judge(lm, MIXED) for one in question]
    for ours, theirs in zip(found, one_by_one(lm, MIXED), strict=True):
        assert ours.logprob == pytest.approx(theirs[0], rel=1e-4, abs=1e-4)
        assert ours[1:] == theirs[1:]


def test_what_the_likeliest_token_is_counts_for_all_of_a_row():
    lm = lm_of()
    begin = [5, 6, 7]
    with torch.no_grad():
        for _ in range(4):
            begin.append(int(lm.model(torch.tensor([begin]))[0, -1].argmax()))
    wrong = [*begin[:-1], (begin[-1] + 1) % V]
    (right,), (other,) = judge(lm, [[Row(begin, 3)], [Row(wrong, 3)]])
    assert right.greedy and not other.greedy and right.tokens == other.tokens == 4


@pytest.mark.parametrize("shared", [2, 1000])
def test_long_rows_lose_their_beginning_and_no_more(shared, monkeypatch):
    monkeypatch.setattr(continuations, "SHARED", shared)
    lm, long = lm_of(16), questions_of((14, (2, 3, 4)), (30, (2, 2)), (5, (40, 1)))
    found = [one for question in judge(lm, long) for one in question]
    for ours, theirs in zip(found, one_by_one(lm, long), strict=True):
        assert ours.logprob == pytest.approx(theirs[0], rel=1e-4, abs=1e-4)
        assert ours[1:] == theirs[1:]
    assert [one.tokens for one in found] == [2, 3, 4, 2, 2, 16, 1]


def shapes_read(monkeypatch, *shapes: tuple[int, tuple[int, ...]]) -> list[tuple[int, int]]:
    """(B, T) of all that the model reads to judge such questions."""
    lm, read = lm_of(), []
    right = lm.model.hidden
    monkeypatch.setattr(lm.model, "hidden", lambda tokens, *more: (
        read.append(tuple(tokens.shape)), right(tokens, *more))[1])
    judge(lm, questions_of(*shapes))
    return read


def test_a_beginning_is_read_once(monkeypatch):
    monkeypatch.setattr(continuations, "SHARED", 30)
    assert shapes_read(monkeypatch, (40, (5, 5, 5)), (10, (5, 5))) == [(1, 39), (3, 5), (2, 14)]


def test_no_more_tokens_are_read_at_once_than_fit(monkeypatch):
    monkeypatch.setattr(continuations, "BATCH_TOKENS", 40)
    read = shapes_read(monkeypatch, (2, (3, 20)), (4, (6, 6)), (8, (2,)))
    assert read == [(4, 9), (1, 21)] and all(B * (T + 1) <= 40 for B, T in read)


def spread():
    with joined("cpu") as ranks:
        machine = Machine(torch.device("cpu"), torch.float32, ranks=ranks, replicas=ranks)
        return judge(lm_of(machine=machine), MIXED)


def test_replicas_judge_some_questions_each():
    alone = judge(lm_of(), MIXED)
    for found in run_ranks(2, spread, join=False):
        for ours, theirs in zip(found, alone, strict=True):
            assert [one.logprob for one in ours] == pytest.approx([one.logprob for one in theirs])


def test_what_rows_begin_with():
    assert common_prefix([[1, 2, 3], [1, 2, 4, 5], [1, 2]]) == 2
    assert common_prefix([[1], [2]]) == 0 and common_prefix([[1, 2], [1, 2]]) == 2
