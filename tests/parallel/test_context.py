"""Rows spread over ranks: the loss and the gradients of one process, with a part of its memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from gpt.batches import IGNORE, MicroBatch
from gpt.configuration import AdapterConfig, PreferenceConfig, SamplingConfig
from gpt.errors import UserError
from gpt.finetuning.preferences import PairBatch, answer_scores, preference_loss
from gpt.model import GPT, KVCache, blockwise, lora, rope
from gpt.parallel import context
from gpt.parallel.context import lay_out_context, share_of_context, sum_over_context
from gpt.training.evaluate import evaluate
from gpt.training.objective import summed_loss
from tests.parallel.processes import run_ranks
from tests.tiny import ARCHITECTURES, CPU, generate_tokens, random_tokens, tiny_gpt

T = 30  # which the ranks do not divide: rows are padded to 32
SEGMENTS = torch.tensor([[0] * 7 + [1] * 9 + [2] * 14, [0] * T, [0, 1, 2, 3] + [4] * 26])
PROMPTS = torch.zeros(3, T, dtype=torch.bool)
PROMPTS[0, :4] = PROMPTS[1, :20] = PROMPTS[2, 4:12] = True
KINDS = {"one text": (None, None), "documents": (SEGMENTS, None), "prompts": (None, PROMPTS),
         "documents with prompts": (SEGMENTS, PROMPTS)}
# Sums of some hundred float32 roundings, 2^-23 each, relative to a gradient's largest entry.
ROUNDING = 2e-5


def batch_of(kind: str = "one text", length: int = T, rows: int = 3) -> MicroBatch:
    """Some targets do not count."""
    tokens, (segments, prompts) = random_tokens(rows, length + 1), KINDS[kind]
    targets = tokens[:, 1:].clone()
    targets[:, 3:5] = targets[0, 20:] = IGNORE
    return MicroBatch(tokens[:, :-1].contiguous(), targets, rows * length, segments, prompts)


def context_mesh() -> DeviceMesh:
    """All ranks."""
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("context",))


def added(x: Tensor) -> Tensor:
    """Over all ranks."""
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def learned(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of each weight that has one."""
    return {name: weight.grad.clone() for name, weight in model.named_parameters()
            if weight.grad is not None}


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of gradients, relative to the largest entry of each."""
    assert found.keys() == expected.keys() and expected
    return max(float((found[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-30))
               for name, gradient in expected.items())


def difference(model: GPT, batch: MicroBatch, mesh: DeviceMesh, **compiling: Any) -> float:
    """Of the ranks' loss and gradients from one process's; lays the model out."""
    alone = summed_loss(model, batch)
    alone.backward()
    expected = learned(model)
    model.zero_grad()
    lay_out_context(model, mesh)
    if compiling:
        model.compile(**compiling)
    part = summed_loss(model, share_of_context(batch, mesh))
    part.backward()
    of_loss = float((added(part) - alone).abs() / alone)
    return max(of_loss, furthest({name: added(each) for name, each in learned(model).items()},
                                 expected))


def every_kind(name: str, recompute: bool = False, adapted: bool = False) -> list[float]:
    """The difference for each kind of rows."""
    found = []
    for kind in KINDS:
        model = tiny_gpt(**ARCHITECTURES[name])
        if name == "olmo":  # its norms' gradients are a thousandth of what cancels out in them
            model.double()
        if adapted:
            lora.adapt(model, AdapterConfig(rank=2, dropout=0.0))
            for weight in lora.adapter_state(model).values():
                weight.normal_(std=0.2)
        model.train().recompute = recompute
        found.append(difference(model, batch_of(kind), context_mesh()))
    return found


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ranks_together_have_the_loss_and_the_gradients_of_one_process(name, ranks):
    assert max(max(found) for found in run_ranks(ranks, every_kind, name)) < ROUNDING


@pytest.mark.parametrize(("recompute", "adapted"), [(True, False), (False, True), (True, True)])
def test_so_do_ranks_that_recompute_activations_and_that_learn_adapters(recompute, adapted):
    assert max(map(max, run_ranks(2, every_kind, "windows", recompute, adapted))) < ROUNDING


def in_float64(n_kv_head: int) -> float:
    """The difference where kernels know groups of heads."""
    model = tiny_gpt(n_kv_head=n_kv_head).double().train()
    return difference(model, batch_of(), context_mesh())


@pytest.mark.parametrize("n_kv_head", [1, 4])
def test_in_float64_nothing_differs_but_its_rounding(n_kv_head):
    # The loss is summed in float32; what remains of the difference is its rounding.
    assert max(run_ranks(2, in_float64, n_kv_head)) < 2**-22


def with_a_short_table() -> float:
    """The difference where rotations are computed only as far as a row reaches."""
    kept, rope.AT_LEAST = rope.AT_LEAST, 4
    try:
        return difference(tiny_gpt().train(), batch_of(), context_mesh())
    finally:
        rope.AT_LEAST = kept


def test_positions_of_whole_rows_have_their_rotations():
    assert max(run_ranks(2, with_a_short_table)) < ROUNDING


def without_gathering() -> float:
    """The difference if each rank knew its own keys and values alone."""
    kept, context.gathered = context.gathered, lambda part, mesh: torch.cat([part] * 2, dim=-2)
    try:
        return difference(tiny_gpt().train(), batch_of(), context_mesh())
    finally:
        context.gathered = kept


def test_ranks_that_do_not_gather_keys_and_values_would_be_seen():
    assert min(run_ranks(2, without_gathering)) > 1e-2


def compiled(kind: str, recompute: bool, by_blocks: bool) -> float:
    """The difference of a compiled step: traced and differentiated, with a processor's kernels."""
    from torch.nn.attention import flex_attention
    kept = flex_attention._validate_device, blockwise.reads_blockwise
    flex_attention._validate_device = lambda *tensors: None
    blockwise.reads_blockwise = lambda *where: by_blocks
    try:
        model = tiny_gpt(window=5, window_pattern="SF").train()
        model.recompute = recompute
        return difference(model, batch_of(kind), context_mesh(), backend="aot_eager",
                          fullgraph=True)
    finally:
        flex_attention._validate_device, blockwise.reads_blockwise = kept
        torch._dynamo.reset()


