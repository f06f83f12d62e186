"""Looking after the other processes of a run: one that is gone, or hangs, ends all in bounded time.

A thread of each rank says every second that its process lives, and listens to the next rank, so
that all are listened to. What is heard is kept in the store at which the ranks met.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from types import TracebackType
from typing import Any

from gpt.errors import EXIT_FAILED
from gpt.launcher import Place

BEAT_SECONDS = 1.0
GRACE_SECONDS = 5.0  # for a process to end by itself once one is known to be lost


class Watch:
    """Says that this rank lives, and ends the process once another one does not.

    store: where the ranks met. timeout: seconds of silence after which a rank counts as lost.
    """

    def __init__(self, store: Any, here: Place, timeout: float):
        self.store, self._here, self._timeout = store, here, timeout
        self._line = store.clone()  # a client of its own: others may be waiting for answers
        self._next = (here.rank + 1) % here.world_size
        self._over = threading.Event()
        self._heard: tuple[bytes, float] = (b"", time.monotonic())
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def __enter__(self) -> Watch:
        self._line.set(f"host/{self._here.rank}", socket.gethostname())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(2 * BEAT_SECONDS)
        with contextlib.suppress(RuntimeError):  # it may have gone with rank 0
            self.store.set(f"alive/{self._here.rank}", "left")

    def is_first_to_fail(self) -> bool:
        """Whether no other rank has failed before: asked by one that has. Rank 0 goes first: what
        fails everywhere is said there."""
        time.sleep(BEAT_SECONDS if self._here.rank else 0)
        try:
            return bool(self.store.add("failed", 1) == 1)
        except RuntimeError:  # the store has gone with the rank that kept it
            return True

    def what_happened(self, error: BaseException) -> str:
        """For people: which rank is lost, as far as is known soon after a collective failed."""
        until = time.monotonic() + GRACE_SECONDS
        before = self._beats()
        while time.monotonic() < until:
            self._over.wait(BEAT_SECONDS)
            if lost := self._lost():
                return lost
        after = self._beats()
        silent = [rank for rank, beat in after.items()
                  if beat != b"left" and beat == before.get(rank)]
        if silent:
            return self._words(silent)
        return ("the ranks lost each other: " + str(error).splitlines()[0][:200]
                + "; the same command continues from the newest checkpoint")

    def _run(self) -> None:
        beat = 0
        while not self._over.wait(BEAT_SECONDS):
            beat += 1
            try:
                self._line.set(f"alive/{self._here.rank}", str(beat))
                self._listen()
                lost = self._lost()
            except RuntimeError as error:
                lost = self._unreachable(error)
            if lost and not self._over.wait(GRACE_SECONDS):
                self._leave(lost)

    def _listen(self) -> None:
        """Notice when the next rank has been silent for too long."""
        key, now = f"alive/{self._next}", time.monotonic()
        said = self._line.get(key) if self._line.check([key]) else b""
        if said != self._heard[0] or said == b"left":
            self._heard = said, now
        elif now - self._heard[1] > self._timeout:
            self._line.set("lost", self._words([self._next], f" for {self._timeout:.0f} seconds"))

    def _lost(self) -> str | None:
        with contextlib.suppress(RuntimeError):
            if self._line.check(["lost"]):
                return str(self._line.get("lost").decode())
        return None

    def _beats(self) -> dict[int, bytes]:
        with contextlib.suppress(RuntimeError):
            keys = {rank: f"alive/{rank}" for rank in range(self._here.world_size)
                    if rank != self._here.rank}
            return {rank: self._line.get(key) for rank, key in keys.items()
                    if self._line.check([key])}
        return {}

    def _words(self, ranks: list[int], how_long: str = "") -> str:
        hosts = []
        for rank in ranks[:8]:
            with contextlib.suppress(RuntimeError):
                hosts.append(f"rank {rank} on {self._line.get(f'host/{rank}').decode()}")
        return (f"{', '.join(hosts) or 'another rank'} does not answer{how_long}; the same command "
                "continues from the newest checkpoint")

    def _unreachable(self, error: RuntimeError) -> str | None:
        """The store cannot be asked: its host is gone, or the way to it."""
        now = time.monotonic()
        if now - self._heard[1] <= self._timeout:
            return None
        return (f"the host at which the ranks met cannot be reached for {self._timeout:.0f} "
                f"seconds; the same command continues from the newest checkpoint")

    def _leave(self, lost: str) -> None:
        """End this process, which waits for one that will not come."""
        if self.is_first_to_fail():
            print(f"failed: {lost}", file=sys.stderr, flush=True)
        os._exit(EXIT_FAILED)
