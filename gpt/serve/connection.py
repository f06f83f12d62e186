"""A client's connection: how long requests may take to arrive, and answers to be read."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

HEADER_SECONDS = 10.0  # until a request's headers have arrived
READ_SECONDS = 60.0  # in which a client reads something of what it is sent
SPARE_FILES = 100  # that a process may open beside its connections


class Connection(H11Protocol):
    """One whose requests have to arrive in HEADER_SECONDS, and whose answers have to be read."""

    _waits: asyncio.TimerHandle | None = None
    _watches: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """It is there."""
        super().connection_made(transport)
        if resource and len(self.connections) > resource.getrlimit(
                resource.RLIMIT_NOFILE)[0] - SPARE_FILES:
            self.transport.abort()  # without a file left, nobody could be accepted
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Something came."""
        super().data_received(data)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        super().connection_lost(exc)
        self._stop_waiting()
        self._stop_watching()

    def pause_writing(self) -> None:
        """The client has to read first."""
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        self._stop_watching()

    def send_400_response(self, msg: str) -> None:
        """Also where an answer has begun already; what still answers need not go on."""
        with contextlib.suppress(h11.LocalProtocolError):
            super().send_400_response(msg)
        self.transport.close()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _watch(self, left: int) -> None:
        """Leave a client that still has as many bytes to read later, or more."""
        self._stop_watching()
        self._watches = self.loop.call_later(READ_SECONDS, self._look_again, left)

    def _look_again(self, left: int) -> None:
        now = self.transport.get_write_buffer_size()
        if now < left:
            self._watch(now)
        else:
            self.transport.abort()

    def _stop_watching(self) -> None:
        if self._watches is not None:
            self._watches.cancel()
            self._watches = None

    def _await_headers(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._waits is None:
            self._waits = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None

    def _give_up(self) -> None:
        self._waits = None
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n"
                                 b"content-length: 0\r\n\r\n")
            self.transport.close()