@pytest.mark.parallel
@pytest.mark.parametrize(("kind", "recompute", "by_blocks"), [
    ("one text", False, False), ("documents", True, False), ("one text", False, True),
    ("documents with prompts", True, True)])
def test_a_compiled_step_has_them_too(kind, recompute, by_blocks):
    assert max(run_ranks(2, compiled, kind, recompute, by_blocks)) < ROUNDING


def compiled_blocks(recompute: bool) -> float:
    """The difference with each block compiled by itself."""
    model = tiny_gpt().train()
    model.recompute = recompute
    for block in model.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    try:
        return difference(model, batch_of(), context_mesh())
    finally:
        torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_and_so_have_compiled_blocks(recompute):
    assert max(run_ranks(2, compiled_blocks, recompute)) < ROUNDING


def evaluated(name: str) -> tuple[float, float, int, int]:
    """Loss of one process, of the ranks together, and the targets that each counted."""
    model, mesh, batch = tiny_gpt(**ARCHITECTURES[name]), context_mesh(), batch_of("documents")
    alone = evaluate(model, [batch], torch.ones(61), CPU)
    lay_out_context(model, mesh)
    score = evaluate(model, [share_of_context(batch, mesh)], torch.ones(61), CPU)
    tokens = int(added(torch.tensor(score.tokens)))
    return (alone.loss, float(added(torch.tensor(score.loss * score.tokens))) / tokens,
            alone.tokens, tokens)


def test_evaluation_reads_as_training_does():
    for alone, together, counted, counted_together in run_ranks(2, evaluated, "llama"):
        assert together == pytest.approx(alone, rel=1e-6) and counted_together == counted


def continued() -> bool:
    """Whether a model that is laid out reads and writes with a cache as before, to the last bit."""
    model, tokens = tiny_gpt(window=5, window_pattern="SF"), random_tokens(2, 9)
    config = SamplingConfig(temperature=0, max_new_tokens=6)

    def read_and_written() -> tuple[Tensor, list[int]]:
        cache = KVCache(model.config, 2, 16, torch.device("cpu"), torch.float32)
        written = [new.token for new in generate_tokens(model, [3, 1, 4], config)]
        with torch.no_grad():
            return torch.cat((model(tokens, cache), model(tokens[:, :3], cache)), dim=1), written

    before, text = read_and_written()
    lay_out_context(model, context_mesh())
    after, same_text = read_and_written()
    return torch.equal(before, after) and text == same_text and len(text) == 6


def test_every_rank_generates_the_whole_text():
    assert all(run_ranks(2, continued))


