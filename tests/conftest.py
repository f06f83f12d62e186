"""What every test runs under."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest

AS_IF_BFLOAT16 = str(Path(__file__).parent / "as_if_bfloat16")


def pytest_addoption(parser):
    parser.addoption("--as-if-bfloat16", action="store_true",
                     help="run as on a processor that computes in bfloat16, where `auto` means it")


def pytest_configure(config):
    if config.getoption("--as-if-bfloat16"):
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [AS_IF_BFLOAT16, *filter(None, [os.environ.get("PYTHONPATH")])])
        sys.path.insert(0, AS_IF_BFLOAT16)
        sys.modules.pop("sitecustomize", None)
        import sitecustomize  # noqa: F401


@pytest.fixture(autouse=True)
def _old_objects_are_not_looked_through():
    """Training collects garbage between its steps, which takes long in a process with thousands of
    tests' objects; frozen, those are passed over."""
    gc.freeze()
