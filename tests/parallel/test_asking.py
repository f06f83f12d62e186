"""A model that lies on several processes writes the same text, and scores the same, as on one."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from gpt.errors import UserError
from gpt.machine.device import Machine
from gpt.machine.ranks import Ranks
from gpt.parallel import Sizes, layout_of_weights
from gpt.runs import checkpoint
from gpt.tokenizer import build_tokenizer
from tests.parallel.processes import launch, run_ranks
from tests.tiny import tiny_config, tiny_gpt

EXACT = ("--device", "cpu", "--dtype", "float32")
WAYS = ["auto", "replicate", "shard", "tensor"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("asking") / "model"
    checkpoint.save_model(folder, tiny_gpt(vocab_size=257, n_kv_head=2), build_tokenizer("byte"),
                          imported_from="here")
    (folder.parent / "text.txt").write_text("the cat sat on the mat, and the dog ran. " * 40)
    (folder.parent / "task.jsonl").write_text("".join(
        json.dumps({"prompt": f"{i}", "completion": "ab"[: i % 2 + 1]}) + "\n" for i in range(9)))
    return folder


def ask(module: str, arguments: list[str], stdin: str = "") -> str:
    """What a command prints, on this rank."""
    given, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin.encode()))
    try:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            importlib.import_module(module).main(arguments)
    finally:
        sys.stdin = given
    return said.getvalue()


def on(ranks: int, module: str, arguments: list[object], stdin: str = "") -> list[str]:
    """What it prints on each of so many ranks; all of them print, in a test."""
    return run_ranks(ranks, ask, module, [str(each) for each in arguments], stdin, join=False)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("settings", [
    ["--prompt", "the c", "--seed", "3", "--num-samples", "3", "--max-new-tokens", "12"],
    ["--temperature", "0", "--max-new-tokens", "16", "--json", "--draft", "prompt"],
    ["--beams", "3", "--max-new-tokens", "6"]], ids=["drawn", "likeliest", "beams"])
def test_every_rank_writes_the_text_of_one_process(model, way, settings):
    [alone] = on(1, "sample", [model, *settings, *EXACT], "the dog")
    found = on(2, "sample", [model, *settings, *EXACT, "--parallel", way], "the dog")
    assert [without_figures(text) for text in found] == [without_figures(alone)] * 2
    assert len(alone) > 13  # the prompt, and six tokens at least


def without_figures(text: str) -> str:
    """Seconds are never the same, and log-probabilities are so to rounding."""
    return re.sub(r'"(seconds|first_token_seconds)": [0-9.e-]+', "",
                  re.sub(r'"logprobs": \[[^]]*\]', "", text))


def test_without_a_seed_all_ranks_draw_alike_and_each_time_anew(model):
    texts = [on(2, "sample", [model, "--prompt", "a", "--max-new-tokens", "24", *EXACT])
             for _ in range(2)]
    assert all(first == second for first, second in texts)
    assert texts[0] != texts[1]


def test_a_conversation_is_read_by_rank_0_and_answered_by_all(model):
    talk = [model, "--chat", "--seed", "1", "--max-new-tokens", "5", *EXACT]
    [alone] = on(1, "sample", talk, "hi\n\n/undo\nyou\n")
    assert on(2, "sample", [*talk, "--parallel", "shard"], "hi\n\n/undo\nyou\n") == [alone] * 2
    assert alone.count("\n") >= 2


def test_rank_0_alone_prints(model):
    done = launch(2, "sample.py", model, "--max-new-tokens", "4", *EXACT, cwd=model.parent,
                  stdin="the dog ")
    assert [each.returncode for each in done] == [0, 0], done[0].stderr
    assert done[0].stdout.startswith("the dog ") and "per second" in done[0].stderr
    assert done[1].stdout == done[1].stderr == ""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("source", ["--text", "--data"])
def test_evaluations_find_what_one_process_finds(model, way, source):
    file = model.parent / {"--text": "text.txt", "--data": "task.jsonl"}[source]
    arguments = ["evaluate", model, source, file]
    [alone] = on(1, "gpt.__main__", arguments)
    for found in on(2, "gpt.__main__", [*arguments, "--parallel", way]):
        ours, theirs = (re.findall(r"[0-9]+\.[0-9]+", text) for text in (found, alone))
        assert [float(n) for n in ours] == pytest.approx([float(n) for n in theirs], abs=2e-4)
        assert re.sub(r"[0-9]+\.[0-9]+", "", found) == re.sub(r"[0-9]+\.[0-9]+", "", alone)
    assert "nats per token" in alone


def chosen(way: str, heads: int, copies: bool, memory: int) -> Sizes | str:
    from gpt.parallel import weights
    weights.memory_bytes = lambda device: memory
    machine = Machine(torch.device("cpu"), torch.float32, ranks=Ranks(dist.group.WORLD))
    config = tiny_config(n_head=6, n_embd=48, n_kv_head=heads)
    try:
        sizes = layout_of_weights(way, config, machine, copies).sizes
    except UserError as error:
        return str(error)
    machine.ranks.all(None)  # rank 0 keeps the store at which groups meet, and must not leave first
    return sizes


@pytest.mark.parametrize(("way", "heads", "copies", "memory", "sizes"), [
    ("auto", 2, False, 10**9, Sizes(tensor=2)), ("auto", 3, False, 10**9, Sizes(shard=2)),
    ("auto", 2, True, 10**9, Sizes(replicate=2)), ("auto", 2, True, 10**4, Sizes(tensor=2)),
    ("auto", 3, True, 10**4, Sizes(shard=2)), ("shard", 2, True, 10**9, Sizes(shard=2)),
    ("replicate", 3, False, 10**4, Sizes(replicate=2)),
    ("tensor", 3, False, 10**9, "--parallel tensor: 3 key/value heads cannot be shared out to 2 "
                                "processes; start as many as divide them, or give shard")])
def test_a_way_that_suits_is_chosen_and_one_that_cannot_be_gone_is_refused(
        way, heads, copies, memory, sizes):
    assert run_ranks(2, chosen, way, heads, copies, memory) == [sizes] * 2
