"""model.c as a library, compiled for this processor when it is first needed."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from gpt.files import cache_folder
from gpt.machine.hardware import cpu_name

_HERE = Path(__file__).parent
SOURCES = (_HERE / "model.c", _HERE / "products.h")
_FLAGS = ("-std=gnu11", "-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-march=native",
          "-fopenmp", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None where they cannot be had, which on Linux a line on stderr says.

    Other systems' compilers and OpenMP libraries do not go together with torch's.
    """
    if sys.platform != "linux":
        return None
    try:
        file = _compiled()
        try:
            return ctypes.CDLL(str(file))
        except OSError:  # damaged, or another machine's
            file.unlink()
            return ctypes.CDLL(str(_compiled()))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip() or type(error).__name__
        print(f"note: generation is two to five times as fast with {_HERE.name}/model.c, which "
              f"could not be compiled: {told.splitlines()[0]}", file=sys.stderr)
        return None


def _compiled() -> Path:
    """The library's file, which later starts find."""
    compiler = shlex.split(os.environ.get("CC", "")) or ["gcc"]
    if shutil.which(compiler[0]) is None:
        raise FileNotFoundError(f"there is no {compiler[0]}; install gcc")
    texts = [file.read_text(encoding="utf-8") for file in SOURCES]
    known = "\0".join([*compiler, *_FLAGS, *platform.libc_ver(), _processor(), *texts])
    target = _folder() / f"model-{hashlib.sha256(known.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            objects, made = Path(folder) / "model.o", Path(folder) / "model.so"
            _run(*compiler, *_FLAGS, "-c", str(SOURCES[0]), "-o", str(objects))
            # Without -fopenmp: threads are those of torch's OpenMP, which is loaded already. Two
            # of them would wait for each other's cores.
            _run(*compiler, "-shared", str(objects), "-o", str(made), "-lm")
            made.replace(target)
    return target


def _folder() -> Path:
    """Where compiled libraries are kept; where that is not possible, a folder that goes in the end.
    """
    if (cache := cache_folder()) is not None:
        return cache
    own = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return Path(own)


def _processor() -> str:
    """What code for this very processor depends on: virtual machines' names tell less."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        told = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU ", "Features")
        first = itertools.takewhile(str.strip, file)
        return "".join(line for line in first if line.startswith(told))
    return cpu_name()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
