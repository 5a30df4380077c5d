"""A node's app listener over real HTTP: real server, real store, real Valkey, free port."""

import asyncio
import contextlib
import io
import json
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sidecar.agent.concern import Concerns
from sidecar.agent.tail import Tail
from sidecar.api.native import LostOf, app_listener, native_app
from sidecar.api.watch import WatchLimits
from sidecar.core.conflict import ConflictResolutionStrategy, Rules
from sidecar.core.topology import Node, NodeId, RegionId, ZoneId
from sidecar.metrics import Metrics
from sidecar.store.redis_store import RedisStore
from tests.servers import RealValkey, free_ports

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What came back: status, headers, and the JSON."""

    status: int
    headers: Mapping[str, str]
    body: JsonObject

    @property
    def error(self) -> str:
        return str(self.body.get("error", ""))

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))


@dataclass
class Api:
    """A client of one node."""

    url: str
    store: RedisStore
    valkey: RealValkey
    session: aiohttp.ClientSession
    health: JsonObject
    runner: web.AppRunner = field(repr=False)
    concerns: Concerns = field(repr=False)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def post(self, path: str, body: object = None, **headers: str) -> Answer:
        """POST JSON; a header is spelled with underscores: `x_tenant="acme"`."""
        return await self.send(
            "POST", path, json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        )

    async def send(
        self, method: str, path: str, raw: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> Answer:
        """Any request, and its answer, which must be JSON and say who gave it."""
        spelled = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(
            method,
            self.url + _full(path),
            data=None if raw is None else io.BytesIO(raw),
            headers=spelled,
            skip_auto_headers=["Content-Type"],
        ) as response:
            text = await response.text()
            assert response.headers["X-Served-By"] == "us-west-1/node1"
            assert response.content_type == "application/json", text
            return Answer(response.status, response.headers, json.loads(text))

    async def write(self, *relationships: str, **headers: str) -> JsonObject:
        """Write `resource relation subject` texts; returns the body of the answer."""
        body = {"relationships": [tuple_of(text) for text in relationships]}
        return self._accepted(await self.post("relationships/write", body, **headers))

    async def delete(self, *relationships: str, **headers: str) -> JsonObject:
        body = {"relationships": [tuple_of(text) for text in relationships]}
        return self._accepted(await self.post("relationships/delete", body, **headers))

    async def update(self, *changes: str, **headers: str) -> JsonObject:
        """One transaction of `+resource relation subject` and `-resource relation subject`."""
        updates = [
            {
                "operation": {"+": "insert", "-": "delete"}[text[0]],
                "relationship": tuple_of(text[1:]),
            }
            for text in changes
        ]
        return self._accepted(
            await self.post("relationships/update", {"updates": updates}, **headers)
        )

    async def listed(self, tenant: str = "default", **wanted: object) -> list[str]:
        """Everything that matches, over all pages, as sorted texts."""
        found: list[str] = []
        cursor = None
        while True:
            body = self._accepted(
                await self.post("relationships/list", {**wanted, "cursor": cursor}, x_tenant=tenant)
            )
            found += [text_of(one) for one in body["relationships"]]
            cursor = body["cursor"]
            if cursor is None:
                assert len(found) == len(set(found))
                return sorted(found)

    async def decides(self, resource: str, relation: str, subject: str, **headers: str) -> bool:
        """The decision of `evaluation`."""
        body = {
            "subject": _entity(subject),
            "action": {"name": relation},
            "resource": _entity(resource),
        }
        return bool(self._accepted(await self.post("evaluation", body, **headers))["decision"])

    @contextlib.asynccontextmanager
    async def watch(
        self, body: Mapping[str, object] | None = None, **headers: str
    ) -> AsyncIterator["Events"]:
        """An open stream."""
        spelled = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.post(
            self.url + _full("watch"),
            json=body or {},
            headers=spelled,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            assert response.headers["X-Served-By"] == "us-west-1/node1"
            events = Events(response)
            opening = await events.next()
            assert opening.name == "checkpoint"
            events.cursor = opening.cursor
            yield events

    @staticmethod
    def _accepted(answer: Answer) -> JsonObject:
        assert answer.status == 200, answer.body
        return answer.body


@dataclass(frozen=True)
class Event:
    """One server-sent event; a comment has the name ":"."""

    name: str
    id: str
    data: JsonObject

    @property
    def cursor(self) -> str:
        return str(self.data["cursor"])

    @property
    def text(self) -> str:
        sign = {"insert": "+", "delete": "-"}[self.data["operation"]]
        return sign + text_of(self.data["relationship"])


@dataclass
class Events:
    """A stream as a reader sees it."""

    response: aiohttp.ClientResponse
    cursor: str = ""

    async def next(self) -> Event:
        """The next event or comment; raises EOFError at the end of the stream."""
        lines: list[str] = []
        while True:
            line = (await self.response.content.readline()).decode()
            if not line:
                raise EOFError
            if line == "\n":
                break
            lines.append(line.rstrip("\n"))
        if lines[0].startswith(":"):
            return Event(":", "", {})
        fields = dict(line.split(": ", 1) for line in lines)
        event = Event(fields["event"], fields.get("id", ""), json.loads(fields["data"]))
        if event.name != "error":
            assert event.id == event.cursor
            self.cursor = event.cursor
        return event

    async def changes(self, count: int) -> list[Event]:
        """The next changes; comments and checkpoints are passed over."""
        found: list[Event] = []
        while len(found) < count:
            event = await self.next()
            if event.name == "change":
                found.append(event)
        return found


def tuple_of(text: str) -> JsonObject:
    resource, relation, subject = text.split(" ")
    return {"resource": resource, "relation": relation, "subject": subject}


def text_of(relationship: Mapping[str, str]) -> str:
    return " ".join(relationship[part] for part in ("resource", "relation", "subject"))


def numbered(count: int, pattern: str = "doc:{} viewer user:alice") -> Sequence[str]:
    return [pattern.format(number) for number in range(count)]


def _entity(text: str) -> JsonObject:
    name, _, relation = text.partition("#")
    kind, _, identifier = name.partition(":")
    entity: JsonObject = {"type": kind, "id": identifier}
    return {**entity, "properties": {"relation": relation}} if relation else entity


def _full(path: str) -> str:
    return path if path.startswith("/") else f"/access/v1/{path}"


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def running_api(
    valkey: RealValkey,
    limits: WatchLimits | None = None,
    others: Mapping[str, str] = {},
    lost_of: LostOf = lambda vector: None,
) -> AsyncIterator[Api]:
    """A node on a free port, ended afterwards. others: the region of each other node."""
    randomness = random.Random(7)
    store = RedisStore(
        valkey.url,
        prefix="sidecar",
        node="node1",
        rules=Rules.of(ConflictResolutionStrategy.LAST_WRITE_WINS),
        metrics=Metrics(),
        now_us=lambda: time.time_ns() // 1000,
        random_bits=randomness.getrandbits,
    )
    node = Node(NodeId("node1"), RegionId("us-west-1"), ZoneId("us-west-1a"), "127.0.0.1:1")
    health: JsonObject = {"version": "test"}
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(store)
        await store.opened()
        tail = Tail(store, 10_000)
        following = asyncio.create_task(tail.run())
        stack.push_async_callback(_cancelled, following)
        concerns = Concerns(store, {"node1": "us-west-1", **others})
        app = native_app(
            store=store,
            tail=tail,
            node=node,
            health=lambda: (not health.get("reasons"), health),
            watch_limits=limits,
            concerns=concerns,
            lost_of=lost_of,
        )
        runner = app_listener(app, shutdown_timeout=5)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        (port,) = free_ports(1)
        await web.TCPSite(runner, "127.0.0.1", port).start()
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=30)
            )
        )
        yield Api(f"http://127.0.0.1:{port}", store, valkey, session, health, runner, concerns)


@pytest.fixture
async def api(valkey: RealValkey) -> AsyncIterator[Api]:
    """A node on an empty real Valkey."""
    async with running_api(valkey) as running:
        yield running
