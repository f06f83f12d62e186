"""Looking after the other processes of a run: one that is gone, or hangs, ends all in bounded time.

A thread of each rank says every second that its process lives, and listens to the next rank, so
that all are listened to. What is heard is kept in the store at which the ranks met. A second thread
sees whether the store itself still answers: one whose host hangs never does, and asking it never
ends. So the main thread reads what these two have found, and asks nothing that could keep it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

from gpt import launcher
from gpt.errors import EXIT_FAILED, Stopped
from gpt.launcher import Place

T = TypeVar("T")
BEAT_SECONDS = 1.0
GRACE_SECONDS = 5.0  # for a process to end by itself once one is known to be lost
CONTINUES = "; the same command continues from the newest checkpoint"


class Watch:
    """Says that this rank lives, and ends the process once another one does not.

    store: where the ranks met. hosts: of each rank. timeout: seconds of silence after which a rank
    counts as lost.
    """

    def __init__(self, store: Any, here: Place, hosts: Sequence[str], timeout: float):
        self.store, self._here, self._hosts, self._timeout = store, here, hosts, timeout
        self._line = store.clone()  # clients of their own: others may be waiting for answers
        self._aside = store.clone()
        self._next = (here.rank + 1) % here.world_size
        self._others = [rank for rank in range(here.world_size) if rank != here.rank]
        self._over, self._telling = threading.Event(), threading.RLock()
        self._awake = 0.0  # seconds, but for those in which this process was itself stopped
        self._answered = 0.0  # when the store last did, by that clock
        self._heard = b"", 0.0  # of the next rank: what, and when
        self._lost: str | None = None
        self._is_first: bool | None = None  # to fail
        self._is_deaf = False  # the store has not answered in time
        self._threads = [threading.Thread(target=run, daemon=True, name=run.__name__)
                         for run in (self._say_and_listen, self._be_patient)]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._over.set()
        if error is not None:
            launcher.settle()  # while the others can still be asked
        self._asked(lambda: self._take_leave(error))
        if self._here.rank == 0 and not launcher.keeps_store():
            self._asked(self._wait_for_others, 3 * BEAT_SECONDS)
        for thread in self._threads:
            thread.join(BEAT_SECONDS)

    def is_first_to_fail(self) -> bool:
        """Whether no other rank has failed before: asked by one that has. Rank 0 goes first: what
        fails everywhere is said there."""
        with self._telling:
            if self._is_first is None:
                time.sleep(BEAT_SECONDS if self._here.rank else 0)
                number = self._asked(lambda: self._aside.add("failed", 1))
                self._is_first = self._speaks_alone() if number is None else number == 1
            return self._is_first

    def what_happened(self, error: BaseException) -> str:
        """For people: which rank is lost, as far as is known soon after a collective failed."""
        if not self.is_first_to_fail():
            return "another rank failed"
        before, until = self._beats(), time.monotonic() + GRACE_SECONDS
        while self._lost is None and time.monotonic() < until:
            time.sleep(BEAT_SECONDS / 10)
        if self._lost is not None:
            return self._lost
        silent = [rank for rank, beat in self._beats().items()
                  if beat != b"left" and beat == before.get(rank)]
        if silent:
            return self._words(silent)
        why = str(error).splitlines()[0][:200]
        if "Timed out" in why:
            return (f"a rank has kept the others waiting for {self._timeout:.0f} seconds, and "
                    f"lives: a larger parallel.timeout_seconds gives it more{CONTINUES}")
        return f"the ranks lost each other: {why}{CONTINUES}"

    def _say_and_listen(self) -> None:
        """The first thread: all that the store is asked while all goes well."""
        beat = 0
        while not self._over.wait(BEAT_SECONDS):
            beat += 1
            try:
                self._line.set(f"alive/{self._here.rank}", str(beat))
                self._listen()
                if self._line.check(["lost"]):
                    self._lost = self._line.get("lost").decode()
                if self._line.add("failed", 0):
                    with self._telling:  # not while this rank is asking
                        self._is_first = self._is_first or False
            except RuntimeError:  # its process has ended
                self._lost = self._lost or self._keeper_is_lost()
                return
            self._answered = self._awake

    def _listen(self) -> None:
        """Notice when the next rank has been silent for too long."""
        key = f"alive/{self._next}"
        said = self._line.get(key) if self._line.check([key]) else b""
        if said != self._heard[0] or said == b"left":
            self._heard = said, self._awake
        elif self._awake - self._heard[1] > self._timeout:
            self._line.set("lost", self._words([self._next], f" for {self._timeout:.0f} seconds"))

    def _be_patient(self) -> None:
        """The second thread: for the store as for the next rank, and then for the main thread."""
        last = time.monotonic()
        while not self._over.wait(BEAT_SECONDS):
            now = time.monotonic()
            self._awake += min(now - last, 2 * BEAT_SECONDS)
            last = now
            if self._lost is None and self._awake - self._answered > self._timeout:
                self._lost = self._keeper_is_lost(f" for {self._timeout:.0f} seconds")
            if self._lost is not None and not self._over.wait(GRACE_SECONDS):
                self._leave(self._lost)

    def _leave(self, lost: str) -> None:
        """End this process, which waits for one that will not come."""
        with self._telling:
            if self._over.is_set():  # it has begun to end by itself
                return
            if self.is_first_to_fail():
                with tqdm.external_write_mode(sys.stderr):  # on a line of its own
                    print(f"failed: {lost}", file=sys.__stderr__, flush=True)  # never silent
            os._exit(EXIT_FAILED)

    def _take_leave(self, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, Stopped):
            here = f"rank {self._here.rank} on {self._hosts[self._here.rank]}"
            self._aside.set("lost", f"{here} failed{CONTINUES}")
        self._aside.set(f"alive/{self._here.rank}", "left")
        self._aside.add("left", 1)

    def _wait_for_others(self) -> None:
        """Those that live still have to ask who tells; the store goes with this process."""
        while self._aside.add("left", 0) < self._here.world_size:
            time.sleep(BEAT_SECONDS / 10)

    def _asked(self, question: Callable[[], T], seconds: float = GRACE_SECONDS) -> T | None:
        """What the store answers; None if it does not within some seconds, now or before."""
        answers: list[T] = []

        def ask() -> None:
            with contextlib.suppress(RuntimeError):
                answers.append(question())

        if not self._is_deaf:
            thread = threading.Thread(target=ask, daemon=True)
            thread.start()
            thread.join(seconds)
            self._is_deaf = thread.is_alive()
        return answers[0] if answers else None

    def _beats(self) -> dict[int, bytes]:
        """What each of the others has last said, if it has."""
        keys = {rank: f"alive/{rank}" for rank in self._others}
        return self._asked(lambda: {rank: self._aside.get(key) for rank, key in keys.items()
                                    if self._aside.check([key])}) or {}

    def _speaks_alone(self) -> bool:
        """Whether this rank tells where the store does not say who does: one of each host. If the
        store was rank 0's, another one speaks for that."""
        with_rank_0 = not launcher.keeps_store() and self._hosts[self._here.rank] == self._hosts[0]
        return self._here.local_rank == (1 if with_rank_0 else 0)

    def _keeper_is_lost(self, how_long: str = "") -> str:
        if launcher.keeps_store():
            return (f"torchrun on {self._hosts[0]}, where the ranks met, does not answer"
                    f"{how_long}{CONTINUES}")
        return self._words([0], how_long)

    def _words(self, ranks: list[int], how_long: str = "") -> str:
        named = ", ".join(f"rank {rank} on {self._hosts[rank]}" for rank in ranks[:8])
        more = f" and {len(ranks) - 8} more" if ranks[8:] else ""
        return f"{named}{more} does not answer{how_long}{CONTINUES}"
