"""What is known of a part: written the moment it is known, so that a cut loses nothing."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt.files import write_json
from gpt.machine.hardware import cpu_name, package_version

ROOT = Path(__file__).resolve().parent.parent.parent
SAME = ("card", "driver", "torch")  # figures of another machine are measured anew


def environment() -> dict[str, str]:
    """The card, its driver, the versions, and a hash of the code that is measured."""
    import torch
    card, driver = cpu_name(), "none"
    if torch.cuda.is_available():
        card, driver = torch.cuda.get_device_name(), "unknown"
        if shutil.which("nvidia-smi"):
            told = subprocess.run(
                ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                capture_output=True, text=True, check=False)
            driver = told.stdout.split("\n")[0].strip() or driver
    return {"card": card, "driver": driver, "torch": torch.__version__,
            "cuda": str(torch.version.cuda), "python": platform.python_version(),
            "transformers": package_version("transformers") or "not installed",
            "code": code_hash()}


def code_hash() -> str:
    """Of all that the library's results rest on."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "gpt").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


class Results:
    """One part's file: figures by arm, arms that failed or were left out, and whether it is whole.

    same: what must be as it was for figures to count; the rest of the environment is only told.
    """

    def __init__(self, path: Path, here: dict[str, str], same: tuple[str, ...] = SAME):
        self._path = path
        self._kept: dict[str, Any] = {**here, "complete": False, "figures": {}, "failed": {},
                                      "left_out": {}}
        self.last_failed: dict[str, str] = {}  # in the call before
        self._wait: set[str] = set()  # arms that are tried last: those, and one that ended the call
        self._later: list[tuple[str, Callable[[], dict[str, Any]]]] = []
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            if all(there.get(key) == here[key] for key in same):
                self.last_failed = there["failed"]
                self._wait = {*there["failed"], there.get("started")}
                self._kept |= {"figures": there["figures"], "complete": there["complete"]}

    @property
    def complete(self) -> bool:
        """Whether nothing is missing that could be measured here."""
        return bool(self._kept["complete"])

    @property
    def figures(self) -> dict[str, Any]:
        """By arm."""
        return self._kept["figures"]

    @property
    def failed(self) -> dict[str, str]:
        """The last lines of what went wrong, by arm."""
        return self._kept["failed"]

    def measure(self, arm: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What is known of an arm, or what `work` finds; None if that fails, which is kept too.

        What failed in the last call, or ended it, waits until all others are known: on CUDA one
        arm can take the rest with it.
        """
        if arm not in self.figures:
            if arm in self._wait:
                self._wait.remove(arm)
                self._later.append((arm, work))
                return None
            start = time.monotonic()
            self._kept["started"] = arm
            self._write()
            try:
                figures = work()
            except Exception:
                self.fail(arm, traceback.format_exc())
                return None
            self.add(arm, {**figures, "seconds_in_all": round(time.monotonic() - start, 1)})
        return self.figures[arm]

    def add(self, arm: str, figures: dict[str, Any]) -> None:
        """Keep an arm's figures."""
        self.figures[arm] = figures
        self.failed.pop(arm, None)
        self._kept.pop("started", None)
        self._write()
        print(f"  {arm}: {line_of(figures)}", flush=True)

    def fail(self, arm: str, error: str) -> None:
        """Keep why an arm has no figures."""
        self.failed[arm] = error[-4000:]
        self._kept.pop("started", None)
        self._write()
        print(f"  {arm} FAILED\n{error}", flush=True)

    def leave_out(self, arm: str, why: str) -> None:
        """Say that an arm cannot be measured here."""
        self._kept["left_out"][arm] = why
        self._write()
        print(f"  {arm}: left out, {why}", flush=True)

    def finish(self) -> None:
        """All arms were tried, but for those that waited; whole if none failed."""
        for arm, work in self._later:
            self.measure(arm, work)
        self._kept["complete"] = not self.failed
        self._write()

    def _write(self) -> None:
        write_json(self._path, self._kept)


def line_of(figures: dict[str, Any]) -> str:
    """The numbers and short texts among some figures, for people."""
    return ", ".join(f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in figures.items()
                     if isinstance(value, (int, float)) or (isinstance(value, str)
                                                            and len(value) < 40))
