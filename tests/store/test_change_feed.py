"""The feed of a node as a program sees it: real writes, real revisions, what others bring."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from sidecar import Change, ChangeFeed, ChangeStream, Operation, Refused, Relationship, Unavailable
from sidecar.library.changes import StoreFeed
from tests.store.conftest import BEGIN_US, Node, OpenNode, relationship_of

LIMIT_S = 10.0
DOCUMENT = relationship_of("document:readme viewer user:alice")
FOLDER = relationship_of("folder:plans owner user:bob")


@pytest.fixture
async def node(open_node: OpenNode) -> Node:
    return await open_node("node1")


@pytest.fixture
async def feed(node: Node) -> AsyncIterator[StoreFeed]:
    async with ChangeFeed.of(node.store) as opened:
        yield opened


async def received(stream: ChangeStream, count: int) -> list[Change]:
    async with asyncio.timeout(LIMIT_S):
        changes = [await stream.recv() for _ in range(count)]
    return [change for change in changes if change is not None]


async def test_publish_is_a_write_and_returns_it_as_subscribers_get_it(
    node: Node, feed: StoreFeed
) -> None:
    stream = await feed.subscribe()
    inserted = await feed.publish(Change.insert(7, DOCUMENT._replace(condition='{"b":1, "a":2}')))
    deleted = await feed.publish(Change.delete(7, DOCUMENT))
    assert await received(stream, 2) == [inserted, deleted]
    assert inserted.relationship == DOCUMENT._replace(condition='{"a":2,"b":1}')
    assert inserted.revision == inserted.timestamp > BEGIN_US
    assert deleted.revision == node.store.revision
    assert inserted.origin == node.store.origin
    assert await node.listed() == []


async def test_a_filter_lets_one_resource_type_through(node: Node, feed: StoreFeed) -> None:
    await feed.publish(Change.insert(0, DOCUMENT))
    documents, everything = await feed.subscribe_filtered("document"), await feed.subscribe()
    written = await node.write("+folder:plans owner user:bob", "-document:readme viewer user:alice")
    whole = await received(everything, 2)
    assert [(change.operation, change.relationship) for change in whole] == [
        (Operation.INSERT, FOLDER),
        (Operation.DELETE, DOCUMENT),
    ]
    # Both are of one transaction.
    assert {change.revision for change in whole} == {written.revision}
    assert await received(documents, 1) == whole[1:]
    with pytest.raises(Refused, match="is not a type"):
        await feed.subscribe_filtered("document:readme")


async def test_what_arrives_from_others_names_their_write(
    node: Node, feed: StoreFeed, open_node: OpenNode
) -> None:
    other = await open_node("node2")
    written = await other.write("+document:readme viewer user:alice")
    stream = await feed.subscribe()
    await node.take(other)
    (change,) = await received(stream, 1)
    assert (change.timestamp, change.origin) == (written.revision, other.store.origin)
    assert change.revision == node.store.revision > change.timestamp


async def test_a_reader_slower_than_the_buffer_misses_nothing(node: Node) -> None:
    async with ChangeFeed.of(node.store, buffer_size=1) as feed:
        stream = await feed.subscribe()
        published = [await feed.publish(Change.insert(0, DOCUMENT)) for _ in range(50)]
        assert await received(stream, 50) == published


async def test_a_reader_that_the_feed_no_longer_reaches_back_to_is_told(
    node: Node, feed: StoreFeed
) -> None:
    stream = await feed.subscribe()
    for _ in range(3):
        last = await feed.publish(Change.insert(0, DOCUMENT))
    await node.store.trim(last.revision, 10)
    with pytest.raises(Refused) as told:
        await received(stream, 1)
    assert told.value.code == "cursor_expired"


async def test_a_new_incarnation_ends_what_was_read_of_the_one_before(
    node: Node, feed: StoreFeed
) -> None:
    stream = await feed.subscribe()
    await node.store.begin()
    await feed.publish(Change.insert(0, DOCUMENT))
    for _ in range(2):
        with pytest.raises(Unavailable) as told:
            await received(stream, 1)
        assert told.value.code == "new_incarnation"
    assert (await feed.subscribe()) is not None


async def test_a_stream_ends_when_it_or_its_feed_is_closed(node: Node) -> None:
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        async with ChangeFeed.of(node.store) as feed:
            mine, another = await feed.subscribe(), await feed.subscribe()
            waiting = [group.create_task(stream.recv()) for stream in (mine, another)]
            await asyncio.sleep(0)
            mine.close()
            assert await waiting[0] is None
            assert not waiting[1].done()
        assert await waiting[1] is None


async def test_two_that_follow_one_tail_do_not_wait_for_each_other(
    node: Node, feed: StoreFeed
) -> None:
    """An agent follows the tail that readers follow without one."""
    stream = await feed.subscribe()
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        second = group.create_task(feed.tail.run())
        published = [await feed.publish(Change.insert(0, DOCUMENT)) for _ in range(5)]
        assert await received(stream, 5) == published
        second.cancel()


async def test_a_relationship_that_is_none_is_not_written(node: Node, feed: StoreFeed) -> None:
    before = node.store.revision
    with pytest.raises(Refused, match="has no colon"):
        await feed.publish(Change.insert(0, Relationship("default", "readme", "a", "user:b")))
    assert node.store.revision == before
