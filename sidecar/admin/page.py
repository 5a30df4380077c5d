"""The dashboard's files: read once, served with an ETag and a strict policy, from this node alone.

Owns the paths, the headers and the list of the files. What the page shows comes over `GET /events`.
"""

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

from sidecar.admin.calls import add_routes
from sidecar.api.answers import Answers, Route

FOLDER: Final = Path(__file__).resolve().parent / "dashboard"
INDEX: Final = "index.html"
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_NAMES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in TYPES)
PLACES: Final = {
    "/": INDEX,
    "/dashboard": INDEX,
    **{f"/dashboard/{name}": name for name in _NAMES if name != INDEX},
}
"""path -> name of the file that is served there."""

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A new release is seen at once; what has not changed is not sent again.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    headers: dict[str, str]
    etag: str

    def is_known_by(self, if_none_match: str) -> bool:
        """Whether who sends this header has it already."""
        known = (each.strip().removeprefix("W/") for each in if_none_match.split(","))
        return any(each in ("*", self.etag) for each in known)


class Page:
    """The calls that serve the page: `/`, `/dashboard`, and its parts under `/dashboard/`."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._files = {name: _read(FOLDER / name) for name in {*PLACES.values()}}

    def add_to(self, app: web.Application) -> None:
        """Add the routes, with JSON also for what aiohttp would answer in plain text."""
        routes = [("GET", path, _serve(self._files[name])) for path, name in PLACES.items()]
        add_routes(app, self._answers, routes)


def _read(path: Path) -> _File:
    body = path.read_bytes()
    etag = f'"{blake2b(body, digest_size=12).hexdigest()}"'
    headers = {**HEADERS, hdrs.CONTENT_TYPE: TYPES[path.suffix], hdrs.ETAG: etag}
    return _File(body, headers, etag)


def _serve(file: _File) -> Route:
    async def route(request: web.Request) -> web.Response:
        if file.is_known_by(request.headers.get(hdrs.IF_NONE_MATCH, "")):
            return web.Response(status=304, headers=file.headers)
        return web.Response(body=file.body, headers=file.headers)

    return route
