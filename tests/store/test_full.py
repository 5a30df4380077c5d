"""A Redis that is nearly full or full: what goes on, what is refused, and what stays whole."""

import asyncio
import re
from collections.abc import Callable, Iterator

import pytest
import redis

from sidecar.agent.trim import Trimming
from sidecar.core.relationship import Change, Operation
from sidecar.core.topology import Node as TopologyNode
from sidecar.core.topology import NodeId, RegionId, ZoneId
from sidecar.core.trim import Keep
from sidecar.errors import Unavailable
from sidecar.health import Health
from sidecar.store import opening
from sidecar.store.calls import MergeOutcome
from tests.lua.replicas import LuaNode, change_of
from tests.servers import RealValkey
from tests.store.conftest import LWW, Node, OpenNode, dump, numbered, running_node
from tests.unit.test_metrics import shown

BALLAST_BYTES = 8_000_000
DOC, TUPLE = "+doc:1 viewer user:a", "doc:1 viewer user:a"
FULL = "inferadb_sidecar_store_full"
BEGIN_US = 1_790_000_000_000_000


class Limit:
    """The `maxmemory` of the session's server."""

    def __init__(self, valkey: RealValkey) -> None:
        self._valkey = valkey

    def leave(self, share: float) -> None:
        """Set it so that this share of it is free; below 0: it is exceeded."""
        found = re.search(rb"used_memory:(\d+)", self._valkey.call("INFO", "memory"))
        assert found is not None
        self._set(int(int(found[1]) / (1 - share)))

    def lift(self) -> None:
        self._set(0)

    def _set(self, limit: int) -> None:
        assert self._valkey.call("CONFIG", "SET", "maxmemory", str(limit)) == b"+OK\r\n"


@pytest.fixture
def limit(valkey: RealValkey, monkeypatch: pytest.MonkeyPatch) -> Iterator[Limit]:
    """Lifted afterwards. The server holds enough for a share of it to be more than its noise."""
    monkeypatch.setattr(opening, "PING_S", 0.01)
    valkey.call("SETRANGE", "ballast", str(BALLAST_BYTES), "x")
    limit = Limit(valkey)
    try:
        yield limit
    finally:
        limit.lift()


async def until_full(node: Node, is_full: bool = True) -> None:
    async with asyncio.timeout(10):
        while bool(node.store.full_because) != is_full:
            await asyncio.sleep(0.001)


