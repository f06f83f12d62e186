"""train.py on several ranks as processes of their own, whose ends are looked at one by one."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from tests.parallel.processes import free_port
from tests.tiny import ROOT, run_script, script_environment

BASE = ("data.dataset=data", "model.block_size=32", "model.n_layer=2", "model.n_head=2",
        "model.n_embd=32", "train.batch_size=8", "train.micro_batch_size=2", "eval.every_steps=8",
        "eval.max_tokens=600", "optim.warmup_steps=2", "checkpoint.every_steps=5",
        "run.device=cpu", "run.dtype=float32", "run.compile=false")
FAULTY = ROOT / "tests" / "faults" / "faulty_train.py"


class Launched:
    """Ranks of one run, each in a session of its own.

    faults: by rank, words that faulty_train.py puts into effect. apart: settings by rank that the
    others do not have.
    """

    def __init__(self, folder: Path, settings: tuple[str, ...], ranks: int = 2,
                 faults: Mapping[int, str] | None = None,
                 apart: Mapping[int, str] | None = None):
        self.folder, self.processes = folder, list[subprocess.Popen[bytes]]()
        port = free_port()
        for rank in range(ranks):
            self._start(FAULTY, *(faults or {}).get(rank, "").split(), *settings,
                        *(apart or {}).get(rank, "").split(),
                        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks),
                        LOCAL_WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1",
                        MASTER_PORT=str(port))

    def _start(self, *words: object, **environment: str) -> None:
        with self._said(len(self.processes)).open("w") as said:
            self.processes.append(subprocess.Popen(
                [sys.executable, *map(str, words)], cwd=self.folder,
                env=script_environment(PYTHONPATH=str(ROOT), **environment),
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True))

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _said(self, rank: int) -> Path:
        return self.folder / f"said-{rank}"

    def send(self, rank: int, number: signal.Signals) -> None:
        """A signal to one rank alone."""
        self.processes[rank].send_signal(number)

    def codes(self, seconds: float = 60, without: tuple[int, ...] = ()) -> list[int | None]:
        """Exit codes, once all but some have left. Raises AssertionError if one stays."""
        deadline = time.monotonic() + seconds
        for rank, process in enumerate(self.processes):
            if rank not in without:
                try:
                    process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    raise AssertionError(f"rank {rank} stays: {self.said(rank)}") from None
        return [process.poll() for process in self.processes]

    def said(self, rank: int) -> str:
        """What one rank printed."""
        return self._said(rank).read_text(errors="replace")

    def last_words(self) -> list[str]:
        """What all ranks said of their end."""
        return [line for rank in range(len(self.processes))
                for line in re.split(r"[\r\n]+", self.said(rank))
                if re.match(r"(rank \d+: )?(error|failed|stopped|interrupted|Traceback|\w+Error)",
                            line.strip())]

    def left_over(self, without: tuple[int, ...] = ()) -> list[str]:
        """Processes, and shared memory that torch names after them, that are still there; of all
        ranks but some."""
        leaders = {process.pid for rank, process in enumerate(self.processes)
                   if rank not in without}
        return [*sessions(leaders), *(path.name for path in Path("/dev/shm").glob("torch_*")
                                      if int(path.name.split("_")[1]) in leaders)]


class Torchrun(Launched):
    """torchrun, and the ranks that it starts."""

    def __init__(self, folder: Path, settings: tuple[str, ...], *words: str):
        self.folder, self.processes = folder, []
        self._id = f"test-{os.getpid()}-{free_port()}"
        self._start("-m", "torch.distributed.run", f"--rdzv-id={self._id}", "--rdzv-backend=c10d",
                    f"--rdzv-endpoint=127.0.0.1:{free_port()}", *words, FAULTY, *settings)

    def kill_rank(self, rank: int) -> None:
        """SIGKILL to the process that torchrun has given this rank."""
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if (f"RANK={rank}".encode() in words and
                        f"TORCHELASTIC_RUN_ID={self._id}".encode() in words):
                    os.kill(int(path.parent.name), signal.SIGKILL)


def prepare(folder: Path) -> None:
    """A small dataset, FOLDER/data."""
    text = "".join(random.Random(0).choices("the quick brown fox\n", k=20_000))
    (folder / "text.txt").write_text(text)
    done = run_script("data/prepare.py", "text.txt", "tokenizer=char", "out=data", cwd=folder)
    assert done.returncode == 0, done.stderr


def weights_of(folder: Path, settings: tuple[str, ...]) -> bytes:
    """The last ones of a run, as they lie on disk."""
    name = next(word for word in settings if word.startswith("run.name="))
    checkpoints = folder / "runs" / name.removeprefix("run.name=") / "checkpoints"
    return (max(checkpoints.glob("step-????????")) / "model.safetensors").read_bytes()


def sessions(leaders: set[int]) -> Iterator[str]:
    """The processes of some sessions that are alive."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            name, _, rest = path.read_text().rpartition(")")
            state, _, _, session = rest.split()[:4]
            if int(session) in leaders and state not in "ZX":
                yield name


def wait_for_step(run: Path, step: int, launched: Launched, seconds: float = 90) -> None:
    """Until a run has logged a step."""
    wait_for(lambda: f'"train", "step": {step},' in text_of(run / "metrics.jsonl"), launched,
             f"step {step}", seconds)


def wait_for_moment(name: str, launched: Launched, seconds: float = 90) -> None:
    """Until a rank says that it is in the middle of something."""
    wait_for((launched.folder / name).exists, launched, name, seconds)


def wait_for(condition: Callable[[], bool], launched: Launched, what: str,
             seconds: float) -> None:
    """Poll. What never comes is a failure, as is a rank that leaves before."""
    deadline = time.monotonic() + seconds
    while not condition():
        gone = [rank for rank, process in enumerate(launched.processes)
                if process.poll() is not None]
        assert not gone and time.monotonic() < deadline, (
            f"{what} never came; " + " ".join(map(launched.said, range(len(launched.processes)))))
        time.sleep(0.01)


def text_of(path: Path) -> str:
    """Of a file that may not be there yet."""
    try:
        return path.read_text()
    except OSError:
        return ""
