"""Repair on a real server: a page that replaces, whatever was done behind our back before."""

import json

import pytest
import redis

from sidecar.agent.digests import Digests
from sidecar.core.compare import UNKNOWN
from sidecar.core.conflict import ConflictResolutionStrategy, Rules
from sidecar.core.relationship import bucket_of
from sidecar.errors import Refused
from sidecar.store.calls import Way
from tests.store.conftest import LWW, Node, OpenNode

INSERT_WINS = Rules.of(ConflictResolutionStrategy.INSERT_WINS)
DOC = "doc:1"
BUCKET = bucket_of("default", DOC)
FIELD = "viewer#user:a"


def raw(node: Node) -> redis.Redis:
    return redis.Redis.from_url(node.valkey.url, protocol=2, decode_responses=True)


def key(node: Node, resource: str = DOC) -> str:
    return node.store.keys.tuples("default", resource)


async def pair(open_node: OpenNode, rules: Rules = LWW) -> tuple[Node, Node]:
    """Two nodes that have the same: two tuples of one resource, a deleted one, another resource."""
    us, eu = await open_node("us1", rules=rules), await open_node("eu1", rules=rules)
    await us.write(f"+{DOC} viewer user:a", f"+{DOC} editor user:b", f"+{DOC} viewer user:gone")
    await us.write(f"-{DOC} viewer user:gone", "+doc:2 viewer user:a")
    await eu.write("+doc:3 viewer user:c")
    await both(us, eu)
    return us, eu


async def both(us: Node, eu: Node) -> None:
    await eu.take(us)
    await us.take(eu)


async def repair(mended: Node, source: Node, *buckets: int) -> None:
    here, there = Digests(source.store), Digests(mended.store)
    await there.find_strays()
    pages = [await here.page(bucket) for bucket in buckets or (BUCKET,)]
    await there.take(source.store.node, pages)


async def assert_equal_and_sound(us: Node, eu: Node) -> None:
    """The same sums, digests that fit, and indexes that find what is there."""
    assert await us.listed() == await eu.listed()
    for node in (us, eu):
        digests = Digests(node.store)
        assert await digests.find_strays() == {}
        first = 0
        while first < 4096:
            piece = await digests.read(first)
            assert not piece.damaged
            first = piece.following
        everything = await node.listed()
        for wanted in ({"resource": DOC}, {"subject": "user:a"}, {"resource_type": "doc"}):
            found = await node.listed(**wanted)
            assert found == [text for text in everything if next(iter(wanted.values())) in text]
    first = 0
    while first < 4096:
        piece = await Digests(us.store).read(first)
        _, said = await Digests(eu.store).compare(piece.reading)
        assert not said.unequal
        assert not said.undecided
        first = piece.following


async def differs(us: Node, eu: Node) -> bool:
    piece = await Digests(us.store).read(BUCKET, 1)
    _, said = await Digests(eu.store).compare(piece.reading)
    assert not said.undecided
    return said.unequal == {BUCKET}


async def damaged(node: Node) -> bool:
    return (await Digests(node.store).read(BUCKET, 1)).damaged == {BUCKET}


async def test_equal_nodes_are_told_to_be_equal(open_node: OpenNode) -> None:
    us, eu = await pair(open_node)
    await assert_equal_and_sound(us, eu)


async def test_a_tuple_that_was_removed_comes_back(open_node: OpenNode) -> None:
    us, eu = await pair(open_node)
    with raw(eu) as client:
        client.hdel(key(eu), FIELD)
    assert await differs(us, eu)
    assert await damaged(eu)
    assert not await damaged(us)
    await repair(eu, us)
    await assert_equal_and_sound(us, eu)
    assert await eu.told() == [f"+{DOC} viewer user:a"]


async def test_a_resource_that_was_removed_comes_back(open_node: OpenNode) -> None:
    us, eu = await pair(open_node)
    with raw(eu) as client:
        client.delete(key(eu))
    assert await differs(us, eu)
    await repair(eu, us)
    await assert_equal_and_sound(us, eu)


@pytest.mark.parametrize(
    "text",
    [
        "+1790000000000001 us1.mwabcdefgh01",
        "+9007199254740000 nobody.1",
        '+{"siblings":[["5","us1.x","+","",""]],"revision":"5"}',
        "rubbish",
        "+{}",
        '+{"siblings":[],"revision":"1"}',
        "+",
        "",
    ],
)
async def test_a_tuple_that_was_added_goes(text: str, open_node: OpenNode) -> None:
    us, eu = await pair(open_node)
    with raw(eu) as client:
        client.hset(key(eu), "viewer#user:intruder", text)
    assert await differs(us, eu)
    assert await damaged(eu)
    await repair(eu, us)
    await assert_equal_and_sound(us, eu)


async def test_a_copy_of_a_real_version_goes(open_node: OpenNode) -> None:
    us, eu = await pair(open_node)
    with raw(eu) as client:
        client.hset(key(eu), "viewer#user:intruder", client.hget(key(eu), FIELD) or "")
    assert await differs(us, eu)
    await repair(eu, us)
    await assert_equal_and_sound(us, eu)