async def test_at_the_reserve_writes_are_refused_and_everything_else_goes_on(
    open_node: OpenNode, limit: Limit, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    us, eu = await open_node("us1"), await open_node("eu1")
    await us.write(DOC)
    await eu.write("+doc:2 viewer user:b")
    limit.leave(0.05)
    await until_full(us)
    for text in ("+doc:3 viewer user:a", f"-{TUPLE}"):
        with pytest.raises(Unavailable) as refused:
            await us.write(text)
        assert (refused.value.code, refused.value.retry_after_s) == ("store_full", 5)
        assert "maxmemory" in refused.value.message
    assert (await us.take(eu)).outcome is MergeOutcome.APPLIED
    assert await us.listed() == [TUPLE, "doc:2 viewer user:b"]
    await us.store.store_cursor("eu1", 5)
    assert us.store.is_open
    assert shown(us.metrics)[FULL] == 1
    limit.leave(0.2)
    await until_full(us, False)
    await us.write("+doc:3 viewer user:a")
    assert shown(us.metrics)[FULL] == 0
    told = [text for text in caplog.messages if text.startswith("store")]
    for words in ("store full: writes are refused", "store has room again: writes are accepted"):
        assert told.count(words) == 2, "once per node"


async def test_above_maxmemory_cursors_are_stored_and_the_feed_is_trimmed(
    open_node: OpenNode, limit: Limit
) -> None:
    us = await open_node("us1")
    for text in numbered(20):
        await us.write(text)
    limit.leave(-0.1)
    await us.store.store_cursor("eu1", us.store.revision)
    assert await us.store.cursors() == {"eu1": us.store.revision}
    assert (await us.store.trim(us.store.revision, 1_000)).gone == 21
    assert us.store.floor == us.store.vector
    assert await us.store.feed_length() == 0
    assert len(await us.listed()) == 20


async def test_a_full_store_keeps_nothing_for_watchers(open_node: OpenNode, limit: Limit) -> None:
    """And everything for a target that needs it."""
    us = await open_node("us1")
    written = [(await us.write(text)).revision for text in numbered(4)]
    await us.store.store_cursor("eu1", written[1])
    keep = Keep(3_600_000_000, 1_000)
    loop = Trimming(us.store, ["eu1"], keep, metrics=us.metrics, now_us=us.clock)
    await loop.trim()
    assert us.store.trimmed == 0
    limit.leave(-0.1)
    await until_full(us)
    await loop.trim()
    assert [e.revision for e in await us.store.feed_after(0, 10)] == written[2:]


async def test_a_node_opens_on_a_full_redis(valkey: RealValkey, limit: Limit) -> None:
    """It must be able to trim, and to serve what it has."""
    async with running_node(valkey, "us1") as us:
        await us.store.opened()
        await us.write(DOC)
    limit.leave(-0.1)
    valkey.call("SCRIPT", "FLUSH")
    async with running_node(valkey, "us1") as us:
        await us.store.opened()
        assert us.store.full_because, "known from the beginning"
        assert await us.listed() == [TUPLE]
        with pytest.raises(Unavailable, match="full"):
            await us.write(DOC)


async def test_health_says_that_the_store_is_full(open_node: OpenNode, limit: Limit) -> None:
    us = await open_node("us1")
    node = TopologyNode(NodeId("us1"), RegionId("us"), ZoneId("us-a"), "127.0.0.1:1")
    health = Health(node, us.store, [])
    assert health.check()[1]["status"] == "healthy"
    limit.leave(0.05)
    await until_full(us)
    is_serving, said = health.check()
    assert is_serving, "reads are served"
    assert said["status"] == "degraded"
    assert "store is full, writes are refused" in str(said["reasons"])


# -- all or nothing -------------------------------------------------------------------------------


def changes(sign: str, count: int) -> list[Change]:
    operation = {"+": Operation.INSERT, "-": Operation.DELETE}[sign]
    return [change_of(("default", f"doc:{n}", "viewer", "user:a"), operation) for n in range(count)]


@pytest.mark.parametrize("what", ["insert", "insert again", "delete", "merge", "merge a delete"])
def test_a_script_that_takes_memory_does_all_or_nothing(
    what: str, valkey: RealValkey, limit: Limit
) -> None:
    """The server refuses its first command that takes memory, and every one of ours begins so."""
    with redis.Redis.from_url(valkey.url, protocol=2) as client:
        us, eu = LuaNode(client, "us1", LWW, ""), LuaNode(client, "eu1", LWW, "")
        us.open(BEGIN_US)
        eu.open(BEGIN_US)
        us.write(changes("+", 2), BEGIN_US)
        eu.receive(us.log, BEGIN_US)
        eu.write(changes("-" if "delete" in what else "+", 3), BEGIN_US)
        calls: dict[str, Callable[[], object]] = {
            "insert": lambda: us.write(changes("+", 4)[2:], BEGIN_US),
            "insert again": lambda: us.write(changes("+", 4), BEGIN_US),
            "delete": lambda: us.write(changes("-", 3), BEGIN_US),
            "merge": lambda: us.receive(eu.log, BEGIN_US),
            "merge a delete": lambda: us.receive(eu.log, BEGIN_US),
        }
        before = dump(valkey)
        limit.leave(-0.1)
        with pytest.raises(redis.OutOfMemoryError):
            calls[what]()
        assert dump(valkey) == before
        limit.lift()
        us.receive(eu.log, BEGIN_US)
        assert dump(valkey) != before


async def test_a_merge_above_maxmemory_is_refused_as_full_and_may_be_repeated(
    open_node: OpenNode, limit: Limit
) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    await eu.write(*numbered(5))
    lines = b"\n".join(await eu.own_lines())
    limit.leave(-0.1)
    before = dump(us.valkey)
    with pytest.raises(Unavailable) as refused:
        await us.store.merge(lines)
    assert (refused.value.code, refused.value.retry_after_s) == ("store_full", 5)
    assert dump(us.valkey) == before
    assert us.store.is_open
    limit.lift()
    assert (await us.store.merge(lines)).transactions == 2


async def test_a_write_that_redis_refuses_is_refused_as_full(
    open_node: OpenNode, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks at the memory it is the server that says no."""
    monkeypatch.setattr(opening, "PING_S", 3_600.0)
    us = await open_node("us1")
    before = dump(us.valkey)
    limit.leave(-0.1)
    with pytest.raises(Unavailable) as refused:
        await us.write(*numbered(5))
    assert refused.value.code == "store_full"
    assert dump(us.valkey) == before
