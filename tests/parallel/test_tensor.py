"""A model cut over tensor-parallel ranks against the same model in one process."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

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

# Multi-query attention has one head of keys, which cannot be cut, nor can norms across heads.
CASES = {name: {**changes, **({"n_kv_head": 2} if changes.get("n_kv_head") == 1 else {}),
                **({"qk_norm": True} if changes.get("qk_norm") == "across_heads" else {})}
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
    loss = summed_loss(model, batch) / batch_of().supervised_tokens
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


def recomputed_loss_and_gradients() -> Any:
    model = tiny_gpt().train()
    lay_out_tensor(model, tensor_mesh())
    model.recompute = True
    return one_step(model, batch_of()), gradients(model, dist.get_world_size())


def test_recomputed_activations_change_nothing():
    model = tiny_gpt().train()
    loss = one_step(model, batch_of())
    for found_loss, found in run_ranks(2, recomputed_loss_and_gradients):
        assert_close(found_loss, loss, rtol=1e-5, atol=0)
        assert_close(found, gradients(model), **ROUNDING)


def losses_of_tokens(changes: dict[str, Any]) -> Any:
    model, batch = tiny_gpt(**changes), batch_of()
    if dist.is_initialized():
        lay_out_tensor(model, tensor_mesh())
    losses = token_losses(model, batch)
    (losses * torch.arange(losses.numel()).view_as(losses) / losses.numel()).sum().backward()
    return losses.detach(), gradients(model, dist.get_world_size() if dist.is_initialized() else 1)


@pytest.mark.parametrize("changes", [{}, CASES["wide heads"], CASES["phi"]],
                         ids=["default", "softcap", "bias"])
def test_losses_of_tokens_and_their_gradients_are_those_of_one_process(changes):
    losses, expected = losses_of_tokens(changes)
    for found_losses, found in run_ranks(2, losses_of_tokens, changes):
        assert_close(found_losses, losses, rtol=1e-5, atol=1e-5)
        assert_close(found, expected, **ROUNDING)


def evaluated(changes: dict[str, Any]) -> Any:
    model = tiny_gpt(**changes)
    lay_out_tensor(model, tensor_mesh())
    before = evaluate(model, [batch_of()], torch.ones(61), CPU).loss
    one_step(model.train(), batch_of())  # what evaluation made can be trained with
    return before, evaluate(model, [batch_of()], torch.ones(61), CPU).loss


def test_evaluation_is_that_of_one_process_and_training_goes_on_behind_it():
    expected = evaluate(tiny_gpt(), [batch_of()], torch.ones(61), CPU).loss
    for before, after in run_ranks(2, evaluated, {}):
        assert before == after == pytest.approx(expected, rel=1e-5)


def scores_of(changes: dict[str, Any]) -> Tensor:
    model = tiny_gpt(**changes)
    if dist.is_initialized():
        lay_out_tensor(model, tensor_mesh())
    with torch.inference_mode():
        return model(random_tokens(2, 9))


@pytest.mark.parametrize("changes", [CASES["phi"], CASES["tied"]], ids=["phi", "tied"])
def test_every_rank_has_the_scores_of_one_process(changes):
    for scores in run_ranks(2, scores_of, changes):
        assert_close(scores, scores_of(changes), rtol=1e-5, atol=1e-5)


def dropped_out() -> Any:
    model = tiny_gpt(dropout=0.3).train()
    lay_out_tensor(model, tensor_mesh())
    torch.manual_seed(5)
    seen: list[Tensor] = []
    model.final_norm.register_forward_hook(lambda *all_of: seen.append(all_of[-1].detach()))
    loss = one_step(model, batch_of())
    return loss, seen[0], gradients(model, dist.get_world_size())


def test_dropout_of_the_residual_stream_is_alike_on_all_ranks():
    (loss, x, first), (other_loss, other_x, second) = run_ranks(2, dropped_out)
    assert_close((loss, x), (other_loss, other_x), rtol=0, atol=0)
    assert_close(first, second, rtol=0, atol=0)  # weights that are whole stay alike
    assert abs(loss - one_step(tiny_gpt().train(), batch_of())) > 1e-3  # it was dropped


# ----- What the layout needs


def filled_on_meta(changes: dict[str, Any]) -> Any:
    mesh, plain = tensor_mesh(), tiny_gpt(**changes)
    with torch.device("meta"):
        model = GPT(tiny_config(**changes))
    lay_out_tensor(model, mesh)
    model.to_empty(device="cpu")
    lay_out_tensor(plain, mesh)
    model.load_state_dict(plain.state_dict())
    return summed_loss(model, batch_of()).detach()


def test_a_model_on_the_meta_device_is_laid_out_and_filled_later():
    changes = CASES["gpt2"]
    expected = summed_loss(tiny_gpt(**changes), batch_of()).detach()
    for loss in run_ranks(2, filled_on_meta, changes):
        assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["attention.qkv_proj.weight", "attention.qkv_proj.bias",
                                  "feedforward.up_proj.weight"])
def test_rows_are_put_in_an_order_whose_equal_parts_are_whole_heads(name):
    config = tiny_config()  # four heads of queries, two of keys and of values, of 8 rows each
    order = row_order(f"blocks.0.{name}", config, 2)
    rows = sum(lora.adaptable_matrices(config)[name.rpartition(".")[0]].values())
    assert order is not None and sorted(order.tolist()) == list(range(rows))
    if "qkv" in name:
        assert order[:32].tolist() == [*range(16), *range(32, 40), *range(48, 56)]
    else:
        half = config.n_inner // 2
        assert order[:2 * half].tolist() == [*range(half), *range(2 * half, 3 * half)]


@pytest.mark.parametrize("name", ["blocks.0.attention.out_proj.weight", "lm_head.weight",
                                  "blocks.0.attention.qkv_proj.lora.q_proj.B",
                                  "blocks.0.attention.qkv_proj.lora.q_proj.A",
                                  "final_norm.weight"])
def test_rows_of_other_tensors_stay_in_their_order(name):
    assert row_order(name, tiny_config(), 2) is None


@pytest.mark.parametrize(("changes", "ranks", "message"), [
    ({}, 3, r"parallel.tensor=3 does not divide model.n_head \(4\)"),
    ({}, 4, r"parallel.tensor=4 does not divide model.n_kv_head \(2\)"),
    ({"n_inner": 33}, 2, r"parallel.tensor=2 does not divide model.n_inner \(33\)"),
    ({"qk_norm": "across_heads"}, 2, "model.qk_norm=across_heads .* parallel.tensor=2 spreads"),
    ({"vocab_size": 2, "n_kv_head": 4}, 4, r"a rank without a part .*model.vocab_size=2\)")])
def test_what_the_ranks_do_not_divide_is_refused_by_name(changes, ranks, message):
    with pytest.raises(UserError, match=message):
        refuse_what_cannot_be_cut(tiny_config(**changes), None, ranks)


def test_dora_is_refused():
    with pytest.raises(UserError, match=r"finetune.method=dora .* parallel.tensor=2"):
        refuse_what_cannot_be_cut(tiny_config(), AdapterConfig(method="dora"), 2)
    refuse_what_cannot_be_cut(tiny_config(), AdapterConfig(), 2)


# ----- Adapters


def adapted(base: str) -> GPT:
    model = tiny_gpt(bias=True).train()
    torch.manual_seed(1)
    lora.adapt(model, AdapterConfig(rank=2, base=base))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".B"):
                p.normal_(std=0.1)
    return model


def adapted_loss_and_gradients(base: str) -> Any:
    model = adapted(base)
    lay_out_tensor(model, tensor_mesh())
    return one_step(model, batch_of()), gradients(model, dist.get_world_size())


@pytest.mark.parametrize("base", ["full", "int8"])
def test_low_rank_updates_learn_as_in_one_process(base):
    model = adapted(base)
    loss = one_step(model, batch_of())
    for found_loss, found in run_ranks(2, adapted_loss_and_gradients, base):
        assert_close(found_loss, loss, rtol=1e-5, atol=0)
        assert_close(found, gradients(model), **ROUNDING)
        assert all(lora.is_adapter_weight(name) for name in found) and len(found) == 28


# ----- Generation


def texts(changes: dict[str, Any]) -> Any:
    model = tiny_gpt(**changes)
    if dist.is_initialized():
        lay_out_tensor(model, tensor_mesh())
    engine = Engine(model, CPU, rows=2)
    config = SamplingConfig(temperature=0, max_new_tokens=12)
    requests = [Request([1, 2, 3], config), Request([7], config),
                Request([5, 6], SamplingConfig(temperature=1.0, seed=3, max_new_tokens=12))]
    made = [(number, new.token) for number, new in engine.run(requests)]
    return made, [tuple(keys.shape) for keys in engine._cache.keys]


@pytest.mark.parametrize("changes", [{}, CASES["tied"], CASES["wide heads"]],
                         ids=["default", "tied", "wide heads"])
def test_generated_text_is_that_of_one_process_and_each_rank_caches_its_heads(changes):
    expected, shapes = texts(changes)
    for made, found_shapes in run_ranks(2, texts, changes):
        assert made == expected
        assert found_shapes == [(B, H // 2, S, D) for B, H, S, D in shapes]


def scores() -> Tensor:
    model = tiny_gpt()
    lay_out_tensor(model, tensor_mesh())
    return model(random_tokens(2, 5)).detach()


def test_every_rank_has_the_scores_of_all_tokens():
    for found in run_ranks(2, scores):
        assert_close(found, tiny_gpt()(random_tokens(2, 5)).detach(), **ROUNDING)


# ----- Together with sharded weights


def rows_of(batch: MicroBatch, row: int) -> MicroBatch:
    assert batch.segments is not None
    return MicroBatch(batch.inputs[row:row + 1], batch.targets[row:row + 1], batch.tokens // 2,
                      batch.segments[row:row + 1])


def sharded_training(changes: dict[str, Any], recompute: bool, backend: str | None) -> Any:
    """Loss and gradients of the first of three steps, and the weights behind the last."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tensor"))
    model = tiny_gpt(**changes).train()
    lay_out_tensor(model, mesh["tensor"])
    model.recompute = recompute
    for block in model.blocks:
        if backend is not None:
            block.compile(backend=backend)
        fully_shard(block, mesh=mesh["shard"])
    fully_shard(model, mesh=mesh["shard"])
    register_fsdp_forward_method(model, "hidden")
    for module in (*model.blocks, model):
        module.set_gradient_divide_factor(1.0)  # losses are divided already
        module.set_force_sum_reduction_for_comms(True)
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(3):
        loss = one_step(model, rows_of(batch_of(), mesh["shard"].get_local_rank()))
        dist.all_reduce(loss, group=mesh["shard"].get_group())
        found.append((loss, gradients(model, 2)))
        optimizer.step()
        optimizer.zero_grad()
    return *found[0], {name: whole(name, p.detach(), model.config, 2)
                       for name, p in model.named_parameters()}


