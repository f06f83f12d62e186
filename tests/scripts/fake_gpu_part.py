"""A part of `benchmarks/gpu.py` for tests: arms that succeed, fail, are left out or never end."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def measure(bench: Any, results: Any, folder: str, *arms: str) -> None:
    """Each arm leaves a line in a file when it is measured."""
    for arm in arms:
        if arm == "absent":
            results.leave_out(arm, "the package absent is not installed")
        else:
            results.measure(arm, lambda arm=arm: figures_of(arm, Path(folder)))


def figures_of(arm: str, folder: Path) -> dict[str, Any]:
    with (folder / "measured").open("a") as file:
        file.write(f"{arm}\n")
    if arm == "broken":
        raise RuntimeError("it does not work")
    if arm == "endless" and not (folder / "hurry").exists():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (folder / "child.new").write_text(str(child.pid))
        (folder / "child.new").rename(folder / "child")
        time.sleep(600)
    return {"tokens_per_second": 1.5}
