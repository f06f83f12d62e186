"""Processes that work together: which one this is, and what they tell each other.

All of them run the same program. Rank 0 alone writes files and speaks; what has to be the same
everywhere is decided there, or added up over all. Alone, all of this costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from gpt import launcher
from gpt.configuration import ParallelConfig
from gpt.errors import Stopped, UserError, WorkFailed
from gpt.launcher import ALONE, Place
from gpt.machine.neighbours import cores
from gpt.machine.watch import Watch

T = TypeVar("T")
R = TypeVar("R")
POLL_SECONDS = 0.2
TIMEOUT = ParallelConfig().timeout_seconds
MEETING_SECONDS = 120.0  # at least: some hosts take longer to begin than others


class Ranks:
    """This process among those of a group.

    rank: of `size`. group: torch.distributed's; None: this process is alone. watch: looks after
    the others of all groups.
    """

    def __init__(self, group: Any = None, watch: Watch | None = None, here: Place = ALONE):
        self.group, self.here, self._watch = group, here, watch
        self.rank, self.size, self._waits = 0, 1, 0
        if group is not None:
            import torch.distributed as dist
            self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def __repr__(self) -> str:
        return f"rank {self.rank} of {self.size}"

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def among(self, group: Any) -> Ranks:
        """The same process among those of a smaller group; None: alone."""
        return Ranks(group, self._watch, self.here)

    def all(self, value: T) -> list[T]:
        """What each rank says, in their order."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def sums(self, *numbers: float) -> list[float]:
        """Each number summed over the ranks, exactly where these are whole."""
        return self._reduced(numbers, "SUM")

    def most(self, *numbers: float) -> list[float]:
        """The largest that a rank has of each."""
        return self._reduced(numbers, "MAX")

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the ranks, in place; on its device."""
        if self.size > 1:
            import torch.distributed as dist
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def _reduced(self, numbers: Sequence[float], how: str) -> list[float]:
        if self.size == 1:
            return list(numbers)
        import torch.distributed as dist
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor, getattr(dist.ReduceOp, how), group=self.group)
        return tensor.tolist()

    def first(self, work: Callable[[], T], patiently: bool = False) -> T:
        """What `work` gives on rank 0, on all; they end alike if it fails.

        patiently: it may take longer than others wait for each other as a rule.
        """
        if self.size == 1:
            return work()
        import torch.distributed as dist
        mine = _outcome(work) if self.is_first else None
        if patiently:
            self._wait_for_first()
        told: list[Any] = [mine and _for_others(mine)]
        dist.broadcast_object_list(told, group=self.group, group_src=0)
        return _unpacked(mine or told[0], mine=self.is_first)

    def _wait_for_first(self) -> None:
        """Until rank 0 comes here; others are looked after meanwhile."""
        assert self._watch is not None
        self._waits += 1
        key = f"waits/{self._waits}"
        if self.is_first:
            self._watch.store.set(key, "come")
        while not self._watch.store.check([key]):
            time.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def first_has(self, context: contextlib.AbstractContextManager[T]) -> Iterator[T]:
        """A context that rank 0 alone is in; what it gives, all have. It ends after all have left.
        """
        with contextlib.ExitStack() as stack:
            yield self.first(lambda: stack.enter_context(context))
            self.all(None)

    def together(self, work: Callable[[], T]) -> list[T]:
        """What each rank's own work gives; if one is stopped or fails, all end alike."""
        if self.size == 1:
            return [work()]
        mine = _outcome(work)
        outcomes = self.all(_for_others(mine))
        outcomes[self.rank] = mine
        for rank, outcome in enumerate(outcomes):
            if not outcome[0]:
                _unpacked(outcome, mine=rank == self.rank)
        return [_unpacked(outcome, mine=True) for outcome in outcomes]

    def dealt_out(self, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
        """One result per item, in order; each rank works on its share of them."""
        results: list[Any] = [None] * len(items)
        parts = self.together(lambda: work(items[self.rank::self.size]))
        for rank, part in enumerate(parts):
            results[rank::self.size] = part
        return results

    def alike(self, error: E) -> E:
        """An error that all ranks are about to raise: rank 0 tells."""
        return _alike(error, mine=self.is_first)

    def agree(self, **what: str) -> None:
        """Raise UserError unless all ranks say the same of everything."""
        said = self.all(what)
        for name in what:
            groups: dict[str, list[int]] = {}
            for rank, each in enumerate(said):
                groups.setdefault(each[name], []).append(rank)
            if len(groups) > 1:
                found = "; ".join(f"{value} on rank {ranks[0]}"
                                  + (f" and {len(ranks) - 1} more" if ranks[1:] else "")
                                  for value, ranks in list(groups.items())[:3])
                raise self.alike(UserError(f"the ranks have different {name}: {found}; give all "
                                           "of them the same"))


def _outcome(work: Callable[[], Any]) -> tuple[bool, Any]:
    """(whether it succeeded, what it gave or why not)"""
    try:
        return True, work()
    except Exception as error:
        return False, error


def _for_others(outcome: tuple[bool, Any]) -> tuple[bool, Any]:
    """The same, as it can be sent: not every error can."""
    fine, value = outcome
    if fine or isinstance(value, UserError | WorkFailed | Stopped):
        return outcome
    return False, WorkFailed(f"another rank failed: {value}")


def _unpacked(outcome: tuple[bool, Any], mine: bool) -> Any:
    fine, value = outcome
    if fine:
        return value
    raise _alike(value, mine)


E = TypeVar("E", bound=Exception)


def _alike(error: E, mine: bool) -> E:
    """An error that all ranks raise: one of them tells, whoever told of one before it."""
    launcher.let_tell(lambda: mine)
    return error


@contextlib.contextmanager
def joined(device: str, timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """Meet the other processes of a launch, if there are any; the group ends with the block.

    device: as run.device names it. timeout: seconds of silence after which one is taken for lost.
    """
    here = launcher.place()
    if here == ALONE:
        yield Ranks()
        return
    if here.master is None:
        raise UserError(f"{here.launcher} started {here.world_size} processes on several hosts, "
                        "and nobody says where they meet: set MASTER_ADDR to the first host")
    import torch.distributed as dist
    store = _store(here, timeout)
    on_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    backend = "cpu:gloo,cuda:nccl" if on_cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.world_size,
                            timeout=timedelta(seconds=timeout))
    try:
        hosts = Ranks(dist.group.WORLD).all(socket.gethostname())
        with Watch(store, here, hosts, timeout) as watch:
            launcher.let_tell(watch.is_first_to_fail)
            try:
                yield Ranks(dist.group.WORLD, watch, here)
            except Exception as error:
                if not _is_about_others(error):
                    raise
                raise WorkFailed(watch.what_happened(error)) from error
    finally:  # after all was told: others fail as soon as they lose this process
        with contextlib.suppress(Exception):  # what is left of it ends with the process
            dist.destroy_process_group()


def _store(here: Place, timeout: float) -> Any:
    """Where they meet: torchrun's own, or rank 0's. All have come there when it is returned; raises
    WorkFailed if that takes too long."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous
    assert here.master is not None
    host, port = here.master
    for name, value in (("RANK", here.rank), ("WORLD_SIZE", here.world_size),
                        ("LOCAL_RANK", here.local_rank), ("LOCAL_WORLD_SIZE", here.local_size),
                        ("MASTER_ADDR", host), ("MASTER_PORT", port)):
        os.environ.setdefault(name, str(value))
    patience = timedelta(seconds=max(timeout, MEETING_SECONDS))
    try:
        store, _, _ = next(rendezvous("env://", timeout=patience))
        if launcher.keeps_store():  # and may know what the attempt before has said
            store = PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
        if store.add("come", 1) == here.world_size:
            store.set("all have come", "")
        store.wait(["all have come"], patience)
        store.set_timeout(timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        raise WorkFailed(f"rank {here.rank} cannot meet the others at {host}:{port} (MASTER_ADDR, "
                         f"MASTER_PORT): {str(error).splitlines()[0]}") from error
    return store


def _is_about_others(error: BaseException) -> bool:
    """Whether it is a collective that failed, which says nothing about this rank."""
    import torch.distributed as dist
    text = str(error)
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and any(
        word in text for word in ("gloo/", "Gloo", "NCCL", "Connection closed by peer",
                                  "Connection reset", "Broken pipe", "Timed out waiting")))


def share_cores(here: Place) -> int:
    """Give each process of a host its share of the cores; returns the threads of this one.

    torchrun sets OMP_NUM_THREADS=1 where nobody set it; any other number was asked for.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "1")
    share = max(1, cores() // here.local_size)
    threads = int(asked) if asked.isdecimal() and int(asked) > 1 else share
    torch.set_num_threads(threads)
    return threads
