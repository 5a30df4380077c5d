"""What an operator does on the admin listener about the database behind the node.

Owns the paths, what they answer, and that each deliberate step is logged. What the steps do is the
business of `proxy`. A node without a database answers 409 `no_database`.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final, Protocol

from aiohttp import web

from sidecar.admin.calls import add_routes, limit_of
from sidecar.api.answers import Answers, Route, compact
from sidecar.core.relationship import format_expires_at
from sidecar.errors import Broken, Refused, SidecarError
from sidecar.proxy.adopting import Adopted, Tell
from sidecar.store.proxy_store import Held

log = logging.getLogger(__name__)

ADOPT: Final = "/database/adopt"
REAPPLY: Final = "/database/reapply"
HELD: Final = "/database/held"
RELEASE: Final = "/database/held/release"

TELL_S = 0.5
"""Between two lines of progress."""

DEFAULT_LIMIT, MAX_LIMIT = 100, 100_000


class Database(Protocol):
    """The database behind a node, as `proxy` has it."""

    async def adopt(self, found: Adopted, tell: Tell, *, is_dry: bool, deletes: bool) -> None: ...
    async def reapply(self) -> int: ...
    async def held(self, count: int) -> list[Held]: ...
    async def release(self) -> int: ...
    async def status(self) -> dict[str, object]: ...


class DatabaseCalls:
    """The calls about the database behind a node; None: there is none."""

    def __init__(self, database: Database | None, answers: Answers) -> None:
        self._database, self._answers = database, answers

    def add_to(self, app: web.Application) -> None:
        """Add the routes, with JSON also for what aiohttp would answer in plain text."""
        routes: tuple[tuple[str, str, Route], ...] = (
            ("POST", ADOPT, self._adopt),
            ("POST", REAPPLY, self._reapply),
            ("GET", HELD, self._held),
            ("POST", RELEASE, self._release),
        )
        add_routes(app, self._answers, routes)

    async def status(self) -> dict[str, object] | None:
        """How the database does; None where there is none."""
        return None if self._database is None else await self._database.status()

    # -- the calls --------------------------------------------------------------------------------

    async def _adopt(self, request: web.Request) -> web.StreamResponse:
        """A line of JSON now and then, and a last one with `done` or, if it fails, `error`."""
        database = self._there()
        is_dry = _flag(request, "dry_run")
        deletes = _flag(request, "deletions")
        lines = _Lines(request, self._answers)
        found = Adopted()
        if not is_dry:
            log.warning("the operator has the database adopted", extra={"deletions": deletes})
        begun = time.monotonic()
        try:
            await database.adopt(
                found, lambda: lines.tell(asdict(found)), is_dry=is_dry, deletes=deletes
            )
        except SidecarError as failure:
            if not lines.have_begun or isinstance(failure, Broken):
                raise
            log.warning("adopting the database ended early", extra={"reason": failure.message})
            failed = {"error": failure.code, "message": failure.message}
            return await lines.end(asdict(found) | failed)
        seconds = round(time.monotonic() - begun, 3)
        log.info("the database was adopted", extra={**asdict(found), "dry_run": is_dry})
        return await lines.end(
            asdict(found) | {"done": True, "dry_run": is_dry, "seconds": seconds}
        )

    async def _reapply(self, _: web.Request) -> web.Response:
        """Has the database told everything again."""
        count = await self._there().reapply()
        log.warning("the operator has the database told everything", extra={"tuples": count})
        return self._answers.json(compact({"marked": count}))

    async def _held(self, request: web.Request) -> web.Response:
        """What the database refuses, with the reasons; `?limit=` at most so many."""
        limit = limit_of(request.query.get("limit"), DEFAULT_LIMIT, MAX_LIMIT)
        return self._answers.json(
            compact({"held": held_rows(await self._there().held(limit))[:limit]})
        )

    async def _release(self, _: web.Request) -> web.Response:
        """Has the database told again what it refused, now."""
        return self._answers.json(compact({"released": await self._there().release()}))

    def _there(self) -> Database:
        if self._database is None:
            raise Refused(
                "no_database",
                "no database stands behind this node: applications talk to the sidecar itself "
                "(`database` in the configuration puts one there)",
                409,
            )
        return self._database


class _Lines:
    """An answer of lines that begins with the first one."""

    def __init__(self, request: web.Request, answers: Answers) -> None:
        self._request, self._answers = request, answers
        self._response: web.StreamResponse | None = None
        self._told_at = 0.0

    @property
    def have_begun(self) -> bool:
        return self._response is not None

    async def tell(self, line: Mapping[str, object]) -> None:
        """Write a line, unless there was one just now."""
        now = time.monotonic()
        if now - self._told_at >= TELL_S:
            self._told_at = now
            await self._write(line)

    async def end(self, line: Mapping[str, object]) -> web.StreamResponse:
        """Write the last one."""
        response = await self._write(line)
        await response.write_eof()
        return response

    async def _write(self, line: Mapping[str, object]) -> web.StreamResponse:
        if self._response is None:
            kind = {"Content-Type": "application/x-ndjson", "X-Served-By": self._answers.served_by}
            self._response = web.StreamResponse(headers=kind)
            await self._response.prepare(self._request)
        await self._response.write(f"{compact(line)}\n".encode())
        return self._response


def held_rows(held: Sequence[Held]) -> list[dict[str, str]]:
    """One object per tuple; `since` is when the database refused it last."""
    return [
        {
            **dict(zip(("tenant", "resource", "relation", "subject"), one.identity, strict=True)),
            "reason": one.reason,
            "since": format_expires_at(one.since_us),
        }
        for one in held
    ]


def _flag(request: web.Request, name: str) -> bool:
    text = request.query.get(name, "0")
    if text not in {"0", "1"}:
        raise Refused("invalid_request", f"{name} is 0 or 1, not {text[:40]!r}")
    return text == "1"
