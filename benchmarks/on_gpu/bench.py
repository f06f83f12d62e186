"""The device that is measured, and how: rounds of work, products, copies, kernels."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from gpt.machine.device import Machine
from gpt.machine.hardware import measure_matmul_flops

V = TypeVar("V")


@dataclass(frozen=True)
class Bench:
    """A device. tiny: a rehearsal, which shows that everything runs and measures nothing."""

    device: torch.device
    tiny: bool = False

    def choose(self, real: V, tiny: V) -> V:
        """A size, or the one to rehearse with."""
        return tiny if self.tiny else real

    def machine(self, compile: bool = False, deterministic: bool = False) -> Machine:
        """As training in bfloat16 has it."""
        torch.set_float32_matmul_precision("high")
        return Machine(self.device, torch.bfloat16, compile=compile, deterministic=deterministic)

    def wait(self) -> None:
        """Until all that was asked for is done."""
        Machine(self.device, torch.float32).wait()

    def seconds(self, work: Callable[[], object], times: int = 5, rounds: int = 5,
                warm_up: int = 2) -> float:
        """Of one call: the median of rounds of several, so that the device is never waited for."""
        for _ in range(warm_up):
            work()
        durations = []
        for _ in range(self.choose(rounds, 1)):
            self.wait()
            start = time.perf_counter()
            for _ in range(self.choose(times, 1)):
                work()
            self.wait()
            durations.append((time.perf_counter() - start) / self.choose(times, 1))
        return statistics.median(durations)

    def product_flops(self) -> float:
        """FLOP/s of a large product in bfloat16, of random numbers."""
        return measure_matmul_flops(self.device, torch.bfloat16, self.choose(8192, 64))

    def copied_bytes(self) -> float:
        """Bytes per second that a copy on the device reads and writes."""
        source = torch.zeros(self.choose(1 << 30, 1 << 20), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.seconds(lambda: target.copy_(source), times=10)

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """The most memory that is held during some work."""
        if self.device.type != "cuda":
            work()
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device)

    def forget(self) -> None:
        """What an arm has left behind: memory, and compiled code."""
        torch.compiler.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def fastest(candidates: Iterable[int], measure: Callable[[int], dict[str, Any]],
            key: str) -> dict[str, Any]:
    """Of sizes from small to large the one with the highest figure: the search ends where memory
    does, or where the figure falls. All figures by size are kept beside it."""
    found: dict[int, dict[str, Any]] = {}
    stopped = "the largest size tried"
    for size in candidates:
        try:
            found[size] = measure(size)
        except torch.OutOfMemoryError:
            stopped = f"out of memory at {size}"
            break
        before = found.get(size // 2)
        if before is not None and found[size][key] < 1.01 * before[key]:
            stopped = f"{size} is no faster than {size // 2}"
            break
    if not found:
        raise torch.OutOfMemoryError(f"the smallest size does not fit: {stopped}")
    best = max(found, key=lambda size: found[size][key])
    return {**found[best], "batch": best, "search_ended": stopped,
            "by_batch": {str(size): figures[key] for size, figures in found.items()}}


def kernels(bench: Bench, work: Callable[[], object], times: int = 3) -> dict[str, Any]:
    """The ten kernels that take longest in some work, and the share of time without any."""
    from torch.profiler import ProfilerActivity, profile
    on_gpu = bench.device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    bench.wait()
    with profile(activities=[activity]) as profiler:
        for _ in range(times):
            work()
        bench.wait()
    return longest(profiler, times, on_gpu)


def longest(profiler: Any, times: int, on_gpu: bool) -> dict[str, Any]:
    """Of what a profiler saw in some repetitions: names, milliseconds and calls in each."""
    averages = profiler.key_averages()
    spent = {event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total,
                         event.count) for event in averages}
    total = sum(time for time, _ in spent.values()) or 1.0
    top = sorted(spent, key=lambda name: -spent[name][0])[:10]
    return {"idle_share": idle_share(profiler, on_gpu),
            "longest_kernels": [{"name": name[:120], "share": round(spent[name][0] / total, 4),
                                 "milliseconds": round(spent[name][0] / 1e3 / times, 4),
                                 "calls": spent[name][1] / times} for name in top]}


def idle_share(profiler: Any, on_gpu: bool) -> float:
    """Of the time from the first kernel to the last, the share in which none ran."""
    device = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    return share_between([(event.time_range.start, event.time_range.end)
                          for event in profiler.events() if event.device_type == device])


def share_between(stretches: list[tuple[float, float]]) -> float:
    """Of the time from the first start to the last end, what no stretch covers."""
    if not stretches:
        return 1.0
    stretches = sorted(stretches)
    covered, until = 0.0, stretches[0][0]
    for start, end in stretches:
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    length = until - stretches[0][0]
    return 1 - covered / length if length else 0.0
