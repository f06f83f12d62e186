"""The tests marked `cuda`, each known the moment it ends; those that passed are not run again."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from benchmarks.on_gpu.bench import Bench
from benchmarks.on_gpu.results import ROOT, Results

FOLDERS = ("tests/cuda", "tests/model/test_isolation.py", "tests/optim/test_muon.py")


class Recorder:
    """A pytest plugin that keeps outcomes, and leaves out what is known to pass."""

    def __init__(self, results: Results):
        self._results = results

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Leave out what has passed."""
        known = [item for item in items if item.nodeid in self._results.figures]
        if known:
            config.hook.pytest_deselected(items=known)
            items[:] = [item for item in items if item not in known]

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep an outcome: a test's call, or what goes wrong before or after it."""
        if report.failed:
            self._results.fail(report.nodeid, f"{report.when}: {report.longreprtext}")
        elif report.skipped:
            self._results.leave_out(report.nodeid, str(report.longrepr[-1]))
        elif report.when == "call":
            self._results.add(report.nodeid, {"outcome": "passed",
                                              "seconds": round(report.duration, 2)})


def measure(bench: Bench, results: Results) -> None:
    """Run them in this process. Importing pytest late: it is not needed elsewhere."""
    if find_spec("pytest") is None:
        results.leave_out("all tests", "pytest is not installed")
        return
    import pytest
    chosen = bench.choose(["-m", "cuda"], ["-m", "cuda", "-k", "portions or cut or drafts"])
    code = pytest.main([*(str(ROOT / folder) for folder in FOLDERS), *chosen, "--rootdir",
                        str(ROOT), "-p", "no:cacheprovider"], plugins=[Recorder(results)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED,
                    pytest.ExitCode.NO_TESTS_COLLECTED):
        results.fail("collection", f"pytest ended with {code!r}; its output says why")
