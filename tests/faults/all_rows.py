"""The twenty rows of faults, what each is about, and where it is."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.rows.existing import run_tests
from tests.faults.tally import Tally


@dataclass(frozen=True)
class Row:
    """One kind of fault. module: of tests/faults/rows, which injects it in warm processes; or
    tests: of the project, as pytest is given them."""

    what: str
    module: str | None = None
    tests: tuple[str, ...] = ()

    def run(self, short: bool, folder: Path) -> Tally:
        """Inject it, in a folder that is thrown away."""
        if self.module is None:
            return run_tests(*self.tests)
        module = importlib.import_module(f"tests.faults.rows.{self.module}")
        work: Callable[[bool, Path], Tally] = module.run
        return work(short, folder)


_ALL = "-mslow or not slow"
ROWS: dict[int, Row] = {
    1: Row("one run, killed at random moments", "killed"),
    2: Row("the n-th call of a save fails, for every n", "failing"),
    3: Row("the disk is full during a save", "full_disk"),
    4: Row("a crash after any call: what was not flushed is lost, torn or reordered",
           "lost_writes"),
    5: Row("files cut off, bits flipped", "damaged"),
    6: Row("hostile pickles wherever a file could be one", "pickles"),
    7: Row("hostile metadata", "metadata"),
    8: Row("names that lead out of the folder", "names"),
    9: Row("losses and gradients that are not finite", tests=(
        "tests/training/test_guard.py", "tests/training/test_divergence.py",
        "tests/training/test_replay.py", "tests/verbs/test_replaying.py",
        "tests/training/test_loop.py::"
        "test_a_loss_that_is_not_finite_is_said_and_nothing_is_saved_after_it",
        "tests/training/test_loop.py::test_a_gradient_that_is_not_finite_is_said_too",
        "tests/runs/test_background.py::test_weights_that_are_not_finite_are_not_saved",
        "tests/faults/test_ranks.py::"
        "test_what_is_not_finite_on_one_rank_changes_no_weight_on_any", _ALL)),
    10: Row("going on from any step, with another number of processes", tests=(
        "tests/training/test_resume.py", "tests/training/test_continuing.py",
        "tests/parallel/test_elastic.py", _ALL)),
    11: Row("signals in a step, an evaluation, a save", tests=(
        "tests/scripts/test_signals.py", "tests/training", "tests/faults/test_ranks.py", "-k",
        "signal or stopped or asked_to_stop or interrupt", _ALL)),
    12: Row("ranks that are killed or hang", tests=(
        "tests/faults/test_ranks.py", "tests/machine/test_ranks.py", _ALL)),
    13: Row("two at once, and locks of the killed", "two_at_once"),
    14: Row("no place to write, no home, no temporary files", "nowhere"),
    15: Row("clocks, times of files, copied folders", "clocks"),
    16: Row("text of every bad kind", tests=(
        "tests/data/sources", "tests/data/documents", "tests/data/test_prepare.py",
        "tests/faults/test_killed_preparation.py", _ALL)),
    17: Row("configurations of every bad kind", tests=("tests/configuration", _ALL)),
    18: Row("a tokenizer, a dataset or a size that does not fit", tests=(
        "tests/training/test_intact.py", "tests/batches/test_pretraining_batches.py",
        "tests/training/test_task.py",
        "tests/shards/test_reading.py", "tests/tokenizer/test_refusals.py",
        "tests/runs/test_saved_model.py", _ALL)),
    19: Row("prompts and settings of every bad kind", tests=(
        "tests/generation/test_sampling.py", "tests/generation/test_engine.py",
        "tests/language_model", "tests/terminal", _ALL)),
    20: Row("a server among hostile clients", tests=(
        "tests/serve/test_faults.py", "tests/serve/test_bounds.py",
        "tests/serve/test_any_request.py", _ALL)),
}
