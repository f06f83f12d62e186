"""A short version of each row of faults that `python -m tests.faults` injects."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.all_rows import ROWS
from tests.faults.driver import Driver
from tests.faults.failing_calls import compiler

pytestmark = pytest.mark.skipif(
    compiler() is None or not Path("/proc/self/fd").exists(),
    reason="needs a C compiler and Linux's /proc")


@pytest.fixture(scope="module")
def driver():
    with Driver() as started:
        yield started


@pytest.mark.parametrize("row", [
    pytest.param(number, id=row.module) for number, row in ROWS.items() if row.module])
def test_nothing_is_lost_in(row, driver):
    tally = driver.inject(row, short=True)
    assert tally.lost == []
    assert tally.tries > 1
