"""A model whose layers lie on several ranks, against the same model on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing import assert_close

from gpt.batches import IGNORE, MicroBatch
from gpt.configuration import AdapterConfig
from gpt.errors import UserError
from gpt.machine.device import Machine
from gpt.model import GPT
from gpt.model.lora import adapt
from gpt.parallel.pipeline import Pipeline, layers_of_stages, lay_out_pipeline
from gpt.parallel.pipeline_schedule import PipelineSchedule
from gpt.training.objective import summed_loss
from gpt.training.step import accumulate_gradients, clip_gradients
from tests.parallel.processes import run_ranks
from tests.tiny import ARCHITECTURES, CPU, random_tokens, tiny_gpt

# Sums of float32 in another order: numbers of about 1 from a few thousand roundings of 6e-8.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}
TIED_FOUR = {"n_layer": 4, "tie_embeddings": True}


def micro_batch(rows: int, length: int, seed: int, documents: bool = False) -> MicroBatch:
    """Random tokens, of which the first of each row is not supervised."""
    tokens = random_tokens(rows, length + 1, seed=seed)
    targets = tokens[:, 1:].clone()
    targets[:, 0] = IGNORE
    segments = torch.arange(length).expand(rows, -1) // 3 if documents else None
    return MicroBatch(tokens[:, :-1], targets, rows * length, segments)


def batch_of(count: int, documents: bool = False) -> list[MicroBatch]:
    """Micro-batches of different shapes."""
    return [micro_batch(1 + i % 2, 6 + 3 * i, seed=i, documents=documents) for i in range(count)]


def tuned_gpt(changes: dict[str, Any], lora: bool = False, recompute: bool = False,
              frozen: tuple[str, ...] = ()) -> GPT:
    """The same model on every rank, ready to learn."""
    model = tiny_gpt(**changes)
    if lora:
        adapt(model, AdapterConfig(rank=2, targets=["all"]))
        for name, weight in model.named_parameters():
            if name.endswith(".B"):
                weight.data.add_(0.1)
    for name, weight in model.named_parameters():
        weight.requires_grad_(weight.requires_grad and not name.startswith(frozen))
    model.recompute = recompute
    return model.train()


def laid_out(model: GPT) -> Pipeline:
    """A model over all ranks."""
    return lay_out_pipeline(model, init_device_mesh("cpu", (dist.get_world_size(),)))


def counted(batch: list[MicroBatch]) -> int:
    return sum(part.supervised_tokens for part in batch)


def pipelined(options: dict[str, Any], batch: list[MicroBatch], steps: int = 1,
              machine: Machine = CPU) -> tuple[float, float, dict[str, torch.Tensor]]:
    """(loss, norm, gradients of the weights that a rank holds), after so many equal steps."""
    model = tuned_gpt(**options)
    pipeline = laid_out(model)
    schedule = PipelineSchedule(pipeline, machine)
    for _ in range(steps):
        model.zero_grad()
        loss = schedule.gradients(batch, summed_loss, counted(batch))
        pipeline.sum_tied_gradients()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()
                 if weight.grad is not None}
    held = {name for name, weight in model.named_parameters()
            if weight.requires_grad and pipeline.holds(name)}
    assert held == gradients.keys()
    assert all(weight.is_meta != pipeline.holds(name) for name, weight in model.named_parameters())
    return loss.item(), pipeline.clip_gradients(0.0).item(), gradients


def assert_as_alone(stages: int, options: dict[str, Any], batch: list[MicroBatch],
                    steps: int = 1, machine: Machine = CPU) -> None:
    """Loss, norm and every gradient over so many stages are those of one process."""
    model = tuned_gpt(**options)
    loss = accumulate_gradients(model, batch, machine)
    norm = clip_gradients(model, 0.0)
    left = {name for name, weight in model.named_parameters() if weight.grad is not None}
    for found_loss, found_norm, gradients in run_ranks(stages, pipelined, options, batch, steps,
                                                       machine):
        assert_close(found_loss, loss.item(), **CLOSE)
        assert_close(found_norm, norm.item(), **CLOSE)
        for name, gradient in gradients.items():
            expected = model.get_parameter(name).grad
            assert expected is not None
            assert_close(gradient, expected, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
        left -= gradients.keys()
    assert not left  # every weight has its gradient somewhere
    assert norm > 0.1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_of_every_architecture_are_those_of_one_process(name: str):
    assert_as_alone(2, {"changes": ARCHITECTURES[name]}, batch_of(3))


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("stages", [2, 4])
def test_a_step_may_have_any_number_of_micro_batches_of_any_shapes(stages: int, count: int):
    assert_as_alone(stages, {"changes": TIED_FOUR}, batch_of(count), steps=2)


@pytest.mark.parametrize("options", [
    {"recompute": True},
    {"lora": True},
    {"lora": True, "recompute": True},
    {"frozen": ("embedding", "blocks.0", "blocks.1")},            # all of the first stage
    {"frozen": ("blocks.2", "blocks.3", "final_norm", "lm_head")},  # all of the last one
], ids=str)
def test_what_learns_where_and_what_is_recomputed_changes_no_gradient(options: dict[str, Any]):
    assert_as_alone(2, {"changes": {"n_layer": 4}, **options}, batch_of(3, documents=True))


def test_documents_are_read_apart_on_every_stage():
    apart, together = batch_of(3, documents=True), batch_of(3)
    assert_as_alone(4, {"changes": TIED_FOUR}, apart)
    model = tuned_gpt(TIED_FOUR)
    assert not torch.equal(*(accumulate_gradients(model, batch, CPU) for batch in (apart, together)))


def test_products_in_bfloat16_are_those_of_one_process():
    machine = Machine(torch.device("cpu"), torch.bfloat16)
    assert_as_alone(2, {"changes": {"tie_embeddings": True}}, batch_of(3), machine=machine)
