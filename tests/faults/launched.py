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
        return [*map(str, sessions(leaders)),
                *(path.name for path in Path("/dev/shm").glob("torch_*")
                  if int(path.name.split("_")[1]) in leaders)]


class Torchrun(Launched):
    """torchrun, once or as on several hosts, and the ranks that it starts."""

    def __init__(self, folder: Path, settings: tuple[str, ...], *words: str, hosts: int = 1):
        self.folder, self.processes = folder, []
        self._id, port = f"test-{os.getpid()}-{free_port()}", free_port()
        self._options = ("-m", "torch.distributed.run", f"--rdzv-id={self._id}",
                         "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}",
                         "--local-addr=127.0.0.1")
        self._rest = *words, FAULTY, *settings
        for _ in range(hosts):
            self.one_more()

    def one_more(self) -> None:
        """As on one host more. One that joins later needs the variable (see docs/scale.md)."""
        is_first = int(not self.processes)
        self._start(*self._options, f"--rdzv-conf=is_host={is_first},last_call_timeout=3",
                    *self._rest, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")

    def kill_last_host(self) -> None:
        """SIGKILL to the youngest torchrun and to its ranks, as when their host is lost."""
        agent = self.processes.pop()
        for pid in (agent.pid, *(pid for pid, _ in self._ranks() if parent(pid) == agent.pid)):
            os.kill(pid, signal.SIGKILL)
        agent.wait()

    def kill_rank(self, rank: int) -> None:
        """SIGKILL to the process that torchrun has given this rank."""
        for pid, environment in self._ranks():
            if f"RANK={rank}" in environment:
                os.kill(pid, signal.SIGKILL)

    def left_over(self, without: tuple[int, ...] = ()) -> list[str]:
        """As Launched's, and of the ranks, to each of which torchrun gives a session of its own."""
        return [*super().left_over(without), *(str(pid) for pid, _ in self._ranks())]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        for pid, _ in self._ranks():
            os.kill(pid, signal.SIGKILL)

    def _ranks(self) -> list[tuple[int, list[str]]]:
        """(process, its environment) of all ranks that are alive."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().decode(errors="replace").split("\0")
                if f"TORCHELASTIC_RUN_ID={self._id}" in words:
                    found.append((int(path.parent.name), words))
        return found


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


def sessions(leaders: set[int]) -> Iterator[int]:
    """The processes of some sessions that are alive."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            state, _, _, session = stat(int(path.name))
            if int(session) in leaders and state not in "ZX":
                yield int(path.name)


def parent(pid: int) -> int | None:
    """Of a process; None: it is gone."""
    with contextlib.suppress(OSError):
        return int(stat(pid)[1])
    return None


def stat(pid: int) -> list[str]:
    """State, parent, process group and session of a process, as Linux tells them."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]


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