def kept_for_backward(model: GPT, batch: MicroBatch) -> int:
    """Bytes of all that the layers keep, besides weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.hidden(batch.inputs)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in found.items()
               if place not in weights)


def memory(length: int) -> tuple[int, int]:
    """What one process keeps, and what this rank keeps."""
    model, mesh = tiny_gpt(block_size=length, n_kv_head=4).double().train(), context_mesh()
    batch = batch_of(length=length, rows=1)
    alone = kept_for_backward(model, batch)
    lay_out_context(model, mesh)
    return alone, kept_for_backward(model, share_of_context(batch, mesh))


def test_a_rank_keeps_its_share_of_the_activations_and_all_keys_and_values():
    length, ranks, layers, width = 256, 4, 2, 32
    # In each layer keys and values, float64: in float32 heads would be repeated. On a processor
    # also masks of two stretches of queries, whose keys are a row and a stretch more, and what the
    # stretches read, before it is put together.
    more = layers * 8 * (2 * length * width + length // (2 * ranks) * (length + length // 8)
                         + length // ranks * width)
    for alone, part in run_ranks(ranks, memory, length):
        assert part - more < 1.01 * alone / ranks


class Traffic(TorchDispatchMode):
    """Bytes that reach this rank by all_gather, and that leave it by reduce_scatter."""

    def __init__(self, ranks: int):
        super().__init__()
        self.gathered = self.scattered = 0
        self._ranks = ranks

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        if "all_gather_into_tensor" in str(function):
            self.gathered += args[0].nbytes * (self._ranks - 1)
        elif "reduce_scatter_tensor" in str(function):
            self.scattered += args[0].nbytes // self._ranks * (self._ranks - 1)
        else:
            assert "c10d" not in str(function) or "wait_tensor" in str(function) \
                or "wrap_tensor" in str(function), function
        return function(*args, **(kwargs or {}))


def traffic(recompute: bool) -> tuple[int, int]:
    """Of a forward and a backward pass."""
    mesh = context_mesh()
    model = tiny_gpt(n_kv_head=2, head_dim=8).train()
    model.recompute = recompute
    lay_out_context(model, mesh)
    part = share_of_context(batch_of("documents"), mesh)
    with Traffic(mesh.size()) as counted:
        summed_loss(model, part).backward()
    return counted.gathered, counted.scattered


@pytest.mark.parametrize("recompute", [False, True])
def test_traffic_is_keys_and_values_once_each_way(recompute):
    layers, keys = 2, 4 * 3 * 2 * 32 * 8  # float32, (B, n_kv_head, T, D), T padded
    once = layers * 2 * keys * 3 // 4
    assert run_ranks(4, traffic, recompute) == [(once * (1 + recompute), once)] * 4


def shares() -> tuple[list[MicroBatch], MicroBatch]:
    """This rank's parts of batches, and of one with pairs."""
    mesh = context_mesh()
    pairs = PairBatch(**vars(replace(batch_of(rows=4), segments=None)),
                      reference=torch.arange(4.0))
    return [share_of_context(batch_of(kind), mesh) for kind in KINDS], \
        share_of_context(pairs, mesh)


def test_shares_hold_each_token_once_and_count_as_much_as_the_whole():
    found = run_ranks(4, shares)
    for i, kind in enumerate(KINDS):
        parts, whole = [rank[0][i] for rank in found], batch_of(kind)
        stretches = [part.inputs[:, :4] for part in parts] + [
            part.inputs[:, 4:] for part in reversed(parts)]
        assert torch.equal(torch.cat(stretches, dim=1)[:, :T], whole.inputs)
        assert sum(part.supervised_tokens for part in parts) == whole.supervised_tokens
        assert sum(part.tokens for part in parts) == whole.tokens
        assert all(part.segments is None or part.segments.shape == (3, 32) for part in parts)
    pairs = [rank[1] for rank in found]
    assert all(isinstance(part, PairBatch) and part.reference.tolist() == [0, 1, 2, 3]
               for part in pairs)
    assert pairs[0].inputs.shape == (4, 8)


def padded_otherwise() -> list[bool]:
    """Whether a padded batch's loss and gradients are the same bits, whatever the padding is."""
    mesh, same = context_mesh(), []
    for kind in KINDS:
        found = []
        for padding in (0, 7):
            model = tiny_gpt().train()
            lay_out_context(model, mesh)
            part = share_of_context(batch_of(kind), mesh)
            if mesh.get_local_rank() == 0:  # whose second stretch is the row's last
                part.inputs[:, -2:] = padding
            loss = summed_loss(model, part)
            loss.backward()
            found.append([loss.detach(), *learned(model).values()])
        same.append(all(torch.equal(a, b) for a, b in zip(*found, strict=True)))
    return same


def test_padding_changes_nothing():
    assert all(map(all, run_ranks(2, padded_otherwise)))


