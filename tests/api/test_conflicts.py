"""`GET /conflicts` of the admin listener over real HTTP: pages, filters, and what is refused."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web

from sidecar.admin.conflicts import STRIDE, ConflictLog
from sidecar.admin.status import admin_app
from sidecar.api.answers import Answers
from sidecar.api.listener import AppListener
from sidecar.core.topology import Node as TopologyNode
from sidecar.core.topology import NodeId, RegionId, ZoneId
from sidecar.health import Health
from sidecar.metrics import Metrics
from sidecar.store.redis_store import RedisStore
from tests.servers import RealValkey, free_ports
from tests.store.conftest import BEGIN_US, LWW, Node, numbered, running_node

HERE = TopologyNode(NodeId("us1"), RegionId("us-west-1"), ZoneId("us-west-1a"), "127.0.0.1:1")


@dataclass
class Admin:
    """The admin listener of us1, and eu1, with which it has conflicts."""

    port: int
    session: aiohttp.ClientSession
    us: Node
    eu: Node

    async def send(self, method: str, path: str) -> tuple[int, dict[str, Any]]:
        return await send(self.session, self.port, method, path)

    async def page(self, **asked: object) -> dict[str, Any]:
        query = "&".join(f"{name}={quote(str(value))}" for name, value in asked.items())
        status, body = await self.send("GET", f"/conflicts?{query}")
        assert status == 200, body
        return body

    async def all(self, **asked: object) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        page = await self.page(**asked)
        while page["cursor"] is not None:
            found += page["conflicts"]
            page = await self.page(**asked, after=page["cursor"])
        found += page["conflicts"]
        return found

    async def quarrel(self, *documents: str) -> None:
        """Both write these at the same time; us1 hears of it."""
        await self.us.write(*(f"+{text}" for text in documents))
        await self.eu.write(*(f"-{text}" for text in documents))
        await self.us.take(self.eu)


@pytest.fixture
async def admin(valkey: RealValkey) -> AsyncIterator[Admin]:
    async with AsyncExitStack() as stack:
        us, eu = [
            await stack.enter_async_context(running_node(valkey, name)) for name in ("us1", "eu1")
        ]
        for node in (us, eu):
            await node.store.opened()
        port, session = await stack.enter_async_context(listening(us.store))
        yield Admin(port, session, us, eu)


@asynccontextmanager
async def listening(store: RedisStore) -> AsyncIterator[tuple[int, aiohttp.ClientSession]]:
    """The admin listener of a store: its port, and a client."""
    answers = Answers(HERE)
    app = admin_app(Metrics(), Health(HERE, store, []), answers, ConflictLog([store], answers))
    runner = AppListener(app, answers)
    await runner.setup()
    try:
        (port,) = free_ports(1)
        await web.TCPSite(runner, "127.0.0.1", port).start()
        async with aiohttp.ClientSession() as session:
            yield port, session
    finally:
        await runner.cleanup()


async def send(
    session: aiohttp.ClientSession, port: int, method: str, path: str
) -> tuple[int, dict[str, Any]]:
    """Any request, and its answer, which must be JSON and say who gave it."""
    async with session.request(method, f"http://127.0.0.1:{port}{path}") as answer:
        text = await answer.text()
        assert answer.content_type == "application/json", text
        assert answer.headers["X-Served-By"] == "us-west-1/us1"
        return answer.status, json.loads(text)


async def test_a_conflict_is_told_with_both_versions(admin: Admin) -> None:
    assert await admin.page() == {"conflicts": [], "cursor": None}
    condition, until = '{"n":[1,{}],"é":null}', 1_924_992_000_000_000
    inserted = await admin.us.write(f"+doc:é viewer team:a#member if {condition} until {until}")
    admin.eu.clock.pass_s(1)
    deleted = await admin.eu.write("-doc:é viewer team:a#member")
    await admin.us.take(admin.eu)
    revision = (await admin.us.newest()).revision
    delete = {
        "operation": "delete",
        "timestamp": str(deleted.revision),
        "origin": admin.eu.store.origin,
    }
    assert await admin.page() == {
        "conflicts": [
            {
                "cursor": f"{revision}-0",
                "kind": "conflict",
                "merged_at": "2026-09-21T14:13:20Z",
                "revision": str(revision),
                "tenant": "default",
                "resource": "doc:é",
                "relation": "viewer",
                "subject": "team:a#member",
                "strategy": "lww",
                "resolved": "remote",
                "stored": {
                    "operation": "insert",
                    "timestamp": str(inserted.revision),
                    "origin": admin.us.store.origin,
                    "condition": {"n": [1, {}], "é": None},
                    "expires_at": "2031-01-01T00:00:00Z",
                },
                "arrived": delete,
                "winner": delete,
            }
        ],
        "cursor": None,
    }


async def test_pages_lead_through_the_log_from_the_newest_on(admin: Admin) -> None:
    documents = numbered(2 * STRIDE + 50, "doc:{} viewer user:a")
    await admin.quarrel(*documents[:STRIDE])
    old = await admin.all()
    await admin.quarrel(*documents[STRIDE:])
    whole = await admin.all(limit=1000)
    assert [one["resource"] for one in whole] == [
        text.partition(" ")[0] for text in documents[STRIDE:][::-1] + documents[:STRIDE][::-1]
    ]
    assert len(whole) == len(await admin.all(limit=1)) == len(documents)
    assert await admin.all(limit=STRIDE) == await admin.all(limit=77) == whole
    assert await admin.all(newer_than=old[0]["cursor"], limit=99) == whole[: STRIDE + 50]
    assert len((await admin.page())["conflicts"]) == 100
    assert (await admin.page(after=whole[-1]["cursor"])) == {"conflicts": [], "cursor": None}


async def test_conflicts_of_one_resource_are_found_anywhere_in_the_log(admin: Admin) -> None:
    documents = numbered(3 * STRIDE, "doc:{} viewer user:a")
    twice = ["doc:a/b+c&d viewer user:a", "doc:a/b+c&d editor user:a"]
    await admin.quarrel(*twice, *documents)
    found = await admin.all(resource="doc:a/b+c&d")
    assert [one["relation"] for one in found] == ["editor", "viewer"]
    assert await admin.all(resource="doc:a/b+c&d", limit=1) == found
    assert await admin.all(resource="doc:none") == []


async def test_a_page_of_large_conditions_ends_early_and_leads_on(admin: Admin) -> None:
    large = json.dumps("x" * 30_000)
    names = numbered(160, "doc:{} viewer user:a")
    await admin.us.write(*(f"+{text} if {large}" for text in names))
    await admin.eu.write(*(f"-{text}" for text in names))
    await admin.us.take(admin.eu)
    page = await admin.page(limit=1000)
    # What arrived and the winner are the same here: two conditions in each.
    assert len(page["conflicts"]) == 4 * 1024 * 1024 // 60_000 + 1
    assert page["cursor"] is not None
    assert len(await admin.all(limit=1000)) == 160


@pytest.mark.parametrize(
    ("query", "code", "named"),
    [
        ("limit=0", "invalid_request", "limit"),
        ("limit=1001", "invalid_request", "1 to 1000"),
        ("limit=-1", "invalid_request", "limit"),
        ("limit=", "invalid_request", "limit"),
        ("limit=ten", "invalid_request", "limit"),
        ("limit=%D9%A1", "invalid_request", "limit"),
        ("limit=%C2%B2", "invalid_request", "limit"),
        ("limit=" + "9" * 5_000, "invalid_request", "limit"),
        ("limit=1&limit=2", "invalid_request", "more than once"),
        ("limit=1&bogus=2", "invalid_request", "after, limit, newer_than, resource"),
        ("%FF=1", "invalid_request", "parameter"),
        ("after=", "invalid_cursor", "cursor"),
        ("after=0-0", "invalid_cursor", "cursor"),
        ("after=%2B", "invalid_cursor", "cursor"),
        ("after=1-0%00", "invalid_cursor", "cursor"),
        ("newer_than=99999999999999999999-0", "invalid_cursor", "cursor"),
        ("resource=", "invalid_relationship", "type:id"),
        ("resource=doc", "invalid_relationship", "no colon"),
        ("resource=doc:a%00", "invalid_relationship", "not allowed"),
        ("resource=doc:" + "x" * 1_025, "invalid_relationship", "not allowed"),
    ],
)
async def test_a_bad_query_is_refused_by_name(
    admin: Admin, query: str, code: str, named: str
) -> None:
    status, body = await admin.send("GET", f"/conflicts?{query}")
    assert (status, body["error"]) == (400, code), body
    assert named in body["message"]
    assert len(body["message"]) <= 600


async def test_other_methods_are_refused_in_json(admin: Admin) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        status, body = await admin.send(method, "/conflicts")
        assert (status, body["error"]) == (405, "method_not_allowed")
    async with admin.session.head(f"http://127.0.0.1:{admin.port}/conflicts") as answer:
        assert answer.status == 200


async def test_without_redis_the_answer_is_503() -> None:
    store = RedisStore(
        "unix:///nowhere/valkey.sock",
        prefix="us1",
        node="us1",
        rules=LWW,
        metrics=Metrics(),
        now_us=lambda: BEGIN_US,
        random_bits=lambda bits: 7,
    )
    async with listening(store) as (port, session):
        status, body = await send(session, port, "GET", "/conflicts")
    assert (status, body["error"]) == (503, "store_unavailable")


async def test_what_is_no_http_is_refused_in_json(admin: Admin) -> None:
    for raw in (b"GET /conflicts?\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", b"oops\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", admin.port)
        writer.write(raw)
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        assert head.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), head
        assert b"application/json" in head
