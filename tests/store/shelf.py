"""A database in memory that a test steers, its dialect, and a node that stands in front of it."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, cast

from sidecar.core.relationship import Change, Identity, Operation, Relationship
from sidecar.dialects.dialect import (
    Ask,
    Call,
    Found,
    Request,
    SchemaDialect,
    Verdict,
    Write,
    schema_tuple,
)
from sidecar.errors import Unavailable
from sidecar.proxy.applier import Applier
from sidecar.proxy.database import Answer, Database, NotSent
from sidecar.proxy.gate import Gate
from sidecar.proxy.looking import Looking
from sidecar.proxy.settling import Settling
from sidecar.proxy.writes import Behind, Writes
from sidecar.store.calls import Written
from sidecar.store.proxy_store import ProxyStore
from tests.store.conftest import Node, change_of, text_of

LIMIT_S = 10.0


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Wait for what other tasks bring about; fail after a while."""
    async with asyncio.timeout(LIMIT_S):
        while not await condition():
            await asyncio.sleep(0.005)


class ShelfDialect(SchemaDialect):
    """Three calls: find, apply, schema."""

    name: ClassVar[str] = "shelf"
    proven: ClassVar[str] = "nothing"
    health_path: ClassVar[str] = "/"
    most_changes: ClassVar[int] = 100

    def call_of(self, method: str, path: str) -> Call | None:
        return None

    def tenant_of(self, path: str) -> str:
        return "default"

    def write_of(self, call: Call, request: Request) -> Write | None:
        return None

    def find(self, tenant: str, matching: Mapping[str, object], cursor: str | None) -> Ask:
        return Ask("POST", "/find", json.dumps(matching).encode())

    def found(self, tenant: str, body: bytes) -> Found:
        return Found([Relationship(*row) for row in json.loads(body)])

    def look(self, identities: Sequence[Identity]) -> Sequence[Mapping[str, object]]:
        return [{"resource": one[1], "subject": one[3]} for one in identities]

    def everything(self, tenant: str, schema: str | None) -> Sequence[Mapping[str, object]]:
        return [{}]

    def apply(self, tenant: str, changes: Sequence[Change]) -> Ask:
        return Ask("POST", "/apply", json.dumps(changes).encode())

    def verdict(self, status: int, body: bytes) -> Verdict:
        known = {200: Verdict.DONE, 400: Verdict.REFUSED}
        return known.get(status, Verdict.AGAIN)

    def read_schema(self) -> Ask:
        return Ask("GET", "/schema")

    def schema_of(self, status: int, body: bytes) -> str:
        return body.decode()

    def apply_schema(self, text: str) -> Ask:
        return Ask("POST", "/schema", text.encode())


class Shelf:
    """The database. It refuses resources of the types in `unknown_types`, gives schemas back in
    capitals, and meets what is put into `faults`, in order: for each request to a path a word.

    lost: done, without an answer. late: no answer, to be done by `carry_out_late`. unreached: it is
    not there. rubbish: an answer of something else. held: done and answered after `release`.
    """

    def __init__(self) -> None:
        self.rows: dict[Identity, Relationship] = {}
        self.schema = ""
        self.unknown_types: set[str] = set()
        self.faults: dict[str, deque[str]] = {}
        self.asked: list[Ask] = []
        self._late: deque[Ask] = deque()
        self.released = asyncio.Event()

    @property
    def held(self) -> list[str]:
        """What is stored, as texts."""
        return sorted(text_of(one) for one in self.rows.values())

    def meet(self, path: str, *faults: str) -> None:
        self.faults.setdefault(path, deque()).extend(faults)

    async def ask(self, ask: Ask) -> Answer:
        self.asked.append(ask)
        faults = self.faults.get(ask.path)
        match faults.popleft() if faults else "":
            case "unreached":
                raise NotSent("database_unavailable", "it is not there")
            case "late":
                self._late.append(ask)
                raise Unavailable("outcome_unknown", "silence")
            case "lost":
                self._execute(ask)
                raise Unavailable("outcome_unknown", "silence")
            case "rubbish":
                return _answer(200, b"<html>")
            case "held":
                await self.released.wait()
        return self._execute(ask)

    def carry_out_late(self) -> None:
        while self._late:
            self._execute(self._late.popleft())

    def _execute(self, ask: Ask) -> Answer:
        match ask.method, ask.path:
            case "POST", "/find":
                return _answer(200, json.dumps(self._matching(json.loads(ask.body))).encode())
            case "POST", "/apply" | "/write":
                return self._apply([_change(row) for row in json.loads(ask.body)])
            case "POST", "/delete":
                matching, limit = json.loads(ask.body)
                for one in self._matching(matching)[: limit or None]:
                    del self.rows[one.identity]
            case "POST", "/schema":
                self.schema = ask.body.decode().upper()
            case "GET", "/schema":
                return _answer(200, self.schema.encode())
        return _answer(200)

    def _matching(self, wanted: Mapping[str, str]) -> list[Relationship]:
        rows = sorted(self.rows.values())
        return [one for one in rows if all(getattr(one, k) == v for k, v in wanted.items())]

    def _apply(self, changes: Sequence[Change]) -> Answer:
        for _, one in changes:
            if one.resource.partition(":")[0] in self.unknown_types:
                return _answer(400, b"no such type")
        for operation, one in changes:
            if operation is Operation.INSERT:
                self.rows[one.identity] = one
            else:
                self.rows.pop(one.identity, None)
        return _answer(200)