def work_of_ranks() -> int:
    """Keys that this rank's queries are laid against."""
    model = tiny_gpt(block_size=256)
    lay_out_context(model, context_mesh())
    _, visible = model._places(torch.zeros(1, 64, dtype=torch.int64), None, None, None, False)
    return sum(each.stop for each in visible[None])


def test_ranks_have_the_same_work():
    assert run_ranks(4, work_of_ranks) == [256 + 32] * 4


def of_pairs(model: GPT, batch: PairBatch, scores: Tensor) -> Tensor:
    gains = (scores - batch.reference).view(-1, 2)
    return preference_loss(gains[:, 0], gains[:, 1], PreferenceConfig(beta=0.02))[0].sum()


def preferences() -> tuple[float, float, float]:
    """Losses of pairs in one process and on this rank, and the difference of gradients."""
    model, mesh = tiny_gpt().train(), context_mesh()
    batch = PairBatch(**vars(batch_of(rows=4)), reference=-torch.arange(80.0, 84.0))
    alone = of_pairs(model, batch, answer_scores(model, batch))
    alone.backward()
    expected = learned(model)
    model.zero_grad()
    lay_out_context(model, mesh)
    part = share_of_context(batch, mesh)
    loss = of_pairs(model, part, sum_over_context(answer_scores(model, part), mesh))
    loss.backward()
    found = {name: added(gradient) for name, gradient in learned(model).items()}
    return float(alone), float(loss), furthest(found, expected)


def test_a_loss_of_whole_answers_is_the_same_on_every_rank_and_its_gradients_add_up():
    for alone, loss, of_gradients in run_ranks(2, preferences):
        assert loss == pytest.approx(alone, rel=1e-5) and of_gradients < 2 * ROUNDING


def sharded(name: str, recompute: bool) -> float:
    """The difference of gradients where weights are sharded over all ranks of shard and context."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "context"))
    model = tiny_gpt(**ARCHITECTURES[name]).train()
    batch = batch_of("documents")
    summed_loss(model, batch).backward()
    expected = learned(model)
    model.zero_grad()
    model.recompute = recompute
    lay_out_context(model, mesh["context"])
    both = mesh["shard", "context"]._flatten("shard_context")
    for block in model.blocks:
        fully_shard(block, mesh=both)
    fully_shard(model, mesh=both)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # gradients are sums
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no others
    rows = slice(0, 2) if mesh.get_local_rank("shard") == 0 else slice(2, 3)
    own = batch._each(lambda tensor: tensor[rows])
    summed_loss(model, share_of_context(own, mesh["context"])).backward()
    assert all(weight.to_local().numel() < weight.numel() for weight in model.blocks.parameters())
    return furthest({name: each.full_tensor() for name, each in learned(model).items()}, expected)


@pytest.mark.parametrize(("name", "recompute"), [("default", False), ("tied", True),
                                                 ("windows", False)])
def test_weights_are_sharded_over_the_ranks_of_shard_and_context_together(name, recompute):
    assert max(run_ranks(4, sharded, name, recompute)) < ROUNDING


class Loss(nn.Module):
    """What DDP wraps."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, batch: MicroBatch) -> Tensor:
        return summed_loss(self.model, batch)


def replicated() -> float:
    """The difference of gradients where weights are replicated on all ranks."""
    model, mesh, batch = tiny_gpt().train(), context_mesh(), batch_of()
    summed_loss(model, batch).backward()
    expected = learned(model)
    model.zero_grad()
    lay_out_context(model, mesh)
    wrapped = DistributedDataParallel(Loss(model), process_group=mesh.get_group())
    (wrapped(share_of_context(batch, mesh)) * mesh.size()).backward()  # which DDP divides by
    return furthest(learned(model), expected)


def test_weights_are_replicated_over_the_ranks_of_context():
    assert max(run_ranks(2, replicated)) < ROUNDING


def refused() -> str:
    with pytest.raises(UserError) as failure:
        lay_out_context(tiny_gpt(block_size=30), context_mesh())
    return str(failure.value)


def test_a_context_that_cannot_be_cut_is_refused():
    assert run_ranks(2, refused)[0] == (
        "parallel.context=2 cuts every row into 4 stretches, which model.block_size=30 is not a "
        "multiple of; choose another model.block_size, or a smaller parallel.context")


def too_long() -> str:
    model = tiny_gpt()
    lay_out_context(model, context_mesh())
    with pytest.raises(ValueError, match="longer than block_size") as failure:
        model.hidden(random_tokens(1, 20))
    return str(failure.value)


def test_rows_longer_than_the_context_are_refused_by_their_whole_length():
    assert run_ranks(2, too_long)[0] == "a sequence of 40 tokens is longer than block_size (32)"
