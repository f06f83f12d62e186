"""Two hosts, as network namespaces: one run, whatever becomes of the cable between them."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults.launched import BASE, prepare, text_of, weights_of
from tests.parallel.runs import assert_same_run, outcome, train
from tests.parallel.two_hosts import TwoHosts, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")

SETTINGS = (*BASE, "train.steps=12", "parallel.timeout_seconds=5")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a small dataset, and a run of one process."""
    folder = tmp_path_factory.mktemp("hosts")
    prepare(folder)
    train(1, "train", folder, *SETTINGS, "run.name=alone")
    return folder


def ends(processes: list[subprocess.Popen[str]]) -> list[int]:
    return [process.wait(120) for process in processes]


def last_words(folder: Path, host: str) -> list[str]:
    return [line for line in text_of(folder / f"{host}.txt").splitlines()
            if re.match(r"(rank \d: )?(failed|error): ", line)]


@pytest.mark.slow
def test_a_run_on_two_hosts_is_that_of_one_process(place):
    with TwoHosts() as hosts:
        assert ends(hosts.start(place, *SETTINGS, "run.name=two")) == [0, 0]
        assert not hosts.left_over()
    assert_same_run(outcome(place / "runs/two"), outcome(place / "runs/alone"))


@pytest.mark.slow
def test_hosts_that_lose_each_other_each_say_so_and_the_run_goes_on(place):
    settings = (*SETTINGS, "parallel.shard=2", "run.name=cut")
    train(2, "train", place, *settings[:-1], "run.name=whole")
    with TwoHosts() as hosts:
        hosts.start(place, *settings)
        metrics = place / "runs/cut/metrics.jsonl"
        until(lambda: '"train", "step": 6,' in text_of(metrics), 120)
        hosts.cut()
        until(lambda: not hosts.ranks(), 60)
        first, second = hosts.names
        [here], [there] = last_words(place, first), last_words(place, second)
        assert f"failed: rank 1 on {second} does not answer" in here
        assert re.search(f"on {first}.* does not answer for 5 seconds", there)
    with TwoHosts() as hosts:
        assert ends(hosts.start(place, *settings)) == [0, 0]
    assert weights_of(place, settings) == weights_of(place, ("run.name=whole",))


@pytest.mark.slow
def test_a_slow_network_changes_nothing(place):
    with TwoHosts() as hosts:
        if not hosts.delay(20):
            pytest.skip("this kernel cannot delay packets (sch_netem)")
        assert ends(hosts.start(place, *SETTINGS, "run.name=slow")) == [0, 0]
    assert_same_run(outcome(place / "runs/slow"), outcome(place / "runs/alone"))


def until(condition, seconds: float) -> None:
    """Poll. What never comes is a failure."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
