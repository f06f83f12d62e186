"""Reading ahead: threads fetch the next batches while the current one is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
AHEAD = 2  # batches that each worker may be ahead


class ReadAhead(Generic[T]):
    """What `read` returns for each step, fetched by threads before it is asked for.

    Steps come in whatever order they are asked for; asking for one that does not follow the last
    begins anew. A worker's error is raised where its step is asked for. workers: 0 reads in place.
    """

    def __init__(self, read: Callable[[int], T], workers: int):
        self._read, self._limit = read, AHEAD * workers
        self._executor = ThreadPoolExecutor(workers, "reader") if workers else None
        self._pending: deque[tuple[int, Future[T]]] = deque()

    def __enter__(self) -> ReadAhead[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Drop what was read ahead, and wait for the threads to end."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def step(self, step: int) -> T:
        """What a step reads; waits for it if need be."""
        if self._executor is None:
            return self._read(step)
        if self._pending and self._pending[0][0] != step:
            self._drop()
        self._submit_up_to(step, step + self._limit)
        result = self._pending.popleft()[1].result()
        # Only now, since a worker that starts takes the interpreter's lock from us.
        self._submit_up_to(step + 1, step + 1 + self._limit)
        return result

    def _submit_up_to(self, first: int, stop: int) -> None:
        """Let steps first to stop be read, but for those that are under way already."""
        assert self._executor is not None
        for step in range(first + len(self._pending), stop):
            self._pending.append((step, self._executor.submit(self._read, step)))

    def _drop(self) -> None:
        for _, future in self._pending:
            future.cancel()
        self._pending.clear()
