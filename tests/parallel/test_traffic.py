"""What devices send each other: calculated, and counted on processes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from gpt.configuration import AdapterConfig
from gpt.model import GPT, lora
from gpt.parallel.share import Share
from gpt.parallel.sizes import Sizes
from gpt.parallel.traffic import Transfer, Work, bytes_by_axis, traffic
from tests.parallel.processes import run_ranks
from tests.tiny import random_tokens, tiny_gpt

KINDS = {"_allgather_base_": "all_gather", "_reduce_scatter_base_": "reduce_scatter",
         "allreduce_": "all_reduce"}


class Counting(TorchDispatchMode):
    """Bytes of the whole tensors of all collective operations, by kind and number of ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            kind = KINDS[func._schema.name.split("::")[1]]
            tensors = [x for x in args[0] if torch.is_tensor(x)] if isinstance(
                args[0], (list, tuple)) else [x for x in args[:2] if torch.is_tensor(x)]
            group = next(dist.ProcessGroup.unbox(arg) for arg in args
                         if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg))
            self.nbytes[kind, group.size()] += max(x.nbytes for x in tensors)
        return func(*args, **kwargs or {})


def loss_of(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    """One that takes the output layer outside of the model's forward, as training's does."""
    return (model.hidden(tokens) @ model.output_weight.T).float().square().mean()


def sharded(model: GPT, sizes: Sizes, work: Work) -> GPT:
    """As torch's FSDP2 shards it, or as HSDP."""
    axes = {"replicate": sizes.replicate, "shard": sizes.shard}
    named = {axis: size for axis, size in axes.items() if size > 1}
    mesh = init_device_mesh("cpu", tuple(named.values()), mesh_dim_names=tuple(named))
    dtype = torch.bfloat16 if work.number_bytes == 2 else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "hidden")
    return model


def counted_shards(sizes: Sizes, work: Work, changes: dict[str, Any]) -> dict[Any, int]:
    """In a step on this rank."""
    model = sharded(tiny_gpt(**changes).train(), sizes, work)
    m = work.micro_steps(sizes)
    with Counting() as counting:
        for number in range(m):
            model.set_requires_all_reduce(number == m - 1)
            loss_of(model, random_tokens(work.micro_batch, 8)).backward()
    return dict(counting.nbytes)


def calculated(sizes: Sizes, work: Work, model: GPT) -> dict[Any, int]:
    found: Counter[Any] = Counter()
    for transfer in traffic(model, sizes, work):
        found[transfer.kind, transfer.devices] += transfer.times * transfer.nbytes
    return dict(found)


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True, "vocab_size": 63, "n_layer": 3}],
                         ids=str)
@pytest.mark.parametrize(("sizes", "work"), [
    (Sizes(shard=2), Work(sequences=2)),
    (Sizes(shard=2), Work(sequences=6, number_bytes=4)),
    (Sizes(shard=4), Work(sequences=8, micro_batch=2)),
    (Sizes(replicate=2, shard=2), Work(sequences=8))], ids=str)
def test_shards_send_what_is_calculated(sizes, work, changes):
    """Rows that do not come out even, which are padded, among them."""
    counted = run_ranks(sizes.world_size, counted_shards, sizes, work, changes)
    expected = calculated(sizes, work, tiny_gpt(**changes))
    assert counted == [expected] * sizes.world_size
    assert expected != calculated(sizes, Work(100), tiny_gpt(**changes))


