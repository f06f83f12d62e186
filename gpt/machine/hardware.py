"""What there is: the processor's name and speed, and the packages that are installed."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "numpy", "tiktoken", "tokenizers", "safetensors", "pydantic", "transformers",
            "gguf")

# Dense bfloat16 peaks of data sheets, in FLOP/s, by a part of the device's name.
GPU_PEAKS = {"H200": 989e12, "H100": 989e12, "GH200": 989e12, "B200": 2250e12, "A100": 312e12,
              "A6000": 155e12, "A10": 125e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12,
              "RTX 3090": 71e12}
GPU_GIB = {"H200": 141, "H100": 80, "GH200": 96, "B200": 180, "A100": 80, "A6000": 48, "A10": 24,
           "L40S": 48, "L4": 24, "RTX 4090": 24, "RTX 3090": 24}


def memory_bytes(device: torch.device) -> int:
    """All memory of a GPU, or of this computer."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 8 << 30


def available_bytes() -> int | None:
    """Memory that could be taken now without swapping, as far as Linux and its control group say;
    None: not known."""
    free: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        told = Path("/proc/meminfo").read_text(encoding="utf-8").partition("MemAvailable:")[2]
        free.append(int(told.split()[0]) << 10)
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text(encoding="utf-8"))  # "max": without a limit
        free.append(most - int((group / "memory.current").read_text(encoding="utf-8")))
    return min(free, default=None) if free else None


def computes_in_bfloat16(device: str) -> bool:
    """Whether the hardware multiplies in bfloat16, rather than only storing it."""
    if device == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    if device == "cpu":
        if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.11
            return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def measure_matmul_flops(device: torch.device, dtype: torch.dtype, size: int | None = None
                         ) -> float:
    """FLOP/s of a large matrix product: the best of several, about a tenth of a second in all.

    size: of the square matrices; None: 1024, and on CUDA, which does that in microseconds, 8192.

    A format that the processor does not compute in takes seconds each; one of those is enough.
    """
    size = size or (8192 if device.type == "cuda" else 1024)
    a = torch.randn(size, size, device=device).to(dtype)
    durations: list[float] = []
    while len(durations) < 6 and sum(durations) < 1:
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        durations.append(time.perf_counter() - start)
    return 2 * size**3 / min(durations)


@functools.cache
def cpu_name() -> str:
    """The processor's name, as the kernel knows it."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def package_version(package: str) -> str | None:
    """The installed version; None if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
