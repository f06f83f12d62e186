"""Which of the tests on several ranks are always run: of each, its first case; `make parallel` runs
all of them."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    seen = set()
    for item in items:
        if item.path.parent == Path(__file__).parent and hasattr(item.module, "run_ranks"):
            key = item.path, item.originalname
            if key in seen:
                item.add_marker(pytest.mark.parallel)
            seen.add(key)
