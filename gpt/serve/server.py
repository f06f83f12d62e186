"""The process that listens: one event loop for all clients, one thread that computes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from gpt.errors import Stopped, UserError
from gpt.serve.app import Api
from gpt.serve.connection import Connection
from gpt.serve.guard import Guard, is_loopback
from gpt.serve.models import Opening, Served
from gpt.serve.page import page_routes
from gpt.serve.sending import not_found
from gpt.serve.watching import watch

HEADER_BYTES = 2**15
GRACE_SECONDS = 20  # after a signal, for texts that are being written


@dataclass(frozen=True)
class Place:
    """Where a server listens, and to whom."""

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    origins: tuple[str, ...] = ()
    certificate: str | None = None
    certificate_key: str | None = None
    aliases: tuple[str, ...] = ()
    any_name: bool = False

    @property
    def is_loopback(self) -> bool:
        """Whether this machine alone can reach it."""
        return is_loopback(self.host)


class Server(uvicorn.Server):
    """uvicorn's, which a signal ends as it ends other commands here."""

    stopped_by: str | None = None
    cut_off = False  # whether something was still being written

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """While it runs."""
        numbers = [signal.SIGTERM, signal.SIGINT]
        if threading.current_thread() is not threading.main_thread():
            numbers.clear()  # only there can they be heard
        old = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """The first signal takes no more requests, a second one cuts off what is being written."""
        self.force_exit = self.stopped_by is not None
        self.should_exit, self.stopped_by = True, signal.Signals(sig).name

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let texts be finished, for a while."""
        begun = time.monotonic()
        await super().shutdown(sockets)
        self.cut_off = self.force_exit or time.monotonic() - begun >= GRACE_SECONDS
        if self.force_exit:  # Python cannot end while a thread of it computes: torch aborts then
            await self.lifespan.shutdown()


def run(models: dict[str, Served], place: Place, watched: Opening | None = None) -> None:
    """Serve until a signal comes. Raises UserError, Stopped if texts had to be cut off.

    watched: how newer checkpoints of the models are opened; None: they are not looked for.
    """
    listening = listen(place)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", level=logging.INFO)
    server = server_of(models, place, watched)
    for name, served in models.items():
        print(f"{name}: {served.limits.rows} texts of up to {served.context:,} tokens at once; "
              f"keys and values take up to {served.kept_bytes / 2**20:,.0f} MiB", file=sys.stderr)
    scheme = "https" if place.certificate else "http"
    host = f"[{place.host}]" if ":" in place.host else place.host
    print(f"serving {', '.join(models)} at {scheme}://{host}:{listening.getsockname()[1]}/v1",
          flush=True)
    asyncio.run(server.serve(sockets=[listening]))
    if server.cut_off:
        raise Stopped(f"stopped by {server.stopped_by}; texts that were being written are cut off")


def server_of(models: dict[str, Served], place: Place, watched: Opening | None = None) -> Server:
    """All that listens, and does not do so yet."""
    return Server(uvicorn.Config(
        application(models, place, watched), http=Connection, ws="none", lifespan="on",
        log_config=None, log_level="warning", access_log=False, server_header=False,
        h11_max_incomplete_event_size=HEADER_BYTES, timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_certfile=place.certificate, ssl_keyfile=place.certificate_key))


def listen(place: Place) -> socket.socket:
    """A socket. Raises UserError."""
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    try:
        return socket.create_server((place.host, place.port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen at {place.host}:{place.port}: "
                        f"{getattr(error, 'strerror', None) or error}; choose another --host or "
                        "--port") from error


def application(models: dict[str, Served], place: Place, watched: Opening | None = None
                ) -> Starlette:
    """All addresses, behind what guards them."""
    @contextlib.asynccontextmanager
    async def working(app: Starlette) -> AsyncIterator[None]:
        api = Api(models, place.aliases, place.any_name)
        app.router.routes.extend([*api.routes(), *page_routes()])
        watching = asyncio.create_task(watch(models, watched)) if watched else None
        yield
        if watching is not None:
            watching.cancel()
        api.close()

    middleware = [Middleware(Guard, place.key, place.is_loopback)]
    if place.origins:
        middleware.insert(0, Middleware(
            CORSMiddleware, allow_origins=list(place.origins), allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"]))
    return Starlette(middleware=middleware, lifespan=working,
                     exception_handlers={HTTPException: not_found})