def _change(row: list[Any]) -> Change:
    operation, one = row
    return Change(Operation(operation), Relationship(*one))


def _answer(status: int, body: bytes = b"") -> Answer:
    return Answer(status, None, [], body)


class Stand:
    """A node in front of a shelf, and what applications do with it; its loops run."""

    def __init__(self, node: Node) -> None:
        self.node, self.shelf = node, Shelf()
        self.store = cast("ProxyStore", node.store)
        database, dialect, gate = cast("Database", self.shelf), ShelfDialect(), Gate()
        looking = Looking(dialect, database)
        self.behind = Behind(
            self.store,
            gate,
            looking,
            Settling(self.store, looking),
            Applier(self.store, dialect, database, gate, node.metrics),
        )

    async def write(self, *texts: str) -> tuple[Answer, Written | None]:
        """An application writes: `+doc:1 viewer user:a`, or `-…`."""
        changes = [change_of(text) for text in texts]
        ask = Ask("POST", "/write", json.dumps(changes).encode())
        return await self._carry_out(Write("default", changes), ask)

    async def write_schema(self, text: str) -> tuple[Answer, Written | None]:
        changes = [Change(Operation.INSERT, schema_tuple("default", text))]
        return await self._carry_out(
            Write("default", changes), Ask("POST", "/schema", text.encode())
        )

    async def delete(self, limit: int = 0, **matching: str) -> tuple[Answer, Written | None]:
        write = Write("default", matching=dict(matching), is_partial=limit > 0)
        ask = Ask("POST", "/delete", json.dumps([matching, limit]).encode())
        return await self._carry_out(write, ask)

    async def _carry_out(self, write: Write, ask: Ask) -> tuple[Answer, Written | None]:
        return await Writes().carry_out(self.behind, write, lambda: self.shelf.ask(ask))

    async def is_quiet(self) -> bool:
        """Nothing is unknown, nothing to be told."""
        return (
            not self.behind.settling.count
            and not await self.store.intents()
            and not await self.store.dirty_count()
        )

    async def quiet(self) -> None:
        await until(self.is_quiet)

    async def agrees(self) -> list[str]:
        """What Redis and the database show in the end: the same."""
        await self.quiet()
        shown = [one for one in await self.node.listed() if not one.startswith("sidecar-schema:")]
        assert shown == self.shelf.held
        return shown


@asynccontextmanager
async def running(stand: Stand, *, applier: bool = True) -> AsyncIterator[Stand]:
    """Its loops run meanwhile; they end with it, and fail it where they fail."""
    async with asyncio.TaskGroup() as tasks:
        loops = [tasks.create_task(stand.behind.settling.run())]
        if applier:
            loops.append(tasks.create_task(stand.behind.applier.run()))
        try:
            yield stand
        finally:
            for loop in loops:
                loop.cancel()
