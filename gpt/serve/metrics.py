"""What is counted, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gpt.generation import Job, Worker

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """Counts by model."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("gpt_requests", "answered, by status", ["model", "status"],
                                registry=registry)
        self.tokens = Counter("gpt_tokens", "read and written", ["model", "kind"],
                              registry=registry)
        self._first = Histogram("gpt_time_to_first_token_seconds", "from a request to its first "
                                "token", ["model"], registry=registry, buckets=_FIRST)
        self._between = Histogram("gpt_time_per_token_seconds", "between tokens of a text",
                                  ["model"], registry=registry, buckets=_BETWEEN)

    def observe(self, job: Job, seconds: float) -> None:
        """A piece came."""
        (self._between if job.started else self._first).labels(job.owner).observe(seconds)

    def watch(self, worker: Worker, models: Iterable[str]) -> None:
        """Tell what a worker does at the time, by model."""
        queue, rows = (Gauge(f"gpt_{name}", meaning, ["model"], registry=self._registry)
                       for name, meaning in (("queue", "texts that wait for a row"),
                                             ("rows", "texts that are being written")))
        for name in models:
            queue.labels(name).set_function(partial(worker.count, name, started=False))
            rows.labels(name).set_function(partial(worker.count, name, started=True))

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self._registry)
