"""benchmarks/lstm.py: both kinds of model are alike in size; each part measures what it says."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from torch import nn

from benchmarks import lstm, lstm_decoding, lstm_recall
from benchmarks.lstm_model import (
    IGNORED,
    KINDS,
    LSTM,
    AdamW,
    build,
    loss_of,
    lstm_parameters,
    toolkit_optimizer,
    train,
    training_flops,
)
from benchmarks.runs import spread
from gpt.errors import UserError
from gpt.files import write_json
from gpt.model import cache_bytes, parameter_count

TINY = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 512}
TEXT = "the quick brown fox jumps over the lazy dog; " * 60


# ----- The models


@pytest.mark.parametrize(("vocab_size", "shape"), [
    (65, lstm.SHAPE), (3 * lstm_recall.SYMBOLS, lstm_recall.SHAPE)])
def test_both_kinds_have_equally_many_parameters(vocab_size, shape):
    transformer, other = (parameter_count(build(kind, vocab_size, shape)) for kind in KINDS)
    assert abs(other / transformer - 1) < 0.02


def test_parameters_and_arithmetic_of_an_lstm_are_counted():
    model = LSTM(vocab_size=11, width=6, n_layer=3)
    assert parameter_count(model) == lstm_parameters(11, 6, 3)
    multiplied = 3 * 4 * (2 * 6 * 6 + 2 * 6) + 11 * 6 + 11
    assert training_flops(model, T=7) == training_flops(model, T=99) == 6 * multiplied


def test_forget_gates_begin_open_and_recurrent_matrices_orthogonal():
    layers = LSTM(vocab_size=5, width=8).layers
    for layer in range(2):
        bias = (getattr(layers, f"bias_ih_l{layer}") + getattr(layers, f"bias_hh_l{layer}"))
        assert bias.tolist() == [0] * 8 + [1] * 8 + [0] * 16
        for gate in getattr(layers, f"weight_hh_l{layer}").chunk(4):
            assert torch.allclose(gate @ gate.T, torch.eye(8), atol=1e-5)


def test_an_lstm_goes_on_where_it_was():
    torch.manual_seed(0)
    model, tokens = LSTM(vocab_size=9, width=8), torch.tensor([[1, 2, 3, 4, 5]])
    first, state = model.read(tokens[:, :2])
    second, _ = model.read(tokens[:, 2:], state)
    assert torch.allclose(torch.cat([first, second], 1), model(tokens), atol=1e-6)
    assert not torch.allclose(model.read(tokens[:, 2:])[0], second, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_round_again_is_learned(kind):
    rows = torch.arange(33).remainder(4).repeat(4, 1)
    model, looks = build(kind, 4, TINY, seed=1), []

    def look(model):
        with torch.no_grad():
            looks.append(float(loss_of(model, rows[:, :-1], rows[:, 1:])))
        return looks[-1]

    found = train(model, AdamW(model, 2e-2), lambda step: (rows[:, :-1], rows[:, 1:]), steps=90,
                  look=look, looks=3)
    assert [one.step for one in found] == [0, 30, 60, 90]
    assert [one.value for one in found] == looks
    assert looks[0] > 1 and looks[-1] < 0.2


def test_training_ends_with_its_time_and_looking_takes_none_of_it(monkeypatch):
    clock = iter(range(10**6))  # a second passes whenever it is looked at
    monkeypatch.setattr("benchmarks.lstm_model.time.perf_counter", lambda: next(clock))

    def look(model):
        next(clock)
        return 0.0

    rows, model = torch.zeros(1, 3, dtype=torch.int64), build("lstm", 4, TINY)
    found = train(model, AdamW(model, 0.1), lambda step: (rows, rows), seconds=4, look=look,
                  looks=2)
    assert [(one.step, one.seconds) for one in found] == [(0, 0), (2, 2), (4, 4)]


def test_the_rate_rises_and_falls(monkeypatch):
    rates, rows = [], torch.zeros(1, 3, dtype=torch.int64)
    model = build("transformer", 4, TINY)
    own = AdamW(model, 0.1)
    monkeypatch.setattr(own, "step", lambda: rates.append(own.param_groups[0]["lr"]))
    train(model, own, lambda step: (rows, rows), steps=20)
    assert rates[0] == 0 and rates.index(max(rates)) == 2 and 0.09 < max(rates) < 0.1
    assert rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] < 0.002


def test_the_toolkits_optimizer_has_muon_for_matrices_and_adamw_for_the_rest():
    rules = {group.name: type(group.rule).__name__
             for group in toolkit_optimizer(build("transformer", 4, TINY), 64).groups}
    assert rules.pop("matrices") == "Muon" and set(rules.values()) == {"AdamW"}


# ----- The parts


def test_batches_follow_from_seed_and_step_alone():
    bench = lstm.Bench(TEXT, rounds=1)
    inputs, targets = bench.batches(1)(5)
    assert inputs.shape == (lstm.BATCH, lstm.T) and torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(inputs, bench.batches(1)(5)[0])
    assert not torch.equal(inputs, bench.batches(1)(6)[0])
    assert not torch.equal(inputs, bench.batches(2)(5)[0])
    assert bench.vocab_size == len(set(TEXT))
    assert torch.equal(torch.cat([bench.text, bench.held]),
                       torch.tensor([sorted(set(TEXT)).index(c) for c in TEXT]))


class Fading(nn.Module):
    """Scores: the sum of all vectors so far, each step back counting a third as much."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        back = torch.arange(x.size(1)).flip(0)
        return self.head((x * 3.0 ** -back.view(-1, 1)).cumsum(1))


