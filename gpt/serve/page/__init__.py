"""The playground: one page, which asks this server and nobody else."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

_FOLDER = Path(__file__).parent
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; base-uri 'none'; "
                               "form-action 'self'; frame-ancestors 'none'",
    "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff"}


def page_routes() -> list[Route]:
    """The page and its parts, which hold no secrets."""
    parts = {f"/playground/{path.name}": path for path in sorted(_FOLDER.iterdir())
             if path.suffix in (".css", ".js")}
    return [_route(path, file) for path, file in {"/": _FOLDER / "index.html", **parts}.items()]


def _route(path: str, file: Path) -> Route:
    async def part(request: Request) -> FileResponse:
        return FileResponse(file, headers=_HEADERS)

    return Route(path, part, methods=["GET"])