def check_sharded_training(changes: dict[str, Any], recompute: bool = False,
                           backend: str | None = None) -> None:
    model = tiny_gpt(**changes).train()
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(3):
        loss = one_step(model, batch_of())
        found.append((loss, {name: g.clone() for name, g in gradients(model).items()}))
        optimizer.step()
        optimizer.zero_grad()
    (loss, expected), weights = found[0], {name: p.detach() for name, p in model.named_parameters()}
    for ours, ours_gradients, ours_weights in run_ranks(4, sharded_training, changes, recompute,
                                                        backend):
        assert_close(ours, loss, rtol=1e-5, atol=0)
        assert_close(ours_gradients, expected, **ROUNDING)
        assert_close(ours_weights, weights, **ROUNDING)


@pytest.mark.parametrize(("changes", "recompute"), [({}, False), (CASES["gpt2"], True)],
                         ids=["default", "gpt2, recomputed"])
def test_shards_of_parts_learn_what_one_process_does(changes, recompute):
    check_sharded_training(changes, recompute)


@pytest.mark.slow
def test_compiled_blocks_learn_what_one_process_does():
    check_sharded_training({"n_layer": 1}, backend="aot_eager")


# ----- What ranks tell each other


class Messages(TorchDispatchMode):
    """Counts floats that are summed or gathered, message by message."""

    def __init__(self) -> None:
        super().__init__()
        self.summed, self.gathered = Counter[int](), Counter[int]()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(op).startswith("_c10d_functional.all_reduce"):
            self.summed[args[0].numel()] += 1
        elif str(op).startswith("c10d.allgather"):
            self.gathered[args[1][0].numel()] += 1
        else:
            assert "c10d" not in str(op) or "_tensor" in str(op), op  # waits, and wraps
        return op(*args, **(kwargs or {}))


def messages(changes: dict[str, Any]) -> Any:
    model = tiny_gpt(**changes).train()
    lay_out_tensor(model, tensor_mesh())
    with Messages() as seen:
        loss = summed_loss(model, batch_of())
        forward = seen.summed.copy(), seen.gathered.copy()
        loss.backward()
    return *forward, seen.summed - forward[0], seen.gathered - forward[1]


def test_a_block_sums_its_residual_stream_twice_each_way_and_nothing_else_that_is_large():
    B, T, C, n_layer, D = 2, 12, 32, 2, 8
    for summed, gathered, summed_back, gathered_back in run_ranks(2, messages, {}):
        assert summed == {B * T * C: 1 + 2 * n_layer}      # the first: the embedding
        assert gathered == {2 * B * T: 1}                  # the loss, whose chunk is one
        assert summed_back == {B * T * C: 2 * n_layer + 1, 2 * D: n_layer}  # QK-norm's weights
        assert not gathered_back
