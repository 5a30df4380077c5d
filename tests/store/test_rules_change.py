"""A data set opened under other conflict rules: winners are chosen anew, and watchers are told."""

import json
from typing import Any

import pytest
import redis

from sidecar.core.conflict import ConflictResolutionStrategy, Override, Rules
from sidecar.core.script import check
from sidecar.errors import Refused
from sidecar.store import opening
from sidecar.store.keys import Keys
from sidecar.store.redis_store import RedisStore
from tests.lua.replicas import LuaNode
from tests.servers import RealValkey
from tests.store.conftest import DELETE_WINS, LWW, Node, dump, running_node, signed

INSERT_WINS = Rules.of(ConflictResolutionStrategy.INSERT_WINS)
DOCS = [f"doc:{n} viewer user:a" for n in range(7)]


def check_what_follows(valkey: RealValkey, rules: Rules) -> None:
    """Indexes, digests and the list of the unsettled fit the states, under these rules."""
    with redis.Redis.from_url(valkey.url, protocol=2) as client:
        LuaNode(client, "us1", rules, "").check_what_follows()


async def conflicted(us: Node, eu: Node) -> None:
    """Every document was inserted in one region and deleted in the other, half either way."""
    await us.write(*(f"+{doc}" for doc in DOCS[:4]), *(f"-{doc}" for doc in DOCS[4:]))
    eu.clock.pass_s(1)
    await eu.write(*(f"-{doc}" for doc in DOCS[:4]), *(f"+{doc}" for doc in DOCS[4:]))
    await eu.write("+doc:quiet viewer user:a")
    await us.take(eu)


async def test_another_strategy_shows_another_winner_and_tells_watchers(
    valkey: RealValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "RERANK_COUNT", 3)
    peers: dict[str, Any] = {"has_peers": True}
    async with running_node(valkey, "eu1", rules=DELETE_WINS) as eu:
        await eu.store.opened()
        async with running_node(valkey, "us1", rules=DELETE_WINS, **peers) as us:
            await us.store.opened()
            await conflicted(us, eu)
            assert await us.listed() == ["doc:quiet viewer user:a"]
            vector, revision = us.store.vector, us.store.revision
        async with running_node(valkey, "us1", rules=INSERT_WINS, **peers) as us:
            await us.store.opened()
            assert await us.listed() == [*DOCS, "doc:quiet viewer user:a"]
            assert us.store.vector == vector
            assert us.store.joined == frozenset({"us1"})
            assert us.store.floor == vector, "what came before travels as states only"
            news = await us.store.feed_after(revision, 100)
            told = [signed(change) for one in news for change in one.transaction().changes]
            assert sorted(told) == [f"+{doc}" for doc in DOCS]
            assert {one.origin for one in news} == {"transfer"}
            check_what_follows(valkey, INSERT_WINS)

            await us.store.end_change()
        before = dump(valkey)
        async with running_node(valkey, "us1", rules=INSERT_WINS, **peers) as us:
            await us.store.opened()
            assert us.store.joined is None
            assert dump(valkey) == before, "the same rules change nothing"
        async with running_node(valkey, "us1", rules=LWW, **peers) as us:
            await us.store.opened()
            assert await us.listed() == [*DOCS[4:], "doc:quiet viewer user:a"]
            check_what_follows(valkey, LWW)
            # Under lww losers stay as long as others may have settled them by other rules.
            await eu.write("-doc:6 viewer user:b")
            await us.take(eu)
            states = await us.store.states(0, 4096, 10_000)
            texts = [text for bucket in states.buckets for *_, text in bucket.tuples]
            assert sum(len(json.loads(t[1:])["siblings"]) == 2 for t in texts if "{" in t) == 7


async def test_a_crash_in_the_middle_begins_it_anew(
    valkey: RealValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "RERANK_COUNT", 2)
    async with (
        running_node(valkey, "eu1", rules=DELETE_WINS) as eu,
        running_node(valkey, "us1", rules=DELETE_WINS) as us,
    ):
        await eu.store.opened()
        await us.store.opened()
        await conflicted(us, eu)
    rerank, calls = RedisStore._rerank, 0

    async def dies(self: RedisStore, names: Any, fingerprint: str) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Refused("crashed", "in the middle")
        return await rerank(self, names, fingerprint)

    monkeypatch.setattr(RedisStore, "_rerank", dies)
    with pytest.raises(Refused, match="in the middle"):
        async with running_node(valkey, "us1", rules=INSERT_WINS) as us:
            await us.store.opened()
    await us.store.__aexit__(None, None, None)
    monkeypatch.setattr(RedisStore, "_rerank", rerank)
    # Also back to the old rules: some tuples have been ranked by the new ones.
    async with running_node(valkey, "us1", rules=DELETE_WINS) as us:
        await us.store.opened()
        assert await us.listed() == ["doc:quiet viewer user:a"]
        check_what_follows(valkey, DELETE_WINS)


async def test_a_script_that_fails_for_what_is_stored_changes_nothing(valkey: RealValkey) -> None:
    async with (
        running_node(valkey, "eu1", rules=DELETE_WINS) as eu,
        running_node(valkey, "us1", rules=DELETE_WINS) as us,
    ):
        await eu.store.opened()
        await us.store.opened()
        us.clock.pass_s(987.654321)
        await conflicted(us, eu)
        at = us.store.vector[us.store.origin]
    fails = check(
        "return function(siblings)\n"
        "  local best = 1\n"
        "  for i, one in ipairs(siblings) do\n"
        f"    if one.timestamp == {at // 1000} * 1000 + {at % 1000} then return nil end\n"
        "    if newer(one, siblings[best]) then best = i end\n"
        "  end\n"
        "  return best\n"
        "end",
        "fails.lua",
    )
    rules = Rules.of(ConflictResolutionStrategy.CUSTOM, script=fails.source)
    before = dump(valkey)
    with pytest.raises(Refused, match=r"no winner can be chosen for default/doc:\d#viewer#user:a"):
        async with running_node(valkey, "us1", rules=rules, custom=fails) as us:
            await us.store.opened()
    await us.store.__aexit__(None, None, None)
    after, meta = dump(valkey), Keys("us1").meta.encode()
    assert {k: v for k, v in after.items() if k != meta} == {
        k: v for k, v in before.items() if k != meta
    }
    async with running_node(valkey, "us1", rules=DELETE_WINS) as us:
        await us.store.opened()
        assert await us.listed() == ["doc:quiet viewer user:a"]


async def test_an_override_changes_only_what_it_is_for(valkey: RealValkey) -> None:
    async with (
        running_node(valkey, "eu1", rules=DELETE_WINS) as eu,
        running_node(valkey, "us1", rules=DELETE_WINS) as us,
    ):
        await eu.store.opened()
        await us.store.opened()
        await us.write("+doc:1 viewer user:a", "+doc:1 editor user:a")
        await eu.write("-doc:1 viewer user:a", "-doc:1 editor user:a")
        await us.take(eu)
    override = Override(ConflictResolutionStrategy.INSERT_WINS, relation="editor")
    rules = Rules.of(ConflictResolutionStrategy.DELETE_WINS, overrides=[override])
    async with running_node(valkey, "us1", rules=rules) as us:
        await us.store.opened()
        assert await us.listed() == ["doc:1 editor user:a"]
        check_what_follows(valkey, rules)
