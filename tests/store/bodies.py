"""One data set in two bodies, the store on Redis and the one of the simulator, behind one shape.

What both have in common (`agent/peers.py` calls it a replica) is called on them as it is.
"""

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest
import redis

from sidecar.agent.peers import Replica
from sidecar.core.conflict import Rules
from sidecar.core.relationship import Change, Identity, bucket_of
from sidecar.core.session import TRANSFER
from sidecar.core.state import TupleState, Winner
from sidecar.core.vector import Vector, Version, above, pointwise_max
from sidecar.core.wire import encode_bucket
from sidecar.errors import Unavailable
from sidecar.store.calls import Way, WriteRequest
from sidecar.store.feed import FeedEntry
from sidecar.store.redis_store import RedisStore
from tests.lua.replicas import decode_state
from tests.servers import RealValkey
from tests.sim.memory_store import Disk, MemoryStore
from tests.sim.texts import identity_of
from tests.store.conftest import Node, WallClock, conflicts, running_node

TENANT = "default"
ANY_NUMBER = 10**9


class Kept(Replica, Protocol):
    """What both stores have beyond what the replication calls."""

    async def feed_after(self, revision: int, count: int) -> list[FeedEntry]: ...
    async def unsettled(self) -> int: ...
    async def oldest_unsettled(self) -> int | None: ...
    async def end_exposure(self) -> None: ...


class Body(Protocol):
    """A data set that is written, trimmed, and loses things."""

    @property
    def store(self) -> Kept: ...
    async def write(self, changes: Sequence[Change]) -> Version: ...
    async def trim(self, up_to: int) -> None: ...
    def conflicts(self) -> tuple[int, int]: ...
    def save(self) -> None: ...
    async def restart(self, *, loses: bool = False) -> None: ...
    async def restart_server(self, *, loses: bool = False) -> None: ...


@dataclass
class InMemory:
    """`MemoryStore`, as a process of the simulator has it."""

    store: MemoryStore
    _saved: Disk = field(default_factory=Disk)

    async def write(self, changes: Sequence[Change]) -> Version:
        return await self.store.write(TENANT, changes)

    async def trim(self, up_to: int) -> None:
        self.store.trim(up_to)

    def conflicts(self) -> tuple[int, int]:
        counted = self.store.conflicts
        return counted[Winner.LOCAL], counted[Winner.REMOTE]

    def save(self) -> None:
        """What a crash that loses writes goes back to."""
        self.store.sync()
        self._saved = self.store.disk.copy()

    async def restart(self, *, loses: bool = False) -> None:
        """Process and server end and come back."""
        self._crash(loses)
        self.store.start()

    async def restart_server(self, *, loses: bool = False) -> None:
        """The server ends and comes back; the process remembers."""
        self._crash(loses)
        self.store.reopen()

    def _crash(self, loses: bool) -> None:
        if loses:
            self.store.restore(self._saved)
        else:
            self.store.crash(loses=False)


class OnRedis:
    """`RedisStore`. Another `run_id` in its data set stands for a server that was restarted."""

    def __init__(self, valkey: RealValkey, name: str, prefix: str, **options: Any) -> None:
        self._valkey, self._name, self._prefix, self._options = valkey, name, prefix, options
        self._client = redis.Redis.from_url(valkey.url, protocol=2)
        self._stack = AsyncExitStack()
        self._saved: dict[bytes, bytes] = {}

    async def open(self) -> None:
        """Open it as a new process."""
        opening = running_node(self._valkey, self._name, prefix=self._prefix, **self._options)
        self._node: Node = await self._stack.enter_async_context(opening)
        await self._node.store.opened()

    async def close(self) -> None:
        """The process ends."""
        await self._stack.aclose()

    @property
    def store(self) -> RedisStore:
        return self._node.store

    async def write(self, changes: Sequence[Change]) -> Version:
        written = await self.store.write(WriteRequest(TENANT, changes))
        return written.revision, self.store.origin

    async def trim(self, up_to: int) -> None:
        await self.store.trim(up_to, ANY_NUMBER)

    def conflicts(self) -> tuple[int, int]:
        return conflicts(self._node)

    def save(self) -> None:
        """What a crash that loses writes goes back to."""
        dumped = {key: self._client.dump(key) for key in self._keys()}
        self._saved = {key: text for key, text in dumped.items() if text is not None}

    async def restart(self, *, loses: bool = False) -> None:
        """Process and server end and come back."""
        await self.close()
        self._crash(loses)
        self._stack = AsyncExitStack()
        await self.open()

    async def restart_server(self, *, loses: bool = False) -> None:
        """The server ends and comes back; the process remembers."""
        self._crash(loses)
        self._client.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(Unavailable):
            await self.store.store_rows({})
        await self.store.opened()

    def _keys(self) -> list[bytes]:
        return list(self._client.scan_iter(f"{{{self._prefix}:*", count=10_000))

    def _crash(self, loses: bool) -> None:
        if loses:
            for key in self._keys():
                self._client.delete(key)
            for key, text in self._saved.items():
                self._client.restore(key, 0, text)
        (meta,) = self._client.scan_iter(f"{{{self._prefix}:*:meta", count=10_000)
        self._client.hset(meta, "run_id", "of a server that is gone")


