"""The progress bar of everything that takes a while."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from gpt.launcher import is_silent


def progress_bar(what: str, total: float | None, unit: str, **settings: Any) -> tqdm[Any]:
    """A progress bar on standard error; in a log file it writes a line now and then."""
    interactive = sys.stderr.isatty()
    return tqdm(total=total, desc=what, unit=unit, unit_scale=unit in ("B", "tok"), ascii=" ━",
                dynamic_ncols=interactive, mininterval=0.1 if interactive else 15,
                leave=interactive, disable=is_silent(), **settings)
