"""All twenty rows of faults, injected: what was tried, and what did not hold.

usage: python -m tests.faults [--short] [ROW …]
       python -m tests.faults --table

A line is printed for each row, and one for whatever did not end as it has to. Rows are kept in
benchmarks/results/faults.json as they come in: one that is there for the same commit is not
injected again unless it is named. --short injects a few of each, as `make test` does, and keeps
nothing. --table prints what docs/faults.md shows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import date
from typing import Any

from gpt.files import write_json
from gpt.machine.hardware import cpu_name
from tests.faults.all_rows import ROWS
from tests.faults.driver import Driver
from tests.faults.tally import Tally
from tests.tiny import ROOT

RESULT = ROOT / "benchmarks" / "results" / "faults.json"


def main(words: list[str]) -> int:
    """Inject, print, keep. 1 if anything was lost."""
    if unknown := [word for word in words if word not in ("--short", "--table")
                   and not (word.isdecimal() and int(word) in ROWS)]:
        print(f"error: there is no row {', '.join(unknown)}; there are {min(ROWS)} to {max(ROWS)}, "
              "--short and --table", file=sys.stderr)
        return 2
    if "--table" in words:
        print(table(json.loads(RESULT.read_text())))
        return 0
    short, named = "--short" in words, [int(word) for word in words if word.isdecimal()]
    rows = named or [row for row in ROWS if short or not _is_kept(row)]
    lost = 0
    for row in rows:
        began = time.monotonic()
        tally = injected(row, short)
        lost += len(tally.lost)
        seconds = time.monotonic() - began
        print(f"{row:2}  {ROWS[row].what}: {tally.tries:,} tries, {tally.survived:,} survived, "
              f"{len(tally.lost):,} lost, {seconds:.0f} s", flush=True)
        for line in (*tally.notes, *tally.lost):
            print(f"    {line}", flush=True)
        if not short:
            _keep(row, tally, seconds)
    return int(lost > 0)


def injected(row: int, short: bool) -> Tally:
    """What a row gives, in a process of its own."""
    if ROWS[row].module is None:
        return ROWS[row].run(short, ROOT)
    with Driver() as driver:
        return driver.inject(row, short)


def commit() -> str:
    """The code that is tried: a commit, and whether more than that lies here."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True,
                              check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "gpt", "data", "tests",
                  "train.py", "finetune.py", "sample.py")
    return git("rev-parse", "HEAD") + ("+" if changed else "")


def _kept() -> dict[str, Any]:
    return json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}


def _is_kept(row: int) -> bool:
    return _kept()["rows"].get(str(row), {}).get("commit") == commit()


def _keep(row: int, tally: Tally, seconds: float) -> None:
    rows = _kept()["rows"] | {str(row): {
        "what": ROWS[row].what, "tries": tally.tries, "survived": tally.survived,
        "lost": tally.lost, "notes": tally.notes, "seconds": round(seconds, 1),
        "date": date.today().isoformat(), "hardware": cpu_name(), "commit": commit()}}
    write_json(RESULT, {"rows": {str(each): rows[str(each)] for each in ROWS
                                 if str(each) in rows}})


def table(result: dict[str, Any]) -> str:
    """What was kept, in Markdown."""
    lines = ["| # | fault | tries | survived | lost | seconds | besides |", "| --- " * 7 + "|"]
    for row, found in result["rows"].items():
        lines.append(f"| {row} | {found['what']} | {found['tries']:,} | {found['survived']:,} | "
                     f"{len(found['lost']):,} | {found['seconds']:,.0f} | "
                     f"{'; '.join(found['notes'])} |")
    dates = sorted({found["date"] for found in result["rows"].values()})
    hardware = sorted({found["hardware"] for found in result["rows"].values()})
    return "\n".join([*lines, "", f"{' to '.join(dates)}, {', '.join(hardware)}."])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
