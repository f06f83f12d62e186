"""Commands and functions in processes that are forked from one which has imported all of it.

A fault is injected hundreds of times, and to import torch takes seconds. What is forked is a
process of its own in all else: it can be killed, it has its own folder, streams and environment.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import mmap
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.random  # noqa: F401
import torch
import torch.utils._device

import finetune
import sample
import train
from data import preparation  # noqa: F401
from data.prepare import main as prepare
from data.sharding import encode, finishing, making  # noqa: F401
from gpt import interop, language_model, reports  # noqa: F401
from gpt.__main__ import VERBS
from gpt.__main__ import main as verb
from gpt.errors import run_command
from gpt.finetuning import run  # noqa: F401
from gpt.terminal import chat, options, show  # noqa: F401
from gpt.training import pretraining, task  # noqa: F401
from gpt.verbs import evaluating, exporting, importing, verifying  # noqa: F401
from tests.tiny import as_in_a_terminal

torch.set_num_threads(1)
SECONDS = 120.0  # that anything may take
MEMORY = 4 << 30  # bytes that anything may ask for beyond what it was forked with
_MAINS: dict[str, Callable[[list[str]], None]] = {
    "train.py": train.main, "finetune.py": finetune.main, "sample.py": sample.main, "gpt": verb,
    "data/prepare.py": prepare}


@dataclass(frozen=True)
class Done:
    """What became of a process. code: its exit code, or the negative number of a signal.
    seconds: that it computed; a machine that is busy with others makes them no more. megabytes:
    the most memory it had, less what it was forked with."""

    code: int
    out: str
    err: str
    seconds: float
    megabytes: float

    @property
    def last(self) -> str:
        """The last line that it said of itself."""
        return (self.err.strip().splitlines() or [""])[-1]

    @property
    def is_one_line(self) -> bool:
        """Whether it left with one line that says why, as the user is to see it."""
        return (self.last.startswith({2: "error: ", 1: "failed: "}.get(self.code, "\0"))
                and "Traceback" not in self.err)


class Started:
    """A forked process that does some work, and says what it has to say into two files."""

    def __init__(self, work: Callable[[], int], folder: Path, **environment: str | None):
        self._said = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self._memory = mmap.mmap(-1, 8)
        self._done: Done | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        gc.freeze()  # what was imported is not looked through for garbage, again and again
        self.pid = os.fork()
        if self.pid == 0:
            self._be(work, folder, environment)

    def _be(self, work: Callable[[], int], folder: Path, environment: dict[str, str | None]
            ) -> None:
        code = 70
        try:
            os.setsid()
            as_in_a_terminal()
            os.chdir(folder)
            for name, value in environment.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            self._take_streams()
            size = int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
            self._memory[:] = struct.pack("q", size)
            asked = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
            resource.setrlimit(resource.RLIMIT_AS, (asked + MEMORY, asked + MEMORY))
            code = work()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(code)

    def _take_streams(self) -> None:
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, descriptor in enumerate((nothing, *(file.fileno() for file in self._said))):
            os.dup2(descriptor, number)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115

    @property
    def is_over(self) -> bool:
        """Whether it has left."""
        if self._done is None:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self._left(status, used)
        return self._done is not None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal, unless it has left."""
        if not self.is_over:
            os.kill(self.pid, number)

    def wait(self, seconds: float = SECONDS) -> Done:
        """What became of it; it is killed if it stays longer."""
        deadline = time.monotonic() + seconds
        while not self.is_over:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.002)
        assert self._done is not None
        return self._done

    def _left(self, status: int, used: resource.struct_rusage) -> None:
        texts = []
        for file in self._said:
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
            file.close()
        begun = struct.unpack("q", self._memory[:])[0]
        self._done = Done(os.waitstatus_to_exitcode(status), *texts,
                          used.ru_utime + used.ru_stime, (used.ru_maxrss * 1024 - begun) / 2**20)


def start(script: str, *words: object, folder: Path, **environment: str | None) -> Started:
    """A command of the project, as a user gives it in a folder: `train.py`, `gpt`, …"""
    return Started(lambda: obey(script, [str(word) for word in words]), folder, **environment)


def command(script: str, *words: object, folder: Path, **environment: str | None) -> Done:
    """The same, to its end."""
    return start(script, *words, folder=folder, **environment).wait()


def obey(script: str, words: list[str]) -> int:
    """A command in this process, a forked one."""
    sys.argv = [script, *words]
    sys.modules.setdefault("transformers", None)  # type: ignore[arg-type]  # takes 12 s to import
    run_command(_MAINS[script])
    return 0


def forked(work: Callable[[], Any], folder: Path = Path("/")) -> Any:
    """What a function returns in a forked process. Raises AssertionError if it does not."""
    reading, writing = os.pipe()

    def answer() -> int:
        os.close(reading)
        with open(writing, "w") as pipe:  # noqa: PTH123
            json.dump(work(), pipe)
        return 0

    started = Started(answer, folder)
    os.close(writing)
    with open(reading) as pipe:  # noqa: PTH123
        text = pipe.read()
    done = started.wait()
    assert done.code == 0, done.err
    return json.loads(text)


def import_verbs() -> None:
    """What the verbs import when they are asked for."""
    for module, _ in VERBS.values():
        with contextlib.suppress(ImportError):
            importlib.import_module(f"gpt.verbs.{module}")