@asynccontextmanager
async def on_redis(
    valkey: RealValkey, name: str, rules: Rules, clock: WallClock, prefix: str | None = None
) -> AsyncIterator[OnRedis]:
    """An open data set with peers on a real server."""
    body = OnRedis(
        valkey, name, prefix or name, rules=rules, clock=clock, has_peers=True, random_bits=_bits
    )
    await body.open()
    try:
        yield body
    finally:
        await body.close()


def in_memory(name: str, rules: Rules, clock: WallClock) -> InMemory:
    """The same in memory."""
    store = MemoryStore(name, rules, now_us=clock, random_bits=_bits)
    store.start()
    return InMemory(store)


def _bits(_: int) -> int:
    """No chance: both bodies call their incarnations the same."""
    return 7


@dataclass(frozen=True)
class View:
    """What a data set holds, whatever its body."""

    origin: str
    phase: str
    vector: Vector
    floor: Vector
    progress: str
    unsettled: int
    tuples: dict[Identity, TupleState]
    beyond: dict[int, Vector]


async def view(store: Kept, buckets: Iterable[int]) -> View:
    """Everything of it, in these buckets, that the other nodes can come to notice."""
    pages = [await store.states(number, 1, ANY_NUMBER) for number in buckets]
    return View(
        store.origin,
        store.phase.value,
        dict(store.vector),
        dict(store.floor),
        store.progress,
        await store.unsettled(),
        {
            identity_of(row[0], row[1]): seen_above(decode_state(row[2]), states.vector)
            for states in pages
            for row in states.buckets[0].tuples
        },
        {
            states.buckets[0].number: states.buckets[0].beyond
            for states in pages
            if states.buckets[0].beyond
        },
    )


def seen_above(state: TupleState, vector: Vector) -> TupleState:
    """What the vector has reached leaves `beyond` only when a tuple is touched."""
    return TupleState(state.siblings, above(state.beyond, vector))


async def lines_of(store: Kept, after: int = 0) -> list[bytes]:
    """The transactions in a feed, as they travel."""
    feed = await store.feed_after(after, 100_000)
    return [entry.text for entry in feed if entry.origin != TRANSFER]


async def page_of(store: Kept, buckets: Iterable[int]) -> bytes:
    """A page with these buckets, as a source sends it."""
    pages = [await store.states(number, 1, ANY_NUMBER) for number in buckets]
    return b"\n".join(
        encode_bucket(one.number, pointwise_max(states.vector, one.beyond), one.tuples)
        for states in pages
        for one in states.buckets
    )


def buckets_of(identities: Iterable[Identity]) -> list[int]:
    """The buckets in which these tuples lie."""
    return sorted({bucket_of(identity[0], identity[1]) for identity in identities})


async def transfer(source: Kept, target: Kept, buckets: Iterable[int]) -> None:
    """A whole state transfer."""
    start = dict(source.vector)
    progress = json.dumps(start, sort_keys=True)
    await target.absorb(await page_of(source, buckets), Way.JOIN, progress)
    assert await target.finish(start, progress)
