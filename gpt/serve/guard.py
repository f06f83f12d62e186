"""Who may ask: keys, hosts and origins."""

from __future__ import annotations

import hmac
import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gpt.serve.protocol.errors import ApiError
from gpt.serve.sending import as_json

OPEN = ("/", "/health", "/ready")  # to all who reach the port
PAGE = "/playground/"  # what the page is made of, too: it asks for the key


class Guard:
    """Lets requests through that have the key or, where there is none, that name this host.

    Without a key only loopback is listened on, and a page of another name that a browser was made
    to look up here (DNS rebinding) must not speak for its user.
    """

    def __init__(self, app: ASGIApp, key: str | None, loopback: bool):
        self._app, self._key, self._loopback = app, key, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] == "http" and (refused := self._refusal(scope)) is not None:
            await as_json(refused.content, refused.status, refused.headers)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            # A proxy may have read it the other way, and take the rest for its next client's.
            return ApiError(400, "give Content-Length or Transfer-Encoding, not both",
                            headers={"Connection": "close"})
        if self._key is None:
            if self._loopback and not is_loopback(headers.get("host", "")):
                return ApiError(421, "this server answers to localhost alone; start it with "
                                     "--api-key to be called by another name")
            return None
        given = headers.get("authorization", "").removeprefix("Bearer ").strip()
        if (scope["path"] in OPEN or scope["method"] == "OPTIONS" or (
                scope["method"] == "GET" and scope["path"].startswith(PAGE)) or hmac.compare_digest(
                    given.encode(), self._key.encode())):
            return None
        return ApiError(401, "give the server's key: Authorization: Bearer KEY", None,
                        "invalid_api_key")


def is_loopback(host: str) -> bool:
    """Whether a name or address, a port behind it or not, is this machine's own."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.strip("[]") or host
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost" or name.lower().endswith(".localhost")
