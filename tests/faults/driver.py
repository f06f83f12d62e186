"""A process that has imported all, whose calls can fail, and that injects rows of faults.

It is asked by lines of JSON, [row, short], and answers each with a line, a tally.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import traceback
from types import TracebackType

from tests.faults.failing_calls import preloaded
from tests.faults.tally import Tally
from tests.tiny import ROOT, script_environment


class Driver:
    """The process, while it is needed."""

    def __enter__(self) -> Driver:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.faults.driver import serve; serve()"], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
            env=script_environment(**preloaded()))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait(60)

    def inject(self, row: int, short: bool) -> Tally:
        """What a row gives."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([row, short]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"row {row}: the driver has died"
        return Tally(**json.loads(answer))


def serve() -> None:
    """Answer until nobody asks; what is printed meanwhile goes to stderr."""
    from tests.faults.all_rows import ROWS
    from tests.faults.rows.saves import scratch
    from tests.faults.warm import import_verbs

    import_verbs()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        row, short = json.loads(line)
        with scratch() as folder:
            try:
                tally = ROWS[row].run(short, folder)
            except Exception:
                tally = Tally(1, [traceback.format_exc()])
        answers.write(json.dumps(tally.as_json()) + "\n")
        answers.flush()
