"""The machine a run uses: device, number format, seeds, memory, and the signals that stop it."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from gpt.configuration import RunConfig
from gpt.errors import UserError
from gpt.machine.allocator import keep_freed_memory
from gpt.machine.hardware import GPU_PEAKS, computes_in_bfloat16, cpu_name, measure_matmul_flops
from gpt.machine.neighbours import heed_other_processes
from gpt.machine.ranks import Ranks, share_cores
from gpt.machine.seeds import mix_seeds
from gpt.machine.signals import Stop, itself, listening, signal_name, signal_number

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

FLOAT8_CAPABILITY = (8, 9)  # Ada and Hopper

@dataclass
class Machine:
    """Where and in what numbers a run computes, and with whom.

    ranks: all processes of the run. Of them, data: those that read different sequences; summed:
    those whose losses and gradients add up, which are those of data unless several share a
    sequence; replicas: those that need nothing of each other to compute. part_of: of a micro-batch
    what this process reads, where several share its sequences.
    """

    device: torch.device
    dtype: torch.dtype
    compile: bool = False
    float8: bool = False
    deterministic: bool = False  # training steps give the same bits every time, on CUDA too
    exact: bool = False  # float32 products on GPUs are not rounded to 19 bits, as launch has them
    seed: int = 0
    stop: Stop = field(default_factory=Stop)
    ranks: Ranks = field(default_factory=Ranks)
    data: Ranks = field(default_factory=Ranks)
    summed: Ranks = field(default_factory=Ranks)
    replicas: Ranks = field(default_factory=Ranks)
    part_of: Callable[[Any], Any] = field(default=itself, repr=False)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Matrix products in `dtype`; weights, norms and sums stay float32."""
        if self.dtype == torch.float32:
            return exact_products() if self.exact else contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def measuring(self, dtype: str = "float32") -> Machine:
        """The same machine, for figures that are to be quoted: they must not depend on what "auto"
        is here."""
        return replace(self, dtype=DTYPES[dtype], exact=True, float8=False, compile=False)

    def repeatable(self) -> contextlib.AbstractContextManager[None]:
        """Where gradients are computed: on CUDA with kernels that give the same bits every time, if
        that is asked for. Processors' do anyway."""
        if self.deterministic and self.device.type == "cuda":
            return deterministic_kernels()
        return contextlib.nullcontext()

    @property
    def runs_ahead(self) -> bool:
        """Whether the device goes on computing while Python already asks for more."""
        return self.device.type != "cpu"

    def wait(self) -> None:
        """Until the device has done all that it was asked: for timing."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def agreed(self, seconds: float) -> float:
        """Seconds as rank 0 counts them; and of a signal that a rank has heard, all know."""
        first, number = self.ranks.most(seconds if self.ranks.is_first else 0.0,
                                        signal_number(self.stop.signal_name))
        self.stop.everywhere = signal_name(number)
        return first

    def place(self, model: nn.Module) -> None:
        """Move a model to the device; make its layers float8 and compile it where that is on."""
        model.to(self.device)
        if self.float8:
            multiply_in_float8(model.get_submodule("blocks"), emulate=self.device.type != "cuda")
        if self.compile:
            print("compiling the model: the first step takes up to a minute", file=sys.stderr)
            model.compile()

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a batch over, without waiting for it where the hardware can."""
        if self.device.type == "cuda":  # a tensor with gaps would be copied by way of another one
            return tensor.contiguous().pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def fetch(self, *numbers: torch.Tensor) -> Callable[[], list[float]]:
        """What tensors () hold, to be read later: CUDA is then waited for up to here, and not for
        what it was asked after that."""
        together = torch.stack(numbers).detach()
        if self.device.type != "cuda":
            return lambda: together.tolist()
        host = torch.empty(together.shape, dtype=together.dtype, pin_memory=True)
        host.copy_(together, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def values() -> list[float]:
            copied.synchronize()
            return host.tolist()

        return values

    def seed_step(self, *numbers: int) -> None:
        """Make every random draw from here on a function of the run's seed and these numbers."""
        own = [self.summed.rank] if self.summed.rank else []  # other sequences, other dropout
        torch.manual_seed(mix_seeds(self.seed, *numbers, *own))

    def peak_memory_bytes(self) -> int:
        """The most memory held so far: of the GPU, or of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if resource is None:
            return 0
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    @functools.cached_property
    def peak_flops(self) -> float:
        """FLOP/s of matrix products: a GPU's data sheet, or measured here."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
            for part in sorted(GPU_PEAKS, key=len, reverse=True):
                if part in name:
                    return GPU_PEAKS[part]
        return measure_matmul_flops(self.device, self.dtype)

    def describe(self) -> str:
        """One line: processes, device, number format, threads."""
        if self.device.type == "cuda":
            where = torch.cuda.get_device_name(self.device)
        else:
            where = f"{cpu_name()}, {torch.get_num_threads()} threads"
        if self.ranks.size > 1:
            where = f"{self.ranks.size} processes, each on {where}"
        numbers = "float8" if self.float8 else str(self.dtype).removeprefix("torch.")
        return f"{where}, {numbers}{', compiled' if self.compile else ''}"


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Float32 products in all their bits, whatever else the process allows."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)


def fix_cublas_workspace() -> None:
    """Say what room cuBLAS has, which it asks when it is first used: its sums depend on that."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextlib.contextmanager
def deterministic_kernels() -> Iterator[None]:
    """No sums in an order that differs from run to run, as atomic additions have it.

    Not for generation: torch has no such cumulative sum, and refuses.
    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    fix_cublas_workspace()
    settings: Any = torch.utils.deterministic
    before, filled = (torch.are_deterministic_algorithms_enabled(),
                      settings.fill_uninitialized_memory)
    settings.fill_uninitialized_memory = False  # which only costs time
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = filled


def discard_unfinished_code() -> None:
    """Delete what a compiler that was interrupted has left, which torch would load the next time.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    for file in Path(cache_dir()).rglob("*.so"):
        if not file.stat().st_size:
            file.unlink()


@contextlib.contextmanager
def launch(run: RunConfig, ranks: Ranks | None = None) -> Iterator[Machine]:
    """Make the machine ready for training, and listen for signals while it runs."""
    machine = ready_machine(run, ranks)
    with listening(machine.stop):
        yield machine


def ready_machine(run: RunConfig, ranks: Ranks | None = None) -> Machine:
    """The machine that a run asks for, set up as for training. Raises UserError."""
    machine = training_machine(run, ranks)
    on_cuda = machine.device.type == "cuda"
    machine.seed, machine.deterministic = run.seed, run.deterministic
    keep_freed_memory()
    if on_cuda:
        fix_cublas_workspace()
        torch.set_float32_matmul_precision("high")
    machine.seed_step()
    return machine


def training_machine(run: RunConfig, ranks: Ranks | None = None) -> Machine:
    """The machine that a run asks for. Raises UserError if training cannot run there."""
    machine = choose_machine(run.device, "bfloat16" if run.dtype == "float8" else run.dtype, ranks)
    if run.dtype != "float8":
        return machine
    if machine.device.type != "cuda" or torch.cuda.get_device_capability() < FLOAT8_CAPABILITY:
        raise UserError("run.dtype=float8 needs a GPU that multiplies in float8 (compute "
                        "capability 8.9 or newer); use bfloat16 or auto")
    if find_spec("torchao") is None:
        raise UserError("run.dtype=float8 needs the package torchao: pip install torchao, or use "
                        "run.dtype=bfloat16")
    machine.float8 = True
    return machine


def _take_own_device(machine: Machine) -> None:
    """Of the devices of a host each process takes one, or its share of the cores."""
    here = machine.ranks.here
    if machine.device.type == "mps":
        raise UserError("several processes cannot share Apple's mps: give run.device=cpu")
    if machine.device.type == "cpu":
        share_cores(here)
        return
    count, number = torch.cuda.device_count(), here.local_rank
    if count == 1 and here.launcher == "srun":  # which may show each process its own alone
        number = 0
    if number >= count:
        raise UserError(f"{here.local_size} processes were started on this host, which has {count} "
                        f"GPUs: start as many (torchrun --nproc-per-node={count}), or give "
                        "run.device=cpu")
    torch.cuda.set_device(number)
    machine.device = torch.device("cuda", number)


def multiply_in_float8(layers: nn.Module, emulate: bool) -> None:
    """Make linear layers round inputs, weights and gradients to float8 for their products.

    Weights and their names stay as they are. Layers whose sides are no multiples of 16, which the
    hardware asks for, are left alone. emulate: the same rounding on hardware without float8.
    Source: Micikevicius et al. 2022 (arXiv:2209.05433); torchao's dynamic scaling per tensor.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    convert_to_float8_training(
        layers, config=Float8LinearConfig(emulate=emulate),
        module_filter_fn=lambda layer, _: layer.in_features % 16 == layer.out_features % 16 == 0)


def choose_machine(device: str = "auto", dtype: str = "auto", ranks: Ranks | None = None
                   ) -> Machine:
    """Resolve "auto"; raises UserError for a device or number format that is not there.

    ranks: processes that work together, of which each takes a device of its own.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
                 "cpu": True}
    if device == "auto":
        device = next(name for name, there in available.items() if there)
    if device not in available or not available[device]:
        there = ", ".join(name for name, ok in available.items() if ok)
        raise UserError(f"device={device} is not available here; choose {there} or auto")
    if dtype == "auto":
        dtype = "bfloat16" if computes_in_bfloat16(device) else "float32"
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype} is unknown; choose auto, {', '.join(DTYPES)}")
    heed_other_processes()
    machine = Machine(torch.device(device), DTYPES[dtype])
    if ranks is not None and ranks.size > 1:
        machine.ranks = ranks
        _take_own_device(machine)
    return machine