async def test_a_key_that_no_bucket_lists_is_found_and_goes(open_node: OpenNode) -> None:
    us, eu = await pair(open_node)
    stray = "doc:stray"
    bucket = bucket_of("default", stray)
    with raw(eu) as client:
        client.hset(key(eu, stray), FIELD, client.hget(key(eu), FIELD) or "")
        digests = Digests(eu.store)
        assert await digests.find_strays() == {bucket: {f"default/{stray}"}}
        _, tuples = await digests.tuples(bucket)
        assert [(one.identity[1], one.is_stray) for one in tuples] == [(stray, True)]
        await repair(eu, us, bucket)
        assert not client.exists(key(eu, stray))
    await assert_equal_and_sound(us, eu)


async def test_a_payload_that_was_changed_under_the_same_version_is_set_right(
    open_node: OpenNode,
) -> None:
    us, eu = await pair(open_node)
    await us.write(f'+{DOC} viewer user:a if {{"ok":1}}')
    await eu.take(us)
    with raw(eu) as client:
        state = client.hget(key(eu), FIELD) or ""
        client.hset(key(eu), FIELD, state.replace('{\\"ok\\":1}', "true"))
    assert await eu.listed(resource=DOC, relation="viewer") == [f"{DOC} viewer user:a if true"]
    assert await differs(us, eu)
    assert not await damaged(eu), "the maintained digest does not know payloads"
    await repair(eu, us)
    await assert_equal_and_sound(us, eu)


@pytest.mark.parametrize("sign", ["+", "-"])
@pytest.mark.parametrize("rules", [LWW, INSERT_WINS], ids=["lww", "insert_wins"])
async def test_a_write_that_the_source_has_not_seen_survives(
    rules: Rules, sign: str, open_node: OpenNode
) -> None:
    """Under insert_wins a delete must not meet the insert again that it had overwritten."""
    us, eu = await pair(open_node, rules)
    with raw(eu) as client:
        client.hdel(key(eu), "editor#user:b")
    await eu.write(f"{sign}{DOC} viewer user:a", f"+{DOC} owner user:new")
    expected = await eu.listed(resource=DOC, relation="viewer")
    await repair(eu, us)
    assert await eu.listed(resource=DOC, relation="viewer") == expected
    assert f"{DOC} owner user:new" in await eu.listed()
    assert f"{DOC} editor user:b" in await eu.listed()
    await both(us, eu)
    await assert_equal_and_sound(us, eu)


async def test_what_was_removed_and_written_again_here_is_right_at_last(
    open_node: OpenNode,
) -> None:
    us, eu = await pair(open_node)
    with raw(eu) as client:
        client.hdel(key(eu), FIELD)
    await eu.write(f"-{DOC} viewer user:a")
    await both(us, eu)
    assert await damaged(eu), "its digest still counts what was removed"
    await repair(eu, us)
    await assert_equal_and_sound(us, eu)


async def test_a_source_that_is_ahead_is_waited_for(open_node: OpenNode) -> None:
    """What a page brings before its turn is not compared until the vector has reached it."""
    us, eu = await pair(open_node)
    with raw(eu) as client:
        client.hdel(key(eu), FIELD)
    await us.write(f"+{DOC} owner user:late")
    await repair(eu, us)
    assert (await Digests(eu.store).read(BUCKET, 1)).reading.sums == {BUCKET: UNKNOWN}
    await both(us, eu)
    await eu.store.let_go({})
    await assert_equal_and_sound(us, eu)


async def test_indexes_are_mended_with_the_tuples(open_node: OpenNode) -> None:
    us, eu = await pair(open_node)
    with raw(eu) as client:
        base = key(eu).partition("t:")[0]
        client.delete(f"{base}s:default/user:a", f"{base}x:default/doc", f"{base}digest")
        client.srem(f"{base}b:{BUCKET}", f"default/{DOC}")
    await repair(eu, us, *sorted({bucket_of("default", f"doc:{n}") for n in (1, 2, 3)}))
    await assert_equal_and_sound(us, eu)


async def test_repair_of_what_is_right_changes_nothing(open_node: OpenNode) -> None:
    us, eu = await pair(open_node)
    await us.write(f"-{DOC} viewer user:x")
    await both(us, eu)
    with raw(eu) as client:
        before = client.hgetall(key(eu)), client.zrange(eu.store.keys.unsettled, 0, -1)
        feed = await eu.store.feed_length()
        await repair(eu, us)
        assert (client.hgetall(key(eu)), client.zrange(eu.store.keys.unsettled, 0, -1)) == before
    assert await eu.store.feed_length() == feed
    await assert_equal_and_sound(us, eu)


@pytest.mark.parametrize(
    "page", ["", "x", "[]", "{}", '{"bucket":4096}', '{"bucket":-1}', '{"bucket":1,"vector":3}']
)
async def test_what_is_no_page_is_refused(page: str, open_node: OpenNode) -> None:
    us = await open_node("us1")
    with pytest.raises(Refused) as refused:
        await Digests(us.store).take("eu1", [page])
    assert refused.value.code == "bad_page"


async def test_strays_in_a_page_are_of_no_account_where_states_are_joined(
    open_node: OpenNode,
) -> None:
    us, eu = await pair(open_node)
    page = json.loads(await Digests(us.store).page(BUCKET)) | {"strays": ["default/doc:2"]}
    await eu.store.absorb(json.dumps(page).encode(), Way.JOIN)
    await assert_equal_and_sound(us, eu)
