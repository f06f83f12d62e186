"""Saving while training goes on: a thread that does one thing after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from gpt.machine.neighbours import let_others_go_first


class InOrder:
    """Does what it is told, in this order, on a thread; after something that failed, nothing more.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "saving", initializer=let_others_go_first)
        self._pending: deque[Future[None]] = deque()
        self._failed = False

    def do(self, work: Callable[[], object]) -> Future[None]:
        """Do something once all before it is done; returns at once what tells when that is."""
        done = self._thread.submit(self._unless_failed, work)
        self._pending.append(done)
        return done

    def check(self) -> None:
        """Raise what made something fail, if it is known by now."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

    def wait(self) -> None:
        """Until all is done. Raises what made something fail."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """End the thread, once all is done."""
        self._thread.shutdown()

    def _unless_failed(self, work: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            work()
        except BaseException:
            self._failed = True
            raise
