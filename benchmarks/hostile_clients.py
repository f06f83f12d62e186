"""Clients of a server that is injected faults, and what is counted of them."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import signal
import socket
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.serve.launched import Answer, Launched, ask, connected, talk

SHORT_TEXT: dict[str, Any] = {"prompt": "Once", "max_tokens": 16, "stream": True,
                              "logit_bias": {"256": -100}}
LONG_TEXT = SHORT_TEXT | {"max_tokens": 3000}
FIXED = {"prompt": "Once upon", "seed": 7, "max_tokens": 24}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is injected."""

    sockets: int = 200  # of each slow kind
    alone: int = 10  # seconds of healthy requests with no fault
    load: int = 60  # seconds of 64 clients
    disconnects: int = 400
    readers: int = 8
    signals: int = 5  # of each kind; those that wait for the deadline, half of it
    requests: int = 10_000  # over which memory is looked at


SHORT = Scale(sockets=40, alone=3, load=6, disconnects=60, readers=4, signals=2, requests=1_000)


@dataclasses.dataclass
class Row:
    """What came of a fault. good: how many of those injected ended as they have to."""

    fault: str
    injected: int
    good: int
    came: str
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"| {self.fault} | {self.injected:,} | {self.good:,} | {self.came} |"


@asynccontextmanager
async def healthy(port: int) -> AsyncIterator[list[Answer]]:
    """Short streams back to back, as long as something goes on; what they were answered."""
    answers: list[Answer] = []
    ended = asyncio.Event()

    async def ask_on() -> None:
        while not ended.is_set():
            answers.append(await ask(port, **SHORT_TEXT))

    asking = asyncio.create_task(ask_on())
    try:
        yield answers
    finally:
        ended.set()
        await asking


def firsts(answers: Sequence[Answer]) -> dict[str, float]:
    """Milliseconds until the first token: half of the answers were faster, and 99 of 100. One that
    has none counts with all the time that it took."""
    found = sorted(1e3 * (each.first or each.seconds) for each in answers)
    return {"p50": statistics.median(found), "p99": found[int(0.99 * (len(found) - 1))]}


def told(answers: Sequence[Answer]) -> str:
    """How healthy requests fared."""
    good = sum(each.is_whole for each in answers)
    return (f"{good:,} of {len(answers):,} healthy requests answered, first token after "
            f"{firsts(answers)['p50']:.0f} ms (p99 {firsts(answers)['p99']:.0f})")


async def given_up(port: int, begin: bytes, more: bytes) -> tuple[int | None, float]:
    """(status, seconds) of a slow client; given up here after two minutes."""
    begun = time.monotonic()
    async with connected(port, begin) as (reader, writer):
        while time.monotonic() - begun < 120:
            try:
                line = await asyncio.wait_for(reader.readline(), 1)
            except asyncio.TimeoutError:
                writer.write(more)
                continue
            return int(line.split()[1]) if line else None, time.monotonic() - begun
    return None, time.monotonic() - begun


async def watched(started: Launched, work: Awaitable[Any]) -> tuple[Any, float]:
    """(what comes of some work, MiB by which the server was larger at the most)"""
    before, most = started.mib, 0.0
    working = asyncio.ensure_future(work)
    while not working.done():
        most = max(most, started.mib - before)
        await asyncio.wait({working}, timeout=0.02)
    return working.result(), most


def silent(port: int, data: bytes) -> socket.socket:
    """One that has asked, and reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(data)
    return client


async def stopped(started: Launched, body: dict[str, Any], times: int, draw: random.Random
                  ) -> tuple[Answer, bool, float, int]:
    """(what a stream came to, whether others were refused, seconds until it ended, exit code)"""
    asking = asyncio.create_task(ask(started.port, **body))
    await asyncio.sleep(0.3 + draw.random() / 5)
    begun = time.monotonic()
    started.signal(signal.SIGTERM)
    refused = False
    while not refused and time.monotonic() - begun < 3:  # as soon as it has heard
        await asyncio.sleep(0.1)
        refused = (await talk(started.port, b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
                              b"connection: close\r\n\r\n", 2)).status is None
    if times == 2:
        begun = time.monotonic()
        started.signal(signal.SIGTERM)
    code = await asyncio.to_thread(started.code, 90)
    return await asking, refused, time.monotonic() - begun, code
