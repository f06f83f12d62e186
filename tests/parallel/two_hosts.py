"""Two hosts on one machine: network namespaces with a cable between them that can be cut.

usage: python tests/parallel/two_hosts.py FOLDER section.field=value ...

As root, with iproute2's ip. On each host a torchrun starts one rank of train.py in the folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent.parent
CABLE = "cable"
PORT = 29400


class TwoHosts:
    """Hosts NAME-1 and NAME-2, with addresses 10.77.0.1 and 10.77.0.2."""

    def __init__(self, name: str = f"host{os.getpid()}"):
        self.names = [f"{name}-1", f"{name}-2"]
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> TwoHosts:
        for name in self.names:
            ip("netns", "add", name)
        first, second = self.names
        ip("link", "add", CABLE, "netns", first, "type", "veth", "peer", "name", CABLE,
           "netns", second)
        for number, name in enumerate(self.names, start=1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", CABLE)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", CABLE, "up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for name in self.names:
            for pid in inside(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ip("netns", "delete", name)

    def start(self, folder: Path, *settings: str, restarts: int = 0) -> list[subprocess.Popen[str]]:
        """A torchrun on each host, which writes what is said into FOLDER/HOST.txt."""
        self._started = [self._torchrun(number, folder, settings, restarts) for number in (0, 1)]
        return self._started

    def _torchrun(self, number: int, folder: Path, settings: tuple[str, ...], restarts: int
                  ) -> subprocess.Popen[str]:
        name = self.names[number]
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2",
                   "--nproc-per-node=1", f"--max-restarts={restarts}", "--rdzv-backend=c10d",
                   f"--rdzv-endpoint=10.77.0.1:{PORT}", "--rdzv-id=two",
                   f"--rdzv-conf=is_host={number == 0},join_timeout=60",
                   f"--local-addr=10.77.0.{number + 1}", str(ROOT / "train.py"), *settings]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": CABLE, "OMP_NUM_THREADS": "1",
                                    "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        with (folder / f"{name}.txt").open("w") as said:
            return subprocess.Popen(
                ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c",
                 'hostname "$0" && exec "$@"', name, *command],
                cwd=folder, env=environment, text=True, stdin=subprocess.DEVNULL, stdout=said,
                stderr=said, start_new_session=True)

    def cut(self) -> None:
        """From now on, nothing arrives."""
        for name in self.names:
            ip("-n", name, "link", "set", CABLE, "down")

    def mend(self) -> None:
        """As before."""
        for name in self.names:
            ip("-n", name, "link", "set", CABLE, "up")

    def delay(self, milliseconds: int) -> bool:
        """Let what is sent arrive later; whether the kernel can."""
        return all(subprocess.run(
            ["ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", CABLE, "root", "netem",
             "delay", f"{milliseconds}ms"], capture_output=True).returncode == 0
            for name in self.names)

    def ranks(self) -> list[int]:
        """The processes that train, but for torchrun's own."""
        return [pid for pid in self.left_over() if script_of(pid).endswith("train.py")]

    def left_over(self) -> list[int]:
        """Processes that are still there."""
        return [pid for name in self.names for pid in inside(name)]


def ip(*words: str) -> str:
    """Run iproute2's ip."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


def inside(name: str) -> list[int]:
    """The processes of a namespace."""
    return [int(pid) for pid in ip("netns", "pids", name).split()]


def script_of(pid: int) -> str:
    """The file that a Python process runs, as it was given."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        return next((word for word in words[1:] if not word.startswith("-")), "")
    return ""


def why_not() -> str | None:
    """Why this machine cannot be two hosts; None: it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("ip") is None:
        return "two hosts are network namespaces, which need root and iproute2's ip"
    if subprocess.run(["ip", "netns", "add", "probe"], capture_output=True).returncode:
        return "this kernel, or this container, has no network namespaces"
    ip("netns", "delete", "probe")
    return None


def main(folder: Path, settings: list[str]) -> None:
    """An undisturbed run; its seconds, and what was said."""
    with TwoHosts() as hosts:
        began = time.monotonic()
        codes = [process.wait() for process in hosts.start(folder, *settings)]
        print(f"exit codes {codes} after {time.monotonic() - began:.1f} s")
        for name in hosts.names:
            print(f"{name}: {(folder / f'{name}.txt').read_text()}")


if __name__ == "__main__":
    if why := why_not():
        sys.exit(why)
    main(Path(sys.argv[1]), sys.argv[2:])
