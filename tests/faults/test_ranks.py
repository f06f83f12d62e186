"""Several processes under faults: all leave in bounded time, one tells, and the run goes on.

Each rank is a process of its own, so that every exit code is seen. What the same command makes of
the run afterwards is compared, bit by bit, with a run that nobody disturbed.
"""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import pytest
import torch

from tests.faults.launched import (
    BASE,
    Launched,
    Torchrun,
    prepare,
    wait_for_moment,
    wait_for_step,
    weights_of,
)
from tests.parallel.runs import outcome, train

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's /proc")

DDP, FSDP = "parallel.replicate=2", "parallel.shard=2"
SETTINGS = (*BASE, "train.steps=12", "parallel.timeout_seconds=5")
HERE = re.escape(socket.gethostname())
both_layouts = pytest.mark.parametrize(
    "layout", [pytest.param(DDP, marks=pytest.mark.slow), FSDP])
both_layouts_slowly = pytest.mark.parametrize("layout", [
    pytest.param(DDP, marks=pytest.mark.slow), pytest.param(FSDP, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a small dataset."""
    folder = tmp_path_factory.mktemp("ranks")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(place):
    """The final weights of a run on two ranks, by its layout."""
    known: dict[str, bytes] = {}

    def weights(layout: str) -> bytes:
        if layout not in known:
            settings = (*SETTINGS, layout, f"run.name=whole-{layout[9:-2]}")
            train(2, "train", place, *settings)
            known[layout] = weights_of(place, settings)
        return known[layout]

    return weights


@pytest.fixture
def disturbed(place, request):
    """(settings of a run of this test's own, the folder in which its moments are told)"""
    for moment in place.glob("in-*"):
        moment.unlink()
    name = re.sub(r"\W+", "-", request.node.name).strip("-")
    return lambda layout: (*SETTINGS, layout, f"run.name={name}")


def run_of(place: Path, settings: tuple[str, ...]) -> Path:
    return place / "runs" / settings[-1].removeprefix("run.name=")


def assert_goes_on(place: Path, settings: tuple[str, ...], whole: bytes) -> None:
    """The same command once more comes to the same bits."""
    train(2, "train", place, *settings)
    assert weights_of(place, settings) == whole


def steps_saved(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-"))
                  for path in (run / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(("number", "silence", "lost", "layout"), [
    pytest.param(number, silence, lost, layout,
                 marks=[] if (number, lost, layout) == (signal.SIGKILL, 0, DDP)
                 else pytest.mark.slow)
    for number, silence in ((signal.SIGKILL, ""), (signal.SIGSTOP, " for 5 seconds"))
    for lost in (0, 1) for layout in (DDP, FSDP)])
def test_a_rank_that_is_killed_or_hangs_ends_all_and_is_named_once(
        number, silence, lost, layout, place, disturbed, undisturbed):
    settings, without = disturbed(layout), (lost,) if number == signal.SIGSTOP else ()
    with Launched(place, settings) as ranks:
        wait_for_step(run_of(place, settings), 6, ranks)
        ranks.send(lost, number)
        codes = ranks.codes(without=without)
        assert (codes[lost], codes[1 - lost]) == (None if without else -number, 1)
        [line] = ranks.last_words()
        assert re.search(f"failed: rank {lost} on {HERE} does not answer{silence}", line)
        assert "the same command continues" in line and not ranks.left_over(without)
    assert_goes_on(place, settings, undisturbed(layout))


@pytest.mark.parametrize(("fault", "layout"), [
    pytest.param("in-step:0", DDP, marks=pytest.mark.slow),
    pytest.param("in-step:5", FSDP, marks=pytest.mark.slow),
    ("in-evaluation:1", DDP),
    pytest.param("in-evaluation:1", FSDP, marks=pytest.mark.slow),
    pytest.param("in-save:0", DDP, marks=pytest.mark.slow),
    pytest.param("in-save:0", FSDP, marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_stops_all_after_one_save(
        fault, layout, place, disturbed, undisturbed):
    settings, moment = disturbed(layout), fault.partition(":")[0]
    with Launched(place, settings, faults={0 if moment == "in-save" else 1: fault}) as ranks:
        wait_for_moment(moment, ranks)
        ranks.send(1, signal.SIGTERM)
        assert ranks.codes() == [75, 75]
        [line] = ranks.last_words()
        assert line in ranks.said(0)
        assert "stopped by SIGTERM at step" in line and not ranks.left_over()
    saved = steps_saved(run_of(place, settings))
    assert f"at step {saved[-1]};" in line
    # While a save is written, training goes on: up to the next one, which would wait for it.
    expected = {"in-step:0": [1], "in-step:5": [6], "in-save:0": range(6, 11),
                "in-evaluation:1": [8]}
    assert saved[-1] in expected[fault]
    assert_goes_on(place, settings, undisturbed(layout))


@both_layouts_slowly
def test_a_second_signal_leaves_at_once(layout, place, disturbed):
    settings = disturbed(layout)
    with Launched(place, settings, faults={1: "in-step:5"}) as ranks:
        wait_for_moment("in-step", ranks)
        ranks.send(1, signal.SIGTERM)
        ranks.send(1, signal.SIGINT)
        codes = ranks.codes()
        assert codes[1] in (128 + signal.SIGINT, 128 + signal.SIGTERM) and codes[0] == 1
        assert len(ranks.last_words()) == 1


@pytest.mark.parametrize("layout", [DDP, pytest.param(FSDP, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", [pytest.param("nan:13", marks=pytest.mark.slow),
                                   "infinite-gradient:13"])
def test_what_is_not_finite_on_one_rank_changes_no_weight_on_any(
        fault, layout, place, disturbed, undisturbed):
    settings = disturbed(layout)
    with Launched(place, settings, faults={1: fault}) as ranks:  # the last micro-batch of step 6
        assert ranks.codes() == [1, 1]
        [line] = ranks.last_words()
        assert re.match(r"failed: step 6: the loss is .* the weights were not changed", line)
    assert steps_saved(run_of(place, settings)) == [5]
    assert_goes_on(place, settings, undisturbed(layout))


@both_layouts
def test_a_mistake_on_one_rank_is_shown_once_with_the_rank(layout, place, disturbed):
    settings = disturbed(layout)
    with Launched(place, settings, faults={1: "mistake:6"}) as ranks:
        assert ranks.codes() == [1, 1]
        assert ranks.last_words()[-1] == "rank 1: failed: ZeroDivisionError: a mistake in the code"
        assert sum("Traceback" in line for line in ranks.last_words()) == 1
        assert "Traceback" not in ranks.said(0) and "failed" not in ranks.said(0)


@pytest.mark.slow
def test_a_disk_that_fails_for_rank_0_is_told_once(place, disturbed, undisturbed):
    settings = disturbed(DDP)
    with Launched(place, settings, faults={0: "failing-disk:0"}) as ranks:
        assert ranks.codes() == [1, 1]
        assert ranks.last_words() == ["failed: runs/disk: Input/output error"]
    assert steps_saved(run_of(place, settings)) == []
    assert_goes_on(place, settings, undisturbed(DDP))


@pytest.mark.parametrize(("common", "apart", "line"), [
    ((), {1: "optim.lr=0.5"}, "the ranks have different optim.lr: auto on rank 0; 0.5 on rank 1"),
    pytest.param(("model.n_layr=3",), {}, "there is no field model.n_layr", marks=pytest.mark.slow),
    pytest.param((), {1: "data.dataset=elsewhere"}, "rank 1 does not see it",
                 marks=pytest.mark.slow)])
def test_a_command_that_cannot_be_is_refused_in_one_line(
        common, apart, line, place, disturbed):
    settings = (*disturbed(DDP), *common)
    with Launched(place, settings, apart=apart) as ranks:
        assert ranks.codes() == [2, 2]
        [told] = ranks.last_words()
        assert line in told and told.startswith("error: ")


@pytest.mark.slow
def test_torchrun_starts_again_after_a_kill_and_comes_to_the_same_bits(
        place, disturbed, undisturbed):
    settings = disturbed(FSDP)
    with Torchrun(place, settings, "--nproc-per-node=2", "--max-restarts=1") as launched:
        wait_for_step(run_of(place, settings), 6, launched)
        launched.kill_rank(1)
        assert launched.codes(120) == [0], launched.said(0)
        assert "continuing from" in launched.said(0) and not launched.left_over()
    assert weights_of(place, settings) == undisturbed(FSDP)


@pytest.mark.slow
def test_a_run_goes_on_with_the_hosts_that_are_left_and_with_one_that_joins(place, disturbed):
    settings = disturbed("train.steps=40")
    train(1, "train", place, *settings[:-1], "run.name=one-host")
    run = run_of(place, settings)
    with Torchrun(place, ("slow:250", *settings), "--nnodes=1:2", "--nproc-per-node=1",
                  "--max-restarts=1", hosts=2) as launched:
        wait_for_step(run, 6, launched)
        launched.kill_last_host()
        wait_for_step(run, 15, launched)
        assert launched.said(0).count("continuing from") == 1
        launched.one_more()
        assert launched.codes(180) == [0, 0], launched.said(0) + launched.said(1)
        assert launched.said(0).count("continuing from") == 2 and not launched.left_over()
    found, expected = outcome(run).weights, outcome(place / "runs/one-host").weights
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=2e-5)
