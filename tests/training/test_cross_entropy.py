"""The chunked loss against torch's own, whatever the size of the chunks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from gpt.batches import IGNORE, MicroBatch
from gpt.training import cross_entropy
from gpt.training.cross_entropy import (
    fusible_loss_and_slope,
    loss_and_slope,
    rows_at_a_time,
    summed_cross_entropy,
)
from gpt.training.objective import summed_loss
from tests.tiny import ARCHITECTURES, random_tokens, tiny_gpt

N, C, V = 37, 16, 61


def given(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, C, generator=generator)
    weight = torch.randn(V, C, generator=generator)
    targets = torch.randint(V, (N,), generator=generator)
    targets[::5] = IGNORE
    return x.requires_grad_(), weight.requires_grad_(), targets


def plain(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor,
          softcap: float | None, bias: torch.Tensor | None = None) -> torch.Tensor:
    scores = F.linear(x, weight, bias)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return F.cross_entropy(scores.float(), targets, ignore_index=IGNORE, reduction="sum")


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("rows", [1, 5, 36, 37, 1000])
def test_loss_and_gradients_are_those_of_plain_cross_entropy(rows, softcap, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_FLOATS", rows * V + 3)
    x, weight, targets = given()
    loss = summed_cross_entropy(x, weight, targets, softcap)
    found = torch.autograd.grad(loss / 7, (x, weight))
    expected_loss = plain(x, weight, targets, softcap)
    expected = torch.autograd.grad(expected_loss / 7, (x, weight))
    assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # sums of 61 or 37 products of order 1
        assert theirs.abs().max() > 0.1


@pytest.mark.parametrize("rows", [5, 1000])
@pytest.mark.parametrize("learning", ["x", "weight", "bias", "all"])
def test_a_bias_counts_and_learns_alone_or_with_the_others(learning, rows, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_FLOATS", rows * V)
    x, weight, targets = given()
    tensors = {"x": x, "weight": weight, "bias": torch.linspace(-2, 2, V).requires_grad_()}
    learn = [*tensors] if learning == "all" else [learning]
    for name, tensor in tensors.items():
        tensor.requires_grad_(name in learn)
    losses = [summed_cross_entropy(x, weight, targets, 3.0, tensors["bias"]),
              plain(x, weight, targets, 3.0, tensors["bias"])]
    assert_close(*losses, rtol=1e-6, atol=0)
    assert abs(losses[0] - plain(x, weight, targets, 3.0)) > 1
    found, expected = (torch.autograd.grad(loss, [tensors[name] for name in learn])
                       for loss in losses)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = summed_cross_entropy(x, weight, targets, 3.0, tensors["bias"])
    for ours, theirs in zip(torch.autograd.grad(rounded, [tensors[name] for name in learn]),
                            expected, strict=True):
        assert ours.dtype == torch.float32
        assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_chunks_of_several_rows_never_hold_more_floats_than_they_may(monkeypatch):
    seen = []
    real = cross_entropy.loss_and_slope
    monkeypatch.setattr(cross_entropy, "CHUNK_FLOATS", 10 * V)
    monkeypatch.setattr(cross_entropy, "loss_and_slope",
                        lambda scores, *rest: seen.append(scores.numel()) or real(scores, *rest))
    summed_cross_entropy(*given())
    assert seen == [10 * V, 10 * V, 10 * V, 7 * V]


def test_chunks_on_cuda_are_large_and_a_power_of_two():
    cuda = torch.device("cuda")
    assert rows_at_a_time(50_304, cuda) == 2048  # 2.06e8 bytes in bfloat16
    assert rows_at_a_time(65_536, cuda) == 2048 and rows_at_a_time(65_537, cuda) == 1024
    assert rows_at_a_time(1 << 28, cuda) == 1


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_what_a_compiler_fuses_is_the_same_loss_and_slope(softcap, learns):
    x, weight, targets = given()
    scores = F.linear(x, weight).detach()
    loss, slope = fusible_loss_and_slope(scores.clone(), targets, softcap, learns)
    expected_loss, expected = loss_and_slope(scores.clone(), targets, softcap, learns)
    assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    if learns:
        assert_close(slope, expected, rtol=1e-5, atol=1e-6)
        assert slope.abs().max() > 0.1 and not slope[targets == IGNORE].any()


def test_a_fused_loss_goes_through_the_compiler(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda judge: compiled.append(judge) or judge)
    cross_entropy._compiled.cache_clear()
    x, weight, targets = given()
    loss = summed_cross_entropy(x, weight, targets, fused=True)
    cross_entropy._compiled.cache_clear()
    assert compiled == [fusible_loss_and_slope]
    found = torch.autograd.grad(loss, (x, weight))
    expected = torch.autograd.grad(plain(x, weight, targets, None), (x, weight))
    assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_rows_without_a_target_add_nothing_and_move_nothing():
    x, weight, targets = given()
    summed_cross_entropy(x, weight, targets).backward()
    assert (x.grad[targets == IGNORE] == 0).all() and (x.grad[targets != IGNORE] != 0).any()
    none = summed_cross_entropy(x, weight, torch.full_like(targets, IGNORE))
    assert none == 0 and not torch.autograd.grad(none, weight)[0].any()


def test_under_autocast_products_are_in_its_format_and_gradients_in_float32():
    x, weight, targets = given()
    with torch.autocast("cpu", torch.bfloat16):
        loss = summed_cross_entropy(x, weight, targets)
        expected = plain(x, weight, targets, None)
    assert loss.dtype == torch.float32
    assert_close(loss, expected, rtol=1e-5, atol=0)
    assert not torch.equal(loss, plain(x, weight, targets, None))
    loss.backward()
    exact = torch.autograd.grad(plain(x, weight, targets, None), (x, weight))
    assert_close(weight.grad, exact[1], rtol=0.05, atol=0.05)  # bfloat16 has 8 digits
    assert weight.grad.dtype == torch.float32


def test_under_autocast_chunks_are_added_up_in_float32(monkeypatch):
    x, weight, targets = given()
    exact = torch.autograd.grad(plain(x, weight, targets, None), weight)[0]
    errors = []
    for rows in (1000, 1):  # one chunk, and one for each row
        monkeypatch.setattr(cross_entropy, "CHUNK_FLOATS", rows * V)
        with torch.autocast("cpu", torch.bfloat16):
            loss = summed_cross_entropy(x, weight, targets)
        errors.append((torch.autograd.grad(loss, weight)[0] - exact).abs().mean().item())
    assert errors[1] < 1.2 * errors[0]


def test_without_gradients_nothing_is_kept_for_them():
    x, weight, targets = given()
    with torch.no_grad():
        loss = summed_cross_entropy(x, weight, targets)
    assert not loss.requires_grad
    assert_close(loss, plain(x, weight, targets, None).detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_models_loss_has_the_gradients_of_its_logits(changes):
    tokens, targets = random_tokens(2, 9), random_tokens(2, 9, seed=1)
    gradients = []
    for loss_of in (lambda model: summed_loss(model, MicroBatch(tokens, targets, 18)),
                    lambda model: F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(),
                                                  reduction="sum")):
        model = tiny_gpt(**changes)
        loss_of(model).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)  # of up to about 10


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.2}, {"window": 3}], ids=str)
def test_recomputed_activations_give_the_same_bits(changes):
    tokens = random_tokens(2, 9)
    gradients = []
    for recompute in (False, True):
        model = tiny_gpt(**changes).train()
        model.recompute = recompute
        torch.manual_seed(5)
        summed_loss(model, MicroBatch(tokens, tokens, 18)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_recomputing_keeps_less():
    def kept(recompute: bool) -> int:
        model, tokens = tiny_gpt(n_layer=4).train(), random_tokens(2, 32)
        model.recompute = recompute
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            summed_loss(model, MicroBatch(tokens, tokens, 64))
        return sum(sizes.values())

    assert kept(True) < kept(False) / 2
