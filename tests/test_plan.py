"""What a run will cost, before it costs anything."""

from __future__ import annotations

import pytest
import torch

from gpt.batches import MicroBatch
from gpt.evaluate import summed_loss
from gpt.plan import memory_by_kind, memory_line
from tests.tiny import random_tokens, tiny_gpt


def test_memory_of_weights_gradients_and_optimizer_is_what_they_hold():
    model = tiny_gpt(tie_embeddings=True)
    optimizer = torch.optim.AdamW(model.parameters())
    model(random_tokens(2, 8)).sum().backward()
    optimizer.step()
    kinds = memory_by_kind(model, 2)
    assert kinds["weights"] == sum(p.nbytes for p in model.parameters())
    assert kinds["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    assert kinds["optimizer"] == sum(state[key].nbytes for state in optimizer.state.values()
                                     for key in ("exp_avg", "exp_avg_sq"))


def kept_for_backward(recompute: bool, **changes: object) -> int:
    """Bytes of the tensors that a forward pass over three rows keeps, weights aside."""
    model = tiny_gpt(n_embd=64, vocab_size=500, **changes).train()
    model.recompute = recompute
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = random_tokens(3, 32, vocab_size=500)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        summed_loss(model, MicroBatch(tokens, tokens, tokens.numel()))
    return sum(kept.values())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("changes", [{}, {"mlp": "gelu", "norm": "layernorm"}, {"n_layer": 4}],
                         ids=str)
def test_memory_of_activations_is_an_upper_bound_that_is_not_far_off(changes, recompute):
    model = tiny_gpt(n_embd=64, vocab_size=500, **changes)
    needed = kept_for_backward(recompute, **changes)
    if recompute:  # and, in the backward pass, all of one layer at a time
        deeper = changes | {"n_layer": model.config.n_layer + 1}
        needed += kept_for_backward(False, **deeper) - kept_for_backward(False, **changes)
    assert needed <= memory_by_kind(model, 3, recompute)["activations"] <= 2 * needed


def test_memory_grows_with_the_micro_batch_where_it_should():
    model = tiny_gpt()
    one, four = memory_by_kind(model, 1), memory_by_kind(model, 4)
    assert four["activations"] == 4 * one["activations"]
    assert four["logits"] - one["logits"] == 3 * 2 * 4 * 61 * 32
    assert one["logits"] == 2 * 4 * 61 * 32 + model.output_weight.nbytes  # whose gradient waits
    assert four["optimizer"] == one["optimizer"] == 2 * one["weights"]


def test_the_line_for_people_names_every_kind_and_the_sum():
    model = tiny_gpt()
    line, kinds = memory_line(model, 2), memory_by_kind(model, 2)
    for name, size in kinds.items():
        assert f"{name} {size / 2**20:,.1f}" in line
    assert line.endswith(f"; {sum(kinds.values()) / 2**20:,.1f} in all")