def test_gradients_by_distance_are_those_of_a_calculation_by_hand():
    torch.manual_seed(0)
    model, rows = Fading(), torch.tensor([[1, 2, 3, 4], [4, 4, 0, 1]])
    with torch.no_grad():
        wrong = model(rows[:, :-1])[:, -1].softmax(-1) - nn.functional.one_hot(rows[:, -1], 5)
        own = (wrong @ model.head.weight).norm(dim=-1).mean()
    found = lstm.gradient_by_distance(model, rows)
    assert torch.allclose(found, own * torch.tensor([1, 1 / 3, 1 / 9]), rtol=1e-5)
    assert all(weight.grad is None for weight in model.parameters())


def test_each_value_that_is_asked_for_was_told_behind_its_key():
    for pairs, distance in ((1, 4), (4, 16)):
        inputs, targets = lstm_recall.recall_rows(
            50, pairs, distance, torch.Generator().manual_seed(1))
        assert inputs.shape == targets.shape == (50, 4 * pairs + distance)
        for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
            told = dict(zip(row[:2 * pairs:2], row[1:2 * pairs:2], strict=True))
            assert len(told) == pairs
            filler = row[2 * pairs:2 * pairs + distance]
            assert min(filler) >= 2 * lstm_recall.SYMBOLS
            asked = range(2 * pairs + distance, len(row), 2)
            assert {row[place] for place in asked} == told.keys()
            assert [place for place, target in enumerate(wanted) if target != IGNORED] == [*asked]
            assert all(wanted[place] == told[row[place]] for place in asked)


def test_accuracy_is_one_for_a_model_that_looks_up_and_chance_for_one_that_guesses():
    def looks_up(tokens):
        scores = torch.zeros(*tokens.shape, 3 * lstm_recall.SYMBOLS)
        for row, line in zip(tokens.tolist(), scores, strict=True):
            line[-1, row[row.index(row[-1]) + 1]] = 1
        return scores

    def guesses(tokens):
        return looks_up(tokens).roll(1, dims=0)

    assert lstm_recall.accuracy(looks_up, pairs=4, distance=16) == 1
    assert lstm_recall.accuracy(guesses, pairs=4, distance=16) < 4 / lstm_recall.SYMBOLS


def test_the_state_of_an_lstm_stays_as_large_as_it_is_and_a_cache_grows():
    transformer, other = (build(kind, 20, TINY) for kind in KINDS)
    width = other.embedding.embedding_dim
    assert lstm_decoding.state_bytes(other, 7) == lstm_decoding.state_bytes(other, 70) == (
        2 * 2 * width * 4)
    for length in (7, 70):
        assert lstm_decoding.state_bytes(transformer, length) == length * cache_bytes(
            transformer.config, torch.float32)


def test_every_arm_goes_on_with_the_text_that_it_has_read(monkeypatch):
    firsts = []
    monkeypatch.setattr(lstm_decoding, "timed", lambda next_token, token: firsts.append(
        next_token(token)) or [1.0])
    lengths = (3, 5, 9, 17, 40)
    monkeypatch.setattr(lstm_decoding, "TEXT_LENGTHS", lengths)
    transformer, other = (build(kind, 20, TINY, seed=3).eval() for kind in KINDS)
    with torch.no_grad():
        for block in transformer.blocks:
            block.attention.out_proj.weight.normal_()
        for weight in other.layers.parameters():
            weight *= 4  # so that it is not soon forgotten what was read first
    text = torch.arange(50) * 7 % 20
    found = lstm_decoding.decoding(transformer, other, text, rounds=2)["records"]
    arms = sorted({one["arm"] for one in found})
    assert [(one["arm"], one["length"]) for one in found] == [
        (arm, length) for arm in arms for length in lengths]
    with torch.no_grad():
        whole = {length: [model(text[None, :length + 1])[:, -1:].argmax(-1)
                          for model in (transformer, *[transformer] * (len(arms) - 2), other)]
                 for length in lengths}
    assert firsts == 2 * [token for length in lengths for token in whole[length]]


