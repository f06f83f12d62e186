"""Clients that stream completions from a server, for benchmarks/serve.py.

They only note when bytes came, and read them once all is over: the cores belong to the server.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import json
import random
import re
import string
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

LETTERS = string.ascii_letters + string.digits  # a token each
EVENT = re.compile(rb"data: (\{.*\})")


@dataclass(frozen=True)
class Answer:
    """What came of a request: when it was sent, and (time, bytes) of each read, in seconds."""

    sent: float
    reads: list[tuple[float, bytes]]


async def crowd(port: int, asked: dict[str, Any], prompt: int, count: int, requests: int,
                seconds: float) -> list[list[Answer]]:
    """The answers that so many clients get.

    asked: the body of a request, but for its prompt. prompt: its tokens. requests, seconds: a
    client sends no more, and none later.
    """
    begun = time.perf_counter()

    async def client(number: int) -> list[Answer]:
        draws, made = random.Random(f"{count} {requests} {number}"), list[Answer]()
        while len(made) < requests and time.perf_counter() - begun < seconds:
            text = "".join(draws.sample(LETTERS, prompt))
            made.append(await answer(port, json.dumps(asked | {"prompt": text}).encode()))
        return made

    return list(await asyncio.gather(*(client(number) for number in range(count))))


async def answer(port: int, body: bytes) -> Answer:
    """What a server says to a request for a completion, on a connection of its own."""
    sent, reads = time.perf_counter(), []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
                 f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                 + body)
    while data := await reader.read(2**16):
        reads.append((time.perf_counter(), data))
    writer.close()
    return Answer(sent, reads)


def figures(made: list[list[Answer]], length: int) -> dict[str, float]:
    """Tokens per second while all clients are at work, and percentiles of what a client waits for
    its first token and for each one behind it. length: tokens that each text has to have."""
    begun = min(one.sent for answers in made for one in answers)
    until = min(answers[-1].reads[-1][0] for answers in made)
    came = [(one.sent, np.array(token_times(one, length))) for answers in made for one in answers]
    firsts = [times[0] - sent for sent, times in came]
    gaps = np.concatenate([np.diff(times)[times[1:] <= until] for _, times in came])
    found = {"tokens_per_second": sum(int((times <= until).sum()) for _, times in came)
             / (until - begun)}
    for name, values in (("first", firsts), ("between", gaps)):
        for p, value in zip((50, 90, 99), np.percentile(values, (50, 90, 99)), strict=True):
            found[f"{name}_p{p}"] = float(value)
    return found


def token_times(one: Answer, length: int) -> list[float]:
    """When each token of a text could be read: a letter is a token, and several may come at once.
    An answer that is not so long ends the benchmark."""
    whole = b"".join(data for _, data in one.reads)
    ends = list(itertools.accumulate(len(data) for _, data in one.reads))
    times: list[float] = []
    for event in EVENT.finditer(whole):
        text = json.loads(event[1])["choices"][0]["text"]
        times += [one.reads[bisect.bisect_left(ends, event.end())][0]] * len(text)
    if len(times) != length:
        sys.exit(f"a text has {len(times)} tokens instead of {length}: {whole.decode()[-2000:]}")
    return times
