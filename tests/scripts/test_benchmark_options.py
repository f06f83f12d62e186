"""Benchmarks of several arms take --rounds=N and --arms=A,B, and write whole results alone."""

from __future__ import annotations

import json

import pytest

from benchmarks import decode, finetune, neighbours, recipe, serve, throughput, time_to_loss
from benchmarks.runs import Outcome, choose
from benchmarks.serve_clients import Answer, figures, token_times
from gpt.errors import UserError

ARMS = ["ours", "ours, packed", "peer"]


def test_arms_and_rounds_are_chosen():
    chosen = choose(["--rounds=2", "--arms=ours, packed,peer", "text"], ARMS, 5)
    assert (chosen.arms, chosen.rounds, chosen.rest) == (["ours, packed", "peer"], 2, ["text"])
    assert not chosen.is_whole and choose(["--arms=peer,ours,ours, packed"], ARMS, 5).is_whole
    chosen = choose([], ARMS, 5)
    assert (chosen.arms, chosen.rounds, chosen.is_whole) == (ARMS, 5, True)


@pytest.mark.parametrize(("words", "told"), [
    (["--rounds=0"], "--rounds=0: give a number"), (["--rounds=x"], "--rounds=x: give a number"),
    (["--arms=our"], "there is no arm 'our'; choose from ours; ours, packed; peer")])
def test_what_is_no_arm_and_no_number_is_refused(words, told):
    with pytest.raises(UserError) as caught:
        choose(words, ARMS, 5)
    assert told in str(caught.value)


@pytest.mark.parametrize("module", [decode, finetune, neighbours, serve, throughput])
def test_a_word_that_means_nothing_is_refused(module):
    with pytest.raises(UserError, match="'ours' means nothing here"):
        module.main(["ours"])
    with pytest.raises(UserError, match="there is no arm"):
        module.main(["--arms=ourselves"])


def written(module, words: list[str], monkeypatch, tmp_path) -> dict | None:
    """What a benchmark wrote."""
    file = tmp_path / "results.json"
    file.unlink(missing_ok=True)
    monkeypatch.setattr(module, "RESULTS", file if module is not recipe else tmp_path)
    monkeypatch.setattr(module, "SHORT_RESULTS", tmp_path / "short.txt", raising=False)
    module.main(words)
    made = [*tmp_path.glob("*.json")]
    return json.loads(made[0].read_text()) if made else None


@pytest.mark.parametrize(("module", "some"), [(decode, "ours float32 10M,transformers float32 10M"),
                                              (finetune, "ours full,transformers full")])
def test_results_of_some_arms_are_not_written(module, some, monkeypatch, tmp_path, capsys):
    asked = []

    def arms_in_turn(script, arms, folder, rounds):
        asked.append((list(arms), rounds))
        figures = {"tokens_per_second": 2.0, "peak_bytes": 1.0, "trainable": 1.0}
        return {arm: [{"one": 2.0} if module is decode else figures] * rounds for arm in arms}

    for name, stub in (("arms_in_turn", arms_in_turn), ("make_models", lambda *given: None),
                       ("make_base", lambda *given: None), ("bytes_per_second", lambda: 1e9)):
        monkeypatch.setattr(module, name, stub, raising=False)
    assert written(module, ["--rounds=2", f"--arms={some}"], monkeypatch, tmp_path) is None
    assert asked[-1] == (some.split(","), 2) and some.split(",")[0] in capsys.readouterr().out
    assert written(module, ["--rounds=2"], monkeypatch, tmp_path)["rounds"] == 2
    assert len(asked[-1][0]) > 2


def served_in_turn(script, arms, folder, rounds):
    """Of ours, a token per second and client; of others, half as many."""
    figures = {arm: {f"{count} {name}": count / (1 + (not arm.startswith("ours")))
                     for count in serve.CLIENTS[arm.split()[0]]
                     for name in ("tokens_per_second", *(f"{kind}_p{p}" for p in (50, 90, 99)
                                                         for kind in ("first", "between")))}
               for arm in arms}
    return {arm: [found] * rounds for arm, found in figures.items()}


@pytest.mark.parametrize("has_llama", [True, False])
def test_serving_is_compared_and_written_only_with_llama_cpp(has_llama, monkeypatch, tmp_path,
                                                             capsys):
    for name, stub in (("arms_in_turn", served_in_turn), ("make_models", lambda *given: None),
                       ("bytes_per_second", lambda: 1e9), ("has_llama", lambda: has_llama),
                       ("version", lambda name: "0")):
        monkeypatch.setattr(serve, name, stub)
    some = "--arms=ours float32 10M,single float32 10M"
    assert written(serve, ["--rounds=1", some], monkeypatch, tmp_path) is None
    told = capsys.readouterr().out
    assert "ours / single float32 10M, 16 clients: 2.00 x, goal 3 x" in told
    assert "124M" not in told and ("llama.cpp is left out" in told) == (not has_llama)
    whole = written(serve, ["--rounds=2"], monkeypatch, tmp_path)
    assert has_llama == (whole is not None)
    if whole is not None:
        assert whole["rounds"] == 2
        assert whole["ratios"]["ours / llama.cpp f32 124M, 8 clients"] == {
            "tokens_per_second": 2, "goal": 1}