# ----- The whole


@pytest.fixture
def small(monkeypatch, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    rates = dict.fromkeys(KINDS, (1e-3, 1e-2))
    for module, values in (
            (lstm, {"SHAPE": TINY, "SECONDS": 0.1, "RATE_SECONDS": 0.02, "RATES": rates,
                    "T": 16, "BATCH": 2, "CONTEXTS": (4, 8), "STEP_TOKENS": 16, "TAKES": 1,
                    "GRADIENT_ROWS": 3, "RESULTS": tmp_path / "found.json",
                    "PICTURES": tmp_path / "pictures"}),
            (lstm_recall, {"SHAPE": TINY, "PAIRS": {1: 0.02, 4: 0.02}, "TOKENS": 64, "ASKED": 8}),
            (lstm_decoding, {"TEXT_LENGTHS": (4, 8), "NEW_TOKENS": 2})):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    return tmp_path


def test_all_parts_are_measured_told_and_drawn(small, capsys):
    lstm.main([str(small / "text.txt"), "--rounds=2"])
    found = json.loads((small / "found.json").read_text())
    assert found["parts"].keys() == lstm.PARTS.keys()
    assert abs(found["parameters"]["lstm"] / found["parameters"]["transformer"] - 1) < 0.02
    part = found["parts"]["loss"]
    for seed, steps in enumerate(part["equal_steps"]):
        lasts = {kind: part["curves"][kind][seed][-1] for kind in KINDS}
        assert steps == min(last["step"] for last in lasts.values()) > 0
        for kind, last in lasts.items():
            assert last["seconds"] >= 0.1
            if last["step"] == steps:
                assert part["at_equal_steps"][kind][seed] == last["value"]
    assert all(len(curve) == 16 for curves in found["parts"]["gradients"]["norms"].values()
               for curve in curves)
    told = capsys.readouterr().out
    assert all(f"\n{name} " in told for name in lstm.PARTS)
    pictures = sorted((small / "pictures").iterdir())
    assert [path.stem for path in pictures] == sorted(lstm.PARTS)
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 60_000
        path.unlink()
    lstm.main(["--draw"])
    assert sorted((small / "pictures").iterdir()) == pictures


def test_some_parts_are_told_and_leave_results_as_they_were(small, capsys):
    lstm.main([str(small / "text.txt"), "--rounds=1", "--arms=gradients"])
    assert "gradients  lstm" in capsys.readouterr().out
    assert not (small / "found.json").exists() and not (small / "pictures").exists()


def test_the_rate_that_did_best_is_taken(monkeypatch):
    bench = lstm.Bench(TEXT, rounds=1)
    monkeypatch.setattr(bench, "losses_by_rate", lambda kind: {1e-3: 2.0, 2e-3: 1.5, 4e-3: 1.7})
    assert bench.rate("lstm") == 2e-3


def test_without_matplotlib_the_error_says_what_to_install(small, monkeypatch):
    write_json(small / "found.json", {})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'gpt-toolkit\[report\]'"):
        lstm.main(["--draw"])


def test_a_figure_is_told_as_its_median_and_its_spread():
    assert spread([3, 1, 2.5], ".1f") == "2.5 (1.0 to 3.0)"


def test_a_first_loss_is_that_of_knowing_nothing_in_the_mean_over_all_rows(monkeypatch):
    monkeypatch.setattr(lstm, "T", 4)  # of rows of five, every fourth; 64 are read at once
    bench = lstm.Bench(TEXT * 10, rounds=1)
    rows = bench.held_rows()
    assert rows.shape == (135, 5) and rows.tolist()[1] == bench.held[20:25].tolist()
    for kind in KINDS:
        model = bench.build(kind)
        with torch.no_grad():
            mean = float(loss_of(model, rows[:, :-1], rows[:, 1:]))
        assert math.isclose(bench.loss(model), mean, rel_tol=1e-6)
        assert math.isclose(mean, math.log(bench.vocab_size), rel_tol=0.3)