class Losing(nn.Module):
    """A loss as a module, as DDP wants it."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return loss_of(self.model, tokens)


def counted_copies(work: Work, changes: dict[str, Any]) -> int:
    """Bytes of gradients that DDP hands to its all-reduce."""
    model = DistributedDataParallel(Losing(tiny_gpt(**changes).train()))
    nbytes = []

    def hook(state, bucket):  # annotations that are text, as all are here, DDP does not take
        nbytes.append(bucket.buffer().nbytes)
        done = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return done.then(lambda result: result.value()[0])

    model.register_comm_hook(None, hook)
    with model.no_sync():
        model(random_tokens(1, 8)).backward()
    model(random_tokens(1, 8)).backward()
    return sum(nbytes)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_copies_send_what_is_calculated_once_a_step(ranks, tied):
    sizes, work = Sizes(replicate=ranks), Work(sequences=2 * ranks)
    counted = run_ranks(ranks, counted_copies, work, {"tie_embeddings": tied})
    model = tiny_gpt(tie_embeddings=tied)
    [transfer] = traffic(model, sizes, work)
    assert counted == [transfer.nbytes * transfer.times] * ranks
    assert transfer.nbytes == 4 * sum(p.numel() for p in model.parameters())


# ----- What is sent of a tensor

@pytest.mark.parametrize(("kind", "share"), [
    ("all_reduce", 2 * 3 / 4), ("all_gather", 3 / 4), ("reduce_scatter", 3 / 4),
    ("all_to_all", 3 / 4), ("send", 1)])
def test_a_ring_sends_all_but_its_own_part(kind, share):
    assert Transfer("shard", kind, 4, 400, 3).bytes_sent == 3 * 400 * share


def test_bytes_are_summed_by_axis():
    transfers = [Transfer("shard", "all_gather", 2, 100, 1), Transfer("tensor", "send", 2, 7, 1),
                 Transfer("shard", "reduce_scatter", 2, 10, 2)]
    assert bytes_by_axis(transfers) == {"shard": 60, "tensor": 7}


# ----- Formulas that no processes count here: each on paper

B, T, C, L, V = 2, 32, 32, 2, 61


def sent(sizes: Sizes, **changes: Any) -> dict[str, float]:
    """Of two micro-batches of B sequences."""
    work = Work(**{"sequences": 2 * B * sizes.data, "micro_batch": B, **changes})
    return bytes_by_axis(traffic(tiny_gpt(), sizes, work))


def test_tensor_sums_the_stream_four_times_a_layer_and_twice_around_them():
    each = B * T * C * 2 * 2 * 3 / 4  # bytes of a number, a ring there and back
    tokens = 3 * B * T * 4 * 2 * 3 / 4
    assert sent(Sizes(tensor=4)) == {"tensor": 2 * ((4 * L + 2) * each + tokens)}
    assert sent(Sizes(tensor=4), recompute=True) == {"tensor": 2 * ((6 * L + 2) * each + tokens)}
    assert sent(Sizes(tensor=4), number_bytes=4) == {
        "tensor": 2 * ((4 * L + 2) * 2 * each + tokens)}


def test_context_gathers_keys_and_values_and_scatters_their_gradients():
    keys_values = 2 * B * T * 16 * 2 * 3 / 4  # two heads of width eight
    copies = traffic(tiny_gpt(), Sizes(replicate=4), Work(4))[0].bytes_sent
    assert sent(Sizes(context=4)) == {"context": 2 * 2 * L * keys_values + copies}
    assert sent(Sizes(context=4), recompute=True) == {"context": 2 * 3 * L * keys_values + copies}


def test_a_pipeline_hands_on_the_stream_and_its_gradient():
    assert sent(Sizes(pipeline=2)) == {"pipeline": 2 * B * T * C * 2}
    assert sent(Sizes(pipeline=3))["pipeline"] == 2 * sent(Sizes(pipeline=2))["pipeline"]


def test_the_ends_of_a_pipeline_tell_each_other_the_gradient_of_a_tied_table():
    for sizes, parts in ((Sizes(pipeline=2), 1), (Sizes(pipeline=2, shard=2, tensor=2), 4)):
        untied, tied = (bytes_by_axis(traffic(tiny_gpt(tie_embeddings=tie), sizes, Work(2)))
                        for tie in (False, True))
        assert tied["pipeline"] - untied["pipeline"] == 4 * V * C / parts


def test_muon_sends_parts_of_matrices_to_their_owner_and_back():
    matrices = sum(p.numel() for p in tiny_gpt().blocks.parameters() if p.dim() > 1)
    for copies in (1, 2):
        sizes = Sizes(replicate=copies, shard=4)
        more = sent(sizes, optimizer="muon")["shard"] - sent(sizes)["shard"]
        assert more == 2 * 4 * matrices / 4 * 3 / 4 / copies
    copies = Sizes(replicate=4)
    more = sent(copies, optimizer="muon")["replicate"] - sent(copies)["replicate"]
    assert more == 3 / 4 * 4 * matrices


def test_axes_divide_what_others_send():
    assert sent(Sizes(context=2, tensor=2))["tensor"] == sent(Sizes(tensor=2))["tensor"] / 2
    alone, beside = sent(Sizes(context=2)), sent(Sizes(context=2, tensor=2))
    assert beside["context"] < 0.6 * alone["context"]  # vectors are whole
    assert sent(Sizes(pipeline=2, tensor=2))["tensor"] < sent(Sizes(tensor=2))["tensor"]


def test_one_device_sends_nothing():
    assert sent(Sizes()) == {}


def test_of_adapters_the_gradients_alone_are_sent():
    model = tiny_gpt()
    lora.adapt(model, AdapterConfig(rank=2))
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    [transfer] = traffic(model, Sizes(replicate=2), Work(2))
    assert 0 < transfer.nbytes == 4 * learned
    gathered = traffic(model, Sizes(shard=2), Work(2, number_bytes=4))
    by_kind = {kind: sum(t.nbytes * t.times for t in gathered if t.kind == kind)
               for kind in ("all_gather", "reduce_scatter")}
    assert by_kind["reduce_scatter"] < by_kind["all_gather"] / 2


def test_the_ends_of_a_pipeline_have_a_table_each():
    assert Share.of(tiny_gpt(), Sizes()).elements() == sum(
        p.numel() for p in tiny_gpt().parameters())
    for tied in (False, True):
        model = tiny_gpt(tie_embeddings=tied)
        last = sum(p.numel() for m in (model.blocks[1], model.final_norm) for p in m.parameters())
        assert Share.of(model, Sizes(pipeline=2)).elements() == last + V * C
