"""Processes that work together: what they tell each other, and that they end alike."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from tqdm import tqdm

from gpt import launcher
from gpt.errors import Stopped, UserError, WorkFailed
from gpt.launcher import ALONE, Place
from gpt.machine import ranks as module
from gpt.machine.device import Machine
from gpt.machine.ranks import Ranks, joined, share_cores
from gpt.machine.signals import Interrupted
from gpt.machine.watch import Watch
from tests.parallel.processes import free_port, run_ranks

SIZES = [1, 2, 4]
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def group() -> Ranks:
    return Ranks(dist.group.WORLD if dist.is_initialized() else None)


def on(size: int, work, *arguments):
    """What work gives on each of so many ranks; one is alone, without a group."""
    return [work(*arguments)] if size == 1 else run_ranks(size, work, *arguments)


def told() -> list:
    ranks, calls = group(), []

    def decide() -> str:
        calls.append(ranks.rank)
        return f"decided by {ranks.rank}"

    return [ranks.first(decide), calls, ranks.all(ranks.rank ** 2),
            ranks.sums(ranks.rank, 2**40 + ranks.rank), ranks.most(-ranks.rank, ranks.rank),
            ranks.add_up(torch.tensor([1.0, ranks.rank])).tolist()]


@pytest.mark.parametrize("size", SIZES)
def test_what_ranks_tell_each_other_is_the_same_on_all(size):
    expected = ["decided by 0", [rank ** 2 for rank in range(size)],
                [sum(range(size)), size * 2**40 + sum(range(size))], [0, size - 1],
                [size, sum(range(size))]]
    for rank, (decided, calls, *rest) in enumerate(on(size, told)):
        assert [decided, *rest] == expected
        assert calls == ([0] if rank == 0 else [])  # nobody else decides


def in_first() -> tuple[str, list[str]]:
    ranks, events = group(), []

    @contextlib.contextmanager
    def context() -> Iterator[str]:
        events.append("in")
        yield "a folder"
        events.append("out")

    with ranks.first_has(context()) as what:
        events.append("work")
    return what, events


@pytest.mark.parametrize("size", SIZES)
def test_a_context_that_rank_0_is_in_is_known_to_all(size):
    answers = on(size, in_first)
    assert answers[0] == ("a folder", ["in", "work", "out"])
    assert answers[1:] == [("a folder", ["work"])] * (size - 1)


FAILURES = {"interrupted": Interrupted("stopped by SIGTERM"), "user": UserError("no such file"),
            "broken": ValueError("a bug")}


def failing(who: int, kind: str, how: str) -> tuple[str, str, bool]:
    """(kind of error, its text, whether this rank tells of it)"""
    ranks = group()
    launcher.let_tell(lambda: True)

    def work() -> int:
        if ranks.rank == who:
            raise FAILURES[kind]
        return ranks.rank

    try:
        ranks.together(work) if how == "together" else ranks.first(work)
    except Exception as error:
        return type(error).__name__, str(error), launcher.words_of_failure("it failed") is not None
    finally:
        launcher._tells.clear()
    return "none", "", False


@pytest.mark.parametrize(("size", "who", "how"), [
    (2, 1, "together"), (4, 2, "together"), (2, 0, "together"), (2, 0, "first"), (4, 0, "first")])
@pytest.mark.parametrize("kind", ["interrupted", "user", "broken"])
def test_if_one_rank_ends_all_end_alike_and_that_one_tells(size, who, how, kind):
    error = FAILURES[kind]
    for rank, (name, text, tells) in enumerate(run_ranks(size, failing, who, kind, how)):
        assert tells == (rank == who)
        if kind == "broken" and rank != who:
            assert (name, text) == ("WorkFailed", "another rank failed: a bug")
        else:
            assert (name, text) == (type(error).__name__, str(error))


def ending_after(who: int) -> bool:
    """Whether this rank tells of what all end with, after an error of one of them that they heard
    of before and that ended nothing."""
    ranks = group()
    launcher.let_tell(lambda: True)
    with contextlib.suppress(Interrupted):
        ranks.together(lambda: raise_if(ranks.rank == who))
    ranks.alike(Stopped("stopped by SIGTERM at step 8"))
    return launcher.words_of_failure("it is over") is not None


def raise_if(so: bool) -> None:
    if so:
        raise FAILURES["interrupted"]


@pytest.mark.parametrize("who", [0, 1])
def test_rank_0_tells_of_the_end_whoever_was_heard_before(who):
    assert run_ranks(2, ending_after, who) == [True, False]


def restarted() -> int:
    os.environ["TORCHELASTIC_RESTART_COUNT"] = os.environ["RANK"]
    with joined("cpu") as ranks:
        return ranks.size


def test_a_host_that_joins_a_run_which_was_restarted_meets_the_others():
    assert run_ranks(2, restarted, join=False) == [2, 2]


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_rank_that_leaves_is_heard_on_a_line_of_its_own(is_silent, monkeypatch):
    aloud = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", aloud)
    monkeypatch.setattr(sys, "stderr", io.StringIO() if is_silent else aloud)
    monkeypatch.setattr("os._exit", sys.exit)
    watch = Watch(Mock(), Place(rank=1, world_size=2), ["here", "there"], 5.0)
    watch._is_first = True
    with tqdm(total=3, file=sys.stderr), pytest.raises(SystemExit, match="1"):
        watch._leave("rank 0 on here does not answer")
    said = re.split(r"[\r\n]+", aloud.getvalue())
    assert "failed: rank 0 on here does not answer" in said


def failing_later(who: int) -> tuple[str, list[int]]:
    try:
        failing(who, "user", "together")
        return "fine", group().together(lambda: group().rank * 10)
    except Exception as error:
        return str(error), []


def test_what_each_rank_found_stands_in_their_order_and_a_failure_leaves_the_group_usable():
    assert run_ranks(4, failing_later, 3) == [("fine", [0, 10, 20, 30])] * 4


def dealt(count: int) -> tuple[list[str], list[int]]:
    ranks, mine = group(), []

    def work(items):
        mine.extend(items)
        return [f"{item}!" for item in items]

    return ranks.dealt_out(list(range(count)), work), mine


@pytest.mark.parametrize("count", [0, 1, 2, 5, 7, 8])
@pytest.mark.parametrize("size", SIZES)
def test_dealt_out_work_comes_back_in_order_and_is_done_once(size, count):
    answers = on(size, dealt, count)
    assert [results for results, _ in answers] == [[f"{i}!" for i in range(count)]] * size
    assert sorted(item for _, mine in answers for item in mine) == list(range(count))
    assert max(len(mine) for _, mine in answers) == -(-count // size)


def disagreeing(values: list[str]) -> str:
    ranks = group()
    try:
        ranks.agree(same="x", **{"optim.lr": values[ranks.rank]})
    except UserError as error:
        return str(error)
    return "agreed"


@pytest.mark.parametrize(("values", "said"), [
    (["a", "a"], "agreed"),
    (["a", "b"], "the ranks have different optim.lr: a on rank 0; b on rank 1; give all of them "
                 "the same"),
    (["a", "b", "b", "a"], "the ranks have different optim.lr: a on rank 0 and 1 more; b on rank 1 "
                           "and 1 more; give all of them the same"),
    (["a", "b", "c", "d"], "the ranks have different optim.lr: a on rank 0; b on rank 1; c on rank "
                           "2; give all of them the same")])
def test_ranks_that_do_not_agree_are_told_on_what_and_which(values, said):
    assert run_ranks(len(values), disagreeing, values) == [said] * len(values)


def hearing(signals: list[str | None]) -> tuple[float, str | None]:
    ranks = group()
    machine = Machine(torch.device("cpu"), torch.float32, ranks=ranks)
    machine.stop.signal_name = signals[ranks.rank]
    return machine.agreed(10.0 + ranks.rank), machine.stop.everywhere


@pytest.mark.parametrize(("signals", "heard"), [
    ([None, "SIGTERM"], "SIGTERM"), (["SIGUSR1", None, None, None], "SIGUSR1"),
    ([None, None], None), ([None], None), (["SIGINT"], "SIGINT")])
def test_seconds_are_rank_0s_and_a_signal_to_one_is_known_to_all(signals, heard):
    assert on(len(signals), hearing, signals) == [(10.0, heard)] * len(signals)


@pytest.mark.parametrize(("asked", "processes", "threads"), [
    (None, 2, 4), ("1", 2, 4), ("3", 2, 3), ("1", 16, 1), ("many", 4, 2)])
def test_processes_of_a_host_share_its_cores_unless_threads_were_asked_for(
        asked, processes, threads, monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 8)
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert share_cores(Place(0, processes, 0, processes)) == threads
    assert given == [threads]


def meeting() -> tuple[str, list[int]]:
    with joined("cpu", 60.0) as ranks:
        return repr(ranks), ranks.all(ranks.rank)


def test_processes_of_a_launcher_meet_and_part():
    for _ in range(2):  # the first meeting has ended
        answers = run_ranks(2, meeting, join=False)
        assert answers == [("rank 0 of 2", [0, 1]), ("rank 1 of 2", [0, 1])]


def test_without_a_launcher_there_is_one_rank(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with joined("cpu", 60.0) as ranks:
        assert (ranks.rank, ranks.size, ranks.here) == (0, 1, ALONE)
        assert not dist.is_initialized()


def test_hosts_that_nobody_tells_where_to_meet_are_refused(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in zip(VARIABLES, ("1", "4", "1", "2"), strict=False):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="torchrun started 4 processes on several hosts, and nobody "
                                        "says where they meet: set MASTER_ADDR to the first host"
                       ), joined("cpu", 60.0):
        pass


def test_a_port_that_nobody_listens_on_is_one_line(monkeypatch):
    port = str(free_port())
    monkeypatch.setattr("gpt.machine.ranks.MEETING_SECONDS", 5.0)
    for name, value in zip(VARIABLES, ("1", "2", "1", "2", "127.0.0.1", port), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(WorkFailed) as caught, joined("cpu", 5.0):
        pass
    said = str(caught.value)
    assert f"rank 1 cannot meet the others at 127.0.0.1:{port} (MASTER_ADDR, MASTER_PORT)" in said
    assert "\n" not in said
