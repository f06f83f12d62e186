"""A thread that computes for an event loop: texts of many writers, a step of each in turn.

The event loop hands it texts to write, and is handed their pieces.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from gpt.errors import WorkFailed
from gpt.generation.engine import Prepared
from gpt.generation.request import Generation
from gpt.generation.writer import Piece, Writer

_log = logging.getLogger(__name__)


class Job:
    """A text that is being written; its pieces go into a queue of the event loop.

    owner: whose it is. started: whether it has a piece. latest: when that came, or the job.
    """

    def __init__(self, owner: str, writer: Writer, prepared: Prepared,
                 pieces: asyncio.Queue[tuple[Job, Piece]]):
        self.owner, self.writer, self.prepared, self.pieces = owner, writer, prepared, pieces
        self.started, self.latest = False, time.monotonic()


class Worker:
    """Writes what it is given until it is closed. Its methods are the event loop's to call.

    observe: is told of each piece: its job, and seconds since the one before or the job itself.
    """

    def __init__(self, observe: Callable[[Job, float], object]) -> None:
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._orders: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._numbers: dict[Writer, dict[int, Job]] = {}  # the thread's own
        self._jobs: set[Job] = set()  # the event loop's own
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def start(self, job: Job) -> None:
        """Queue a text."""
        self._jobs.add(job)
        self._orders.put(lambda: self._submit(job))

    def cancel(self, job: Job) -> None:
        """Forget a text, if it has not ended: within a step."""
        if job in self._jobs:
            self._jobs.discard(job)
            self._orders.put(lambda: self._forget(job))

    def count(self, owner: str, started: bool) -> int:
        """Texts of an owner that have a piece already, or none yet."""
        return sum(job.owner == owner and job.started == started for job in self._jobs)

    def close(self) -> None:
        """End the thread, after its step."""
        self._orders.put(None)
        self._thread.join()

    # ----- In the thread

    def _work(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        """An order or, if there is none, a step of each writer; False at the end. While it waits it
        knows of no writer: one that is done with for good is not kept."""
        try:
            order = self._orders.get(block=not self._numbers)
        except queue.Empty:
            for writer, jobs in list(self._numbers.items()):
                made = self._step(writer, jobs)
                self._loop.call_soon_threadsafe(self._hand_out, made)
                self._leave_if_idle(writer)
            return True
        if order is not None:
            order()
        return order is not None

    def _submit(self, job: Job) -> None:
        number = job.writer.submit(job.prepared)
        self._numbers.setdefault(job.writer, {})[number] = job

    def _forget(self, job: Job) -> None:
        jobs = self._numbers.get(job.writer, {})
        for number in [number for number, one in jobs.items() if one is job]:
            job.writer.cancel(number)
            del jobs[number]
        self._leave_if_idle(job.writer)

    def _leave_if_idle(self, writer: Writer) -> None:
        if not self._numbers.get(writer, True):
            del self._numbers[writer]

    def _step(self, writer: Writer, jobs: dict[int, Job]) -> list[tuple[Job, Piece]]:
        """What a step brings. One that fails as a whole ends all texts that took part in it."""
        try:
            made = [(jobs[number], piece) for number, piece in writer.step()]
        except Exception as error:
            _log.exception("a step of the model failed")
            made = [(job, failure(error)) for job in jobs.values()]
            for number in jobs:
                writer.cancel(number)
        ended = {id(job) for job, piece in made if piece.end is not None}
        for number in [number for number, job in jobs.items() if id(job) in ended]:
            del jobs[number]
        return made

    def _hand_out(self, made: Sequence[tuple[Job, Piece]]) -> None:
        """In the event loop."""
        now = time.monotonic()
        for job, piece in made:
            self._observe(job, now - job.latest)
            job.started, job.latest = True, now
            job.pieces.put_nowait((job, piece))
            if piece.end is not None:
                self._jobs.discard(job)


def failure(error: Exception) -> Piece:
    """The last piece of a text that cannot be written."""
    told = WorkFailed(f"the model could not go on: {type(error).__name__}: {error}")
    return Piece("", Generation(0, 0.0, "error", error=told), "error")
