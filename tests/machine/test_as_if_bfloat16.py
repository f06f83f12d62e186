"""The suite can be run as on a processor that computes in bfloat16 (pytest --as-if-bfloat16)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gpt.machine.hardware import computes_in_bfloat16
from tests.tiny import ROOT

pytestmark = pytest.mark.auto

FOLDER = str(ROOT / "tests" / "as_if_bfloat16")
ASK = "from gpt.machine.hardware import computes_in_bfloat16 as ask; print(ask('cpu'))"


def test_a_process_with_the_folder_on_its_path_computes_in_bfloat16():
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": FOLDER})
    assert done.stdout.strip() == "True"


def test_the_option_reaches_this_process_and_those_that_it_starts(request):
    asked = request.config.getoption("--as-if-bfloat16")
    assert (FOLDER in sys.path) == (FOLDER in os.environ.get("PYTHONPATH", "")) == asked
    assert computes_in_bfloat16("cpu") or not asked
