"""A server in a process of its own, and clients that send and read as they please."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from gpt.chat import FORMATS
from gpt.runs import checkpoint
from gpt.tokenizer import build_tokenizer
from tests.tiny import ROOT, as_in_a_terminal, script_environment, tiny_gpt

HEAD = b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def make_model(path: Path, **changes: Any) -> Path:
    """A model of bytes, with random weights, that converses."""
    tokenizer = build_tokenizer("byte")
    tokenizer.chat_format = FORMATS["turns"].model_dump_json()
    checkpoint.save_model(path, tiny_gpt(**{"vocab_size": 257, "block_size": 1024} | changes),
                          tokenizer, "random")
    return path


class Launched:
    """`python -m gpt serve`, once it listens. said: the file that holds all that it says."""

    def __init__(self, folder: Path, *words: object, **changes: Any):
        self.said = folder.parent / f"said-{time.monotonic_ns()}.txt"
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gpt", "serve", str(folder), "--port", "0",
                 *map(str, words)], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=said,
                env=script_environment(), preexec_fn=as_in_a_terminal, **changes)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r":(\d+)/v1", line)
        assert found, line + self.said.read_text()
        self.port = int(found[1])
        self._seen = psutil.Process(self.process.pid)

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """To the process."""
        self.process.send_signal(number)

    def code(self, seconds: float = 60) -> int:
        """That it leaves with. Raises TimeoutExpired."""
        return self.process.wait(seconds)

    @property
    def mib(self) -> float:
        """Memory that it has, resident."""
        return self._seen.memory_info().rss / 2**20

    @property
    def descriptors(self) -> int:
        """Files and sockets that it has open."""
        return self._seen.num_fds()

    @property
    def threads(self) -> int:
        """Of it."""
        return self._seen.num_threads()

    @property
    def tracebacks(self) -> int:
        """How many it has shown so far."""
        return self.said.read_text(errors="replace").count("Traceback (most recent")


@dataclass
class Answer:
    """What a client read. first: seconds until the first event of a stream; None without one."""

    status: int | None = None
    headers: bytes = b""
    body: bytes = b""
    seconds: float = 0.0
    first: float | None = None

    @property
    def events(self) -> list[Any]:
        """The objects of a stream."""
        return [json.loads(line[6:]) for line in self.body.splitlines()
                if line.startswith(b"data: {")]

    @property
    def text(self) -> str:
        """Of the first choice of a completion, whole or in parts."""
        parts = self.events or [json.loads(self.body)]
        return "".join(part["choices"][0]["text"] for part in parts if part.get("choices"))

    @property
    def is_whole(self) -> bool:
        """Whether it has an end, and that is no error."""
        return self.status == 200 and (not self.events or self.body.endswith(b"[DONE]\n\n"))


def request_of(path: str = "/v1/completions", body: object = None, **fields: object) -> bytes:
    """A POST after which the connection is closed. body: bytes, or instead of `fields`."""
    data = body if isinstance(body, bytes) else json.dumps(
        fields if body is None else body).encode()
    return HEAD % path.encode() + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(
        data) + data


async def talk(port: int, data: bytes, seconds: float = 60) -> Answer:
    """Send bytes, and read until the server closes; status None if it says nothing."""
    found, begun, raw = Answer(), time.monotonic(), bytearray()

    async def read() -> None:
        async with connected(port, data, limit=2**22) as (reader, _):
            while more := await reader.read(2**16):
                raw.extend(more)
                if found.first is None and raw.find(b"data: {", 0, 2**12) >= 0:
                    found.first = time.monotonic() - begun

    with contextlib.suppress(OSError, asyncio.TimeoutError):
        await asyncio.wait_for(read(), seconds)
    found.seconds = time.monotonic() - begun
    found.headers, _, body = bytes(raw).partition(b"\r\n\r\n")
    if status := re.match(rb"HTTP/1.1 (\d+)", found.headers):
        found.status = int(status[1])
    found.body = joined(body) if b"chunked" in found.headers.lower() else body
    return found


def joined(body: bytes) -> bytes:
    """The chunks of a body, as far as they have come."""
    parts, at = [], 0
    while (end := body.find(b"\r\n", at)) >= 0:
        size = int(body[at:end], 16)
        parts.append(body[end + 2:end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(parts)


async def ask(port: int, path: str = "/v1/completions", seconds: float = 60,
              **fields: object) -> Answer:
    """A request for the model `tiny`."""
    return await talk(port, request_of(path, **{"model": "tiny"} | fields), seconds)


async def metrics(port: int) -> dict[str, float]:
    """What /metrics says."""
    answer = await talk(port, b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n"
                              b"connection: close\r\n\r\n")
    lines = (line.rpartition(" ") for line in answer.body.decode().splitlines())
    return {name: float(value) for name, _, value in lines if not name.startswith("#")}


async def until_idle(port: int, seconds: float = 30) -> float:
    """Seconds until no text is written or waits. Raises TimeoutError."""
    begun = time.monotonic()
    while any(value for name, value in (await metrics(port)).items()
              if name.startswith(("gpt_rows", "gpt_queue"))):
        await asyncio.sleep(0.01)
        if time.monotonic() - begun > seconds:
            raise TimeoutError
    return time.monotonic() - begun


@contextlib.asynccontextmanager
async def connected(port: int, data: bytes = b"", **options: Any) -> Any:
    """(reader, writer) of a connection that has sent some bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
    try:
        writer.write(data)
        yield reader, writer
    finally:
        writer.transport.abort()
