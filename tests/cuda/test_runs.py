"""Whole runs on the device: continued to the same bits, short of memory, planned beforehand."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpt.batches import MicroBatch
from gpt.model import GPT
from gpt.runs import checkpoint
from gpt.training.step import Step
from tests.cuda.conftest import DEVICE, ON_GPU
from tests.tiny import CPU, random_tokens, run_script, tiny_gpt
from tests.tiny_runs import finish, flat, optimizer_of, trainer_of, weights_of

DROPOUT = {"model": {"dropout": 0.2}}
AVERAGED = {"name": "muon", "ema_decay": 0.9}
IN_PORTIONS = {"micro_batch_size": 3}


def everything(trainer) -> torch.Tensor:
    """Weights, and all that the optimizer remembers of them, in a row on the processor."""
    tensors = []
    for weight in trainer.model.parameters():
        kept = trainer.optimizer.state[weight]
        tensors += [weight, *(kept[name].float() for name in sorted(kept))]
    return flat(tensors).cpu()


@pytest.mark.parametrize(("dtype", "settings"), [
    (torch.float32, DROPOUT), (torch.float32, AVERAGED), (torch.float32, IN_PORTIONS),
    (torch.bfloat16, DROPOUT), (torch.bfloat16, AVERAGED), (torch.float16, AVERAGED)], ids=str)
def test_a_run_that_is_continued_ends_in_the_bits_of_one_that_was_not(
        dtype, settings, gpu, tmp_path):
    if dtype == torch.float16 and not ON_GPU:
        pytest.skip("processors are slow in float16; tests/training/test_precision.py has it there")

    def machine():
        return replace(gpu, dtype=dtype, exact=False)

    whole = trainer_of(tmp_path / "whole", machine(), steps=6, **settings)
    lines = finish(whole)
    finish(trainer_of(tmp_path / "cut", machine(), steps=3, **settings))
    continued = trainer_of(tmp_path / "cut", machine(), steps=6, **settings)
    assert continued.state.step == 3
    later = finish(continued)
    assert torch.equal(everything(whole), everything(continued))
    assert ([line for line in lines if line["event"] == "train"]
            == [line for line in later if line["event"] == "train"])


def test_a_compiled_run_is_continued_to_the_same_bits(gpu, tmp_path, monkeypatch):
    if not ON_GPU:  # where a compiler of kernels would take half a minute
        monkeypatch.setattr(GPT, "compile", functools.partialmethod(GPT.compile,
                                                                    backend="aot_eager"))

    def machine():
        return replace(gpu, dtype=torch.bfloat16, exact=False, compile=True)

    model = {"model": {"n_embd": 64, "vocab_size": 257}}
    whole = trainer_of(tmp_path / "whole", machine(), steps=6, **model)
    finish(whole)
    finish(trainer_of(tmp_path / "cut", machine(), steps=3, **model))
    torch.compiler.reset()  # as a process that begins anew
    continued = trainer_of(tmp_path / "cut", machine(), steps=6, **model)
    finish(continued)
    assert whole.model.is_compiled and continued.state.step == 6
    assert torch.equal(everything(whole), everything(continued))


def test_a_checkpoint_of_the_device_is_read_by_the_processor_and_back(gpu, tmp_path):
    trained = trainer_of(tmp_path / "run", gpu, steps=3)
    finish(trained)
    newest = checkpoint.newest_sound(tmp_path / "run/checkpoints")
    for machine in (CPU, gpu):
        model = tiny_gpt(zero_outputs=True, n_layer=1, vocab_size=257).to(machine.device)
        optimizer = optimizer_of(model)
        state = checkpoint.load_training(newest, model, optimizer)
        assert state.step == 3 and next(model.parameters()).device == machine.device
        assert torch.equal(weights_of(model).cpu(), weights_of(trained.model).cpu())
        kept = [tensor for each in optimizer.state.values() for tensor in each.values()]
        assert {tensor.device for tensor in kept if tensor.dim()} == {machine.device}


def test_what_is_fetched_is_what_was_there(gpu):
    loss, norm = torch.tensor([1.5, 2.0], device=DEVICE)
    values = gpu.fetch(loss, norm)
    loss.fill_(7)
    assert values() == [1.5, 2.0]


def gradient_of_a_large_step(machine, said: list[str], room: int | None) -> torch.Tensor:
    """room: bytes that the process may have besides the model; None: all that there are."""
    model = tiny_gpt(n_layer=4, n_embd=256, n_head=4, block_size=512).train().to(DEVICE)
    tokens = random_tokens(64, 512)
    step = Step(model, optimizer_of(model), machine, 0.0, say=said.append)
    torch.cuda.empty_cache()
    if room is not None:
        total = torch.cuda.get_device_properties(DEVICE).total_memory
        torch.cuda.set_per_process_memory_fraction(
            (torch.cuda.memory_reserved(DEVICE) + room) / total)
    torch.cuda.reset_peak_memory_stats(DEVICE)
    try:
        step.gradients([MicroBatch(tokens, tokens, tokens.numel())], lambda: None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return flat([weight.grad for weight in model.parameters()]).cpu()


def test_a_step_that_does_not_fit_is_taken_in_smaller_portions(gpu):
    """With memory that really ends: the process may have a third of what the step takes."""
    if not ON_GPU:
        pytest.skip("a processor has no memory to run out of; tests/training/test_step.py pretends")
    said: list[str] = []
    before = torch.cuda.memory_allocated(DEVICE)
    whole = gradient_of_a_large_step(gpu, said, None)
    taken = torch.cuda.max_memory_allocated(DEVICE) - before
    assert said == []
    in_portions = gradient_of_a_large_step(gpu, said, taken // 3)
    assert said and all(line.startswith("out of memory: micro-batches of") for line in said)
    # The same sums over 32,768 tokens, in other portions.
    assert float((in_portions - whole).norm() / whole.norm()) < 1e-5


def test_a_dry_run_foretells_the_memory_of_the_run(tmp_path):
    if not ON_GPU:
        pytest.skip("on processors benchmarks/dry_run.py measures it, in minutes")
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 4000)
    shape = ["model.n_layer=6", "model.n_embd=512", "model.n_head=8", "model.block_size=512",
             "train.batch_size=32", "train.steps=12"]
    made = run_script("data/prepare.py", "text.txt", "tokenizer=byte", "out=text", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    command = ["train.py", "data.dataset=text", "run.name=run", f"run.device={DEVICE.type}",
               "run.compile=false", "eval.max_tokens=10_000", *shape]
    planned = run_script(*command, "--dry-run", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    foretold = int(re.search(r"peak memory +([\d,]+) MiB", planned.stdout)[1].replace(",", ""))
    trained = run_script(*command, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    reached = max(line.get("peak_memory_bytes", 0) for line in events(tmp_path / "runs/run"))
    assert foretold == pytest.approx(reached / 2**20, rel=0.10)


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
