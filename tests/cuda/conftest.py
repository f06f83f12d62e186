"""What the tests of CUDA share: a GPU where there is one; without one they are rehearsed.

A rehearsal runs the same code on the processor, so that the tests are known to work before the
first minute on a GPU: `python -m pytest -m cuda`, on either machine.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpt.machine.device import Machine

HERE = Path(__file__).parent
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cuda)


@pytest.fixture
def gpu() -> Machine:
    """The device, in float32 to its last bit, with kernels that give the same bits every time."""
    return Machine(DEVICE, torch.float32, exact=True, deterministic=True)


@pytest.fixture
def bfloat16(gpu) -> Machine:
    return replace(gpu, dtype=torch.bfloat16)


@pytest.fixture
def float16(gpu) -> Machine:
    return replace(gpu, dtype=torch.float16)


@pytest.fixture(autouse=True)
def _compiled_code_is_not_kept():
    """Each test compiles its own: torch gives up on a function that was compiled for many shapes.
    """
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
