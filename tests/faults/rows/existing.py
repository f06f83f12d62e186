"""Rows whose faults tests of the project inject: each test is a try."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tests.faults.tally import Tally
from tests.tiny import ROOT, script_environment


def run_tests(*words: str) -> Tally:
    """What pytest counts. Tests that are skipped are noted, and are no tries."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.xml"
        workers = ["--numprocesses", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal"]
        subprocess.run(
            [sys.executable, "-m", "pytest", *workers, f"--junit-xml={told}", *words], cwd=ROOT,
            env=script_environment(LD_PRELOAD=""), stdout=subprocess.DEVNULL, check=False)
        return counted(told)


def counted(told: Path) -> Tally:
    """What a report of pytest says, which has a line for each test."""
    tally, skipped = Tally(), 0
    for case in ElementTree.parse(told).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("skipped") is not None:
            skipped += 1
        elif (failed := case.find("failure")) is not None or (
                failed := case.find("error")) is not None:
            tally.expect(f"{name}: {(failed.get('message') or '')[:200]}")
        else:
            tally.expect()
    if skipped:
        tally.notes.append(f"{skipped} skipped")
    return tally