def event(text: str) -> bytes:
    return b'd\r\ndata: {"choices": [{"text": "%s"}]}\r\n\r\n' % text.encode()


def test_a_token_comes_when_the_last_of_its_bytes_does():
    made = event("a") + event("") + event("bc") + event("d") + b"data: [DONE]\n\n"
    cut = made.index(b"bc") + 1
    reads = [(1.0, made[:10]), (2.0, made[10:cut]), (4.0, made[cut:])]
    assert token_times(Answer(0.5, reads), 4) == [2.0, 4.0, 4.0, 4.0]
    with pytest.raises(SystemExit, match="4 tokens instead of 5"):
        token_times(Answer(0.5, reads), 5)


def test_tokens_count_while_all_clients_are_at_work():
    def answer(sent, *times):
        return Answer(sent, [(at, event("a")) for at in times])

    found = figures([[answer(0.0, 1.0, 2.0), answer(2.0, 4.0, 8.0)], [answer(0.0, 3.0, 5.0)]], 2)
    assert found["tokens_per_second"] == 5 / 5.0  # until the second client ends
    assert found["first_p50"] == 2.0  # of 1, 2 and 3
    assert found["between_p99"] == pytest.approx(1.99)  # of 1 and 2, without the 4 behind the end


def test_throughput_compares_the_arms_that_are_asked_for(monkeypatch, tmp_path, capsys):
    class Arm:
        flops_per_token = 1e6

        def __init__(self, name, mode, dtype):
            self.name = f"{name}, {mode}"

        def step(self):
            return 1.0

        def close(self):
            pass

    monkeypatch.setattr(throughput, "Arm", Arm)
    monkeypatch.setattr(throughput, "measure_matmul_flops", lambda device, dtype: 1e12)
    assert written(throughput, ["--rounds=1", "--arms=ours, as many, eager"], monkeypatch,
                   tmp_path) is None
    assert "ours, as many, eager" in capsys.readouterr().out
    assert written(throughput, [], monkeypatch, tmp_path)["rounds"] == throughput.ROUNDS


@pytest.mark.parametrize(("words", "some"), [
    ([], "--arms=gpt2"), (["parts"], "--arms=no qk_norm"), (["whole"], "--arms=muon_momentum 0.85"),
    (["widths"], "--arms=64")])
def test_the_recipes_comparisons_do_too(words, some, monkeypatch, tmp_path):
    trained = []

    def train(folder, config, name, *overrides, script):
        trained.append(name)
        return Outcome(1.0, 2.0, 1.5, 100, 10, 1e9)

    monkeypatch.setattr(recipe, "train", train)
    monkeypatch.setattr(recipe, "run_script", lambda *words: None)
    monkeypatch.setattr(recipe, "seconds_per_step", lambda folder, arms: dict.fromkeys(arms, 0.1))
    monkeypatch.setattr(recipe.os, "environ", {})
    some = some if some.removeprefix("--arms=") in recipe.PARTS or words != ["parts"] else (
        f"--arms={recipe.PARTS[1]}")
    assert written(recipe, [*words, "--rounds=1", some], monkeypatch, tmp_path) is None
    few = len(trained)
    assert few > 0
    assert written(recipe, [*words, "--rounds=2"], monkeypatch, tmp_path)["rounds"] == 2
    assert len(trained) - few > few


def test_time_to_loss_does_too(monkeypatch, tmp_path):
    (tmp_path / "text.txt").write_text("text")
    monkeypatch.setattr(time_to_loss, "train",
                        lambda *words: Outcome(1.0, 1.8, 1.5, 100, 10, 1e9))
    monkeypatch.setattr(time_to_loss, "run_script", lambda *words: None)
    monkeypatch.setattr(time_to_loss, "measure_matmul_flops", lambda device, dtype: 1e12)
    text = str(tmp_path / "text.txt")
    assert written(time_to_loss, [text, "--rounds=1", "--arms=ours"], monkeypatch,
                   tmp_path) is None
    assert written(time_to_loss, [text, "--rounds=1"], monkeypatch, tmp_path)["ratio"] == 1


def test_speed_beside_others_is_told_as_a_share_of_the_spinning_threads_alone():
    found = {"train": {"ours": 9.0, "spinning": 10.0}, "train, sample": {"ours": 4.0}}
    assert "( 0.90)" in neighbours.told("train", found)
    assert "( 0.80)" in neighbours.told("train, sample", found)
