"""Nodes on a real server: each a store with a prefix and a wall clock of its own."""

import itertools
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest
import redis

from sidecar.core.conflict import ConflictResolutionStrategy, Rules
from sidecar.core.relationship import Change, Operation, Relationship
from sidecar.errors import ungrouped
from sidecar.metrics import Metrics
from sidecar.store.calls import Filter, Merged, WriteRequest, Written
from sidecar.store.feed import FeedEntry
from sidecar.store.proxy_store import ProxyStore
from sidecar.store.redis_store import RedisStore
from tests.servers import RealValkey

BEGIN_US = 1_790_000_000_000_000
LWW = Rules.of(ConflictResolutionStrategy.LAST_WRITE_WINS)
DELETE_WINS = Rules.of(ConflictResolutionStrategy.DELETE_WINS)


@dataclass
class WallClock:
    """The wall clock of a test: stands still until it is moved."""

    now_us: int = BEGIN_US

    def __call__(self) -> int:
        return self.now_us

    def pass_s(self, seconds: float) -> None:
        self.now_us += int(seconds * 1e6)


@dataclass
class Node:
    """A store and what tests do with it. A change is `+doc:1 viewer user:a`, or `-…`."""

    store: RedisStore
    valkey: RealValkey
    clock: WallClock
    metrics: Metrics = field(repr=False)

    async def write(self, *texts: str, tenant: str = "default", **guard: Any) -> Written:
        changes = [change_of(text, tenant) for text in texts]
        return await self.store.write(WriteRequest(tenant, changes, **guard))

    async def listed(self, tenant: str = "default", **wanted: str) -> list[str]:
        """Everything that matches, as sorted texts, in pages of 100."""
        found: list[str] = []
        cursor = None
        while True:
            page = await self.store.read_page(Filter(tenant, **wanted), 100, cursor)
            found += [text_of(one) for one in page.relationships]
            cursor = page.cursor
            if cursor is None:
                return sorted(found)

    async def own_lines(self, after: int = 0) -> list[bytes]:
        """The transactions that were written here, as they travel."""
        feed = await self.store.feed_after(after, 100_000)
        return [entry.text for entry in feed if entry.origin == self.store.origin]

    async def take(self, other: "Node") -> Merged:
        """Merge everything that was written there."""
        return await self.store.merge(b"\n".join(await other.own_lines()))

    async def newest(self) -> FeedEntry:
        return (await self.store.feed_after(0, 100_000))[-1]

    async def told(self) -> list[str]:
        """What a watcher is told of the newest entry of the feed."""
        return [signed(change) for change in (await self.newest()).transaction().changes]


def change_of(text: str, tenant: str = "default") -> Change:
    operation = {"+": Operation.INSERT, "-": Operation.DELETE}[text[0]]
    return Change(operation, relationship_of(text[1:], tenant))


def relationship_of(text: str, tenant: str = "default") -> Relationship:
    """`doc:1 viewer user:a`, with `if CONDITION` or `until MICROSECONDS` behind it."""
    resource, relation, subject, *payload = text.split(" ")
    known = dict(zip(payload[::2], payload[1::2], strict=True))
    until = int(known["until"]) if "until" in known else None
    return Relationship(tenant, resource, relation, subject, known.get("if"), until)


def text_of(one: Relationship) -> str:
    text = f"{one.resource} {one.relation} {one.subject}"
    text += f" if {one.condition}" if one.condition is not None else ""
    return text + (f" until {one.expires_at}" if one.expires_at is not None else "")


def signed(change: Change) -> str:
    return {"insert": "+", "delete": "-"}[change.operation] + text_of(change.relationship)


def conflicts(node: Node) -> tuple[int, int]:
    """Resolved locally, resolved remotely; their sum is the total."""
    values = dict(re.findall(rb"^inferadb_replication_(\w+) (\S+)$", node.metrics.render(), re.M))
    local = int(float(values[b"conflicts_resolved_local"]))
    remote = int(float(values[b"conflicts_resolved_remote"]))
    assert float(values[b"conflicts_total"]) == local + remote
    return local, remote


def dump(valkey: RealValkey) -> dict[bytes, Any]:
    """Every key of the server with its value."""
    readers: dict[bytes, Callable[[Any, bytes], object]] = {
        b"string": lambda client, key: client.get(key),
        b"hash": lambda client, key: sorted(client.hgetall(key).items()),
        b"set": lambda client, key: sorted(client.smembers(key)),
        b"zset": lambda client, key: client.zrange(key, 0, -1, withscores=True),
        b"stream": lambda client, key: client.xrange(key),
    }
    with redis.Redis.from_url(valkey.url, protocol=2) as client:
        return {key: readers[client.type(key)](client, key) for key in sorted(client.keys())}


class OpenNode(Protocol):
    """Opens a node that closes with the test."""

    async def __call__(
        self, name: str, *, rules: Rules = LWW, clock: WallClock | None = None, **options: Any
    ) -> Node: ...


@asynccontextmanager
async def running_node(
    valkey: RealValkey,
    name: str,
    *,
    rules: Rules = LWW,
    clock: WallClock | None = None,
    prefix: str | None = None,
    random_bits: Callable[[int], int] | None = None,
    kind: type[RedisStore] = RedisStore,
    **options: Any,
) -> AsyncIterator[Node]:
    """A node with the prefix of its name; a failure of its own is raised as it is."""
    node_clock, metrics = clock or WallClock(), Metrics()
    with ungrouped():
        async with kind(
            valkey.url,
            prefix=prefix or name,
            node=name,
            rules=rules,
            metrics=metrics,
            now_us=node_clock,
            random_bits=random_bits or random.Random(name).getrandbits,
            **options,
        ) as store:
            yield Node(store, valkey, node_clock, metrics)


@pytest.fixture
async def open_node(valkey: RealValkey) -> AsyncIterator[OpenNode]:
    """Opens nodes on the session's empty server, each with a prefix of its own."""
    async with AsyncExitStack() as stack:

        async def opened(name: str, **options: Any) -> Node:
            node = await stack.enter_async_context(running_node(valkey, name, **options))
            await node.store.opened()
            return node

        yield opened


_numbers = itertools.count()


async def intended(store: ProxyStore, *texts: str, schema: str = "") -> str:
    """The name of an open intent."""
    name = f"intent-{next(_numbers)}"
    await store.intend(name, "default", [*map(change_of, texts)], schema)
    return name


def numbered(count: int, pattern: str = "+doc:{} viewer user:a") -> list[str]:
    return [pattern.format(number) for number in range(count)]
