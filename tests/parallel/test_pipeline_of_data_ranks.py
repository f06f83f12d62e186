"""Pipelines side by side, whose ranks of a stage share its weights or have them alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from gpt.batches import MicroBatch
from gpt.model import GPT
from gpt.parallel.pipeline import Pipeline, lay_out_pipeline
from gpt.parallel.pipeline_schedule import PipelineSchedule
from gpt.training.objective import summed_loss
from gpt.training.step import accumulate_gradients, clip_gradients
from tests.parallel.processes import run_ranks
from tests.parallel.test_pipeline import CLOSE, batch_of, counted, tuned_gpt
from tests.tiny import CPU


def sharded(model: GPT, pipeline: Pipeline, mesh: DeviceMesh) -> None:
    """Share out what a stage holds among its data ranks."""
    elsewhere = {weight for weight in model.parameters() if weight.is_meta}
    modules = [*(block for i, block in enumerate(model.blocks)
                 if pipeline.owns(f"blocks.{i}.")), model]
    for module in modules:
        fully_shard(module, mesh=mesh, ignored_params=elsewhere)
        module.set_gradient_divide_factor(1.0)  # type: ignore[attr-defined]
        module.set_force_sum_reduction_for_comms(True)  # type: ignore[attr-defined]
    register_fsdp_forward_method(model, "hidden")


def trained(options: dict[str, Any], batch: list[MicroBatch], share: bool
            ) -> tuple[float, float, float, dict[str, torch.Tensor]]:
    """(loss, norm, loss in evaluation, gradients) on each of 2 × 2 ranks."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pipeline", "data"))
    data = mesh["data"]
    model = tuned_gpt(**options)
    pipeline = lay_out_pipeline(model, mesh["pipeline"])
    if share:
        sharded(model, pipeline, data)
    part = batch[data.get_local_rank()::2]
    loss = PipelineSchedule(pipeline, CPU).gradients(part, summed_loss, counted(batch))
    dist.all_reduce(loss, group=data.get_group())
    gradients = {name: weight.grad for name, weight in model.named_parameters()
                 if weight.grad is not None}
    if not share:
        for gradient in gradients.values():
            dist.all_reduce(gradient, group=data.get_group())
    pipeline.sum_tied_gradients()
    norm = pipeline.clip_gradients(0.0)
    assert all(isinstance(gradient, DTensor) == share for gradient in gradients.values())
    model.eval()
    with pipeline.whole_head(), torch.inference_mode():
        again = summed_loss(model, batch[0])
    return loss.item(), norm.item(), again.item(), {
        name: gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        for name, gradient in gradients.items()}


@pytest.mark.parametrize("share", [False, True], ids=["replicated", "sharded"])
@pytest.mark.parametrize("options, micro_batches", [
    ({"changes": {"tie_embeddings": True}}, 6),
    ({"changes": {"n_layer": 3}, "recompute": True}, 2),  # one for a pipeline of two stages
    ({"changes": {}, "lora": True}, 6),
], ids=str)
def test_data_ranks_of_pipelines_have_the_gradients_of_one_process(
        options: dict[str, Any], micro_batches: int, share: bool):
    batch = batch_of(micro_batches)
    model = tuned_gpt(**options)
    loss, norm = accumulate_gradients(model, batch, CPU), clip_gradients(model, 0.0)
    again = summed_loss(model.eval(), batch[0])
    left = {name for name, weight in model.named_parameters() if weight.requires_grad}
    for found_loss, found_norm, found_again, gradients in run_ranks(4, trained, options, batch,
                                                                    share):
        assert_close([found_loss, found_norm, found_again],
                     [loss.item(), norm.item(), again.item()], **CLOSE)
        for name, gradient in gradients.items():
            assert_close(gradient, model.get_parameter(name).grad, **CLOSE)
        left -= gradients.keys()
    assert not left
