"""What one process of benchmarks/scaling.py does."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.scaling import ARMS, MICRO_BATCH, SEQUENCES, SHAPE
from gpt.batches import MicroBatch
from gpt.configuration import ModelConfig, OptimConfig
from gpt.machine.device import Machine
from gpt.machine.ranks import Ranks, joined
from gpt.model import GPT
from gpt.optim import Rates, build_optimizer
from gpt.parallel import Layout, Sizes
from gpt.parallel.traffic import Work, traffic
from gpt.training.step import Step

# How many times its tensors' bytes an operation sends, of n processes: by a ring.
# A broadcast as if all were asked in turn, as Muon's updates are.
SENT: dict[str, Callable[[int], float]] = {
    "allreduce_": lambda n: 2 * (n - 1) / n, "all_reduce": lambda n: 2 * (n - 1) / n,
    "_allgather_base_": lambda n: (n - 1) / n, "all_gather_into_tensor": lambda n: n - 1,
    "allgather_": lambda n: n - 1, "_reduce_scatter_base_": lambda n: (n - 1) / n,
    "reduce_scatter_tensor": lambda n: (n - 1) / n, "alltoall_base_": lambda n: (n - 1) / n,
    "broadcast_": lambda n: (n - 1) / n, "send": lambda n: 1.0}
UNCOUNTED = {"recv_", "barrier", "wait_tensor", "_wrap_tensor_autograd"}


def work(what: str, *rest: Any) -> dict[str, Any]:
    """Tokens a second of all processes, by arm; or bytes a step of this one."""
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        return speeds(ranks, *rest) if what == "speeds" else counted(ranks, *rest)


def layout_of(ranks: Ranks, sizes: dict[str, int]) -> Layout:
    """Over these processes; or of this one alone, if there are no sizes."""
    machine = Machine(torch.device("cpu"), torch.float32, ranks=ranks if sizes else Ranks())
    return Layout(machine, Sizes(**sizes))


def speeds(ranks: Ranks, arms: list[str], rounds: int) -> dict[str, list[float]]:
    """Tokens a second of a step in each round."""
    steps = {}
    for arm in arms:
        layout = layout_of(ranks, ARMS[arm][1])
        steps[arm] = (plain_step(layout.machine.ranks) if arm.startswith("peer")
                      else our_step(layout, "adamw")[0])
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(rounds + 1):  # the first one warms up
        for arm, step in steps.items():
            working, sizes = ARMS[arm]
            ranks.all(number)
            start = time.perf_counter()
            if ranks.rank < working:
                step(number)
            if working > 1:
                ranks.all(number)
            seconds = time.perf_counter() - start
            copies = 1 if sizes else working
            found[arm].append(copies * SEQUENCES * SHAPE["block_size"] / seconds)
    return {arm: each[1:] for arm, each in found.items()}


def batch_of(number: int, sequences: int, rank: int, ranks: int) -> list[Tensor]:
    """This process's micro-batches of a step, (B, T + 1) each."""
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(0, SHAPE["vocab_size"], (sequences, SHAPE["block_size"] + 1),
                           generator=generator)
    return list(tokens.chunk(ranks)[rank].split(MICRO_BATCH))


def our_step(layout: Layout, optimizer: str, sequences: int = SEQUENCES) -> tuple[Any, GPT]:
    """(a step of the toolkit's training, the model)"""
    torch.manual_seed(0)
    config, machine = ModelConfig(**SHAPE), layout.machine
    with layout.building():
        model = GPT(config)
    layout.place(model)
    rates = Rates(optimizer, 1e-3, 0.02, 0.95, None)
    update = Step(model.train(), layout.optimizer(build_optimizer(model, OptimConfig(), rates)),
                  machine, 1.0, layout=layout)

    def step(number: int) -> None:
        tokens = batch_of(number, sequences, machine.data.rank, machine.data.size)
        # Where sequences are cut, as documents: what is counted with cannot see a mask made lazily.
        parts = [MicroBatch(part[:, :-1], part[:, 1:].contiguous(), part[:, 1:].numel(),
                            torch.zeros_like(part[:, 1:]) if layout.sizes.context > 1 else None)
                 for part in tokens]
        loss, _ = update.gradients(parts, lambda: machine.seed_step(number))
        float(loss)
        update.apply()

    return step, model


def plain_step(ranks: Ranks) -> Any:
    """The same of a plain loop: GPT-2 by hand, DDP, micro-batches."""
    from torch.nn.parallel import DistributedDataParallel

    from benchmarks.plain_gpt import PlainGPT
    torch.manual_seed(0)
    module: Any = PlainGPT(SHAPE["n_layer"], SHAPE["n_head"], SHAPE["n_embd"],
                           SHAPE["vocab_size"], SHAPE["block_size"])
    if ranks.size > 1:
        module = DistributedDataParallel(module, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3, fused=True)

    def step(number: int) -> None:
        parts = batch_of(number, SEQUENCES, ranks.rank, ranks.size)
        for i, part in enumerate(parts):
            if ranks.size > 1:
                module.require_backward_grad_sync = i + 1 == len(parts)
            loss = module(part[:, :-1], part[:, 1:])
            (loss / len(parts)).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


class Counting(TorchDispatchMode):
    """Bytes that this process sends by collective operations, as rings do, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional", "_c10d_functional_autograd"):
            kind = func._schema.name.split("::")[1]
            if kind in SENT:
                tensors = [x for arg in args for x in (arg if isinstance(arg, list | tuple)
                                                       else [arg]) if torch.is_tensor(x)]
                self.sent[kind] += int(SENT[kind](group_size(args))
                                       * max((x.nbytes for x in tensors), default=0))
            elif kind not in UNCOUNTED:
                print(f"not counted: {kind}", file=sys.stderr)
        return func(*args, **kwargs or {})


def group_size(args: Any) -> int:
    """Of the process group among an operation's arguments."""
    import torch.distributed as dist
    for arg in args:
        if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg):
            return dist.ProcessGroup.unbox(arg).size()
    name = next(arg for arg in reversed(args) if isinstance(arg, str))
    return dist.distributed_c10d._resolve_process_group(name).size()


def counted(ranks: Ranks, sizes: dict[str, int], optimizer: str) -> dict[str, Any]:
    """Bytes that this process sends in a step, and the least of them."""
    layout = layout_of(ranks, sizes)
    sequences = 4 * layout.sizes.data
    step, model = our_step(layout, optimizer, sequences)
    step(0)
    with Counting() as counting:
        step(1)
    with torch.device("meta"):
        plain = GPT(model.config)
    wanted = traffic(plain, layout.sizes, Work(
        sequences, MICRO_BATCH, number_bytes=4,
        optimizer="muon" if optimizer == "muon" else "adamw"))
    return {"counted": sum(counting.sent.values()),
            "least": sum(transfer.bytes_sent for transfer in wanted),
            **{f"sent by {kind}": sent for kind, sent in counting.sent.items()}}
