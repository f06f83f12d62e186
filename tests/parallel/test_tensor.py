"""A model cut over tensor-parallel ranks against the same model in one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing import assert_close

from gpt.batches import IGNORE, MicroBatch
from gpt.configuration import AdapterConfig, ModelConfig, SamplingConfig
from gpt.errors import UserError
from gpt.generation import Engine, Request
from gpt.model import GPT, lora
from gpt.parallel.plan import refuse_what_cannot_be_cut, row_order
from gpt.parallel.tensor import lay_out_tensor
from gpt.training.evaluate import evaluate
from gpt.training.objective import summed_loss, token_losses
from tests.parallel.processes import run_ranks
from tests.tiny import ARCHITECTURES, CPU, random_tokens, tiny_config, tiny_gpt

# Multi-query attention has one head of keys, which cannot be cut.
CASES = {name: {**changes, **({"n_kv_head": 2} if changes.get("n_kv_head") == 1 else {})}
         for name, changes in ARCHITECTURES.items()}
# Sums over at most 64 products of order 1, in another order, through two layers and back.
ROUNDING = {"rtol": 1e-4, "atol": 2e-5}


def batch_of(T: int = 12) -> MicroBatch:
    """Two rows of two documents each; some targets are not supervised."""
    targets = random_tokens(2, T, seed=1)
    targets[:, ::5] = IGNORE
    segments = torch.zeros(2, T, dtype=torch.int64)
    segments[0, 4:], segments[1, 9:] = 1, 1
    return MicroBatch(random_tokens(2, T), targets, int((targets != IGNORE).sum()), segments)


def tensor_mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tensor",))


def whole(name: str, tensor: Any, config: ModelConfig, ranks: int) -> Tensor:
    """A DTensor's numbers in the order of one process."""
    tensor = tensor.full_tensor()
    order = row_order(name, config, ranks)
    return tensor if order is None else tensor[order.argsort()]


def one_step(model: GPT, batch: MicroBatch) -> Tensor:
    loss = summed_loss(model, batch) / batch.supervised_tokens
    loss.backward()
    return loss.detach()


def gradients(model: GPT, ranks: int = 1) -> dict[str, Tensor]:
    return {name: p.grad if ranks == 1 else whole(name, p.grad, model.config, ranks)
            for name, p in model.named_parameters() if p.requires_grad}


# ----- Loss and gradients


def loss_and_gradients(changes: dict[str, Any]) -> Any:
    model = tiny_gpt(**changes).train()
    lay_out_tensor(model, tensor_mesh())
    loss = one_step(model, batch_of())
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    return loss, norm.full_tensor(), gradients(model, dist.get_world_size())


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_loss_and_gradients_are_those_of_one_process(changes):
    model = tiny_gpt(**changes).train()
    loss = one_step(model, batch_of())
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    for found_loss, found_norm, found in run_ranks(2, loss_and_gradients, changes):
        assert_close(found_loss, loss, rtol=1e-5, atol=0)
        assert_close(found_norm, norm, rtol=1e-4, atol=0)
        assert_close(found, gradients(model), **ROUNDING)


def test_four_ranks_and_a_vocabulary_that_they_do_not_divide():
    changes = {"n_kv_head": 4, "vocab_size": 62, "n_layer": 1}  # 16, 16, 16 and 14 tokens
    model = tiny_gpt(**changes).train()
    loss = one_step(model, batch_of())
    for found_loss, _, found in run_ranks(4, loss_and_gradients, changes):
        assert_close(found_loss, loss, rtol=1e-5, atol=0)
        assert_close(found, gradients(model), **ROUNDING)
