"""One tail, many readers: whoever reads from anywhere gets every entry once, in order."""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sidecar.agent import tail as tail_module
from sidecar.agent.tail import Tail
from sidecar.store.feed import FeedEntry
from tests.servers import RealValkey
from tests.store.conftest import Node, OpenNode, numbered


@asynccontextmanager
async def following(node: Node, buffer_size: int) -> AsyncIterator[Tail]:
    """A tail that runs."""
    tail = Tail(node.store, buffer_size)
    running = asyncio.create_task(tail.run())
    try:
        yield tail
    finally:
        running.cancel()
        await asyncio.wait([running])


async def read(tail: Tail, after: int, until: int) -> list[FeedEntry]:
    """Everything behind `after`, up to the revision `until`."""
    found: list[FeedEntry] = []
    while after < until:
        found += await tail.after(after)
        after = found[-1].revision
    return found


@asynccontextmanager
async def reading_at_the_tip(node: Node, tail: Tail) -> AsyncIterator[list[FeedEntry]]:
    """A reader that has what is written from now on; the buffer begins here."""
    found: list[FeedEntry] = []

    async def follow() -> None:
        async for entries in tail.entries_after(node.store.revision):
            found.extend(entries)

    reader = asyncio.create_task(follow())
    try:
        await until_read(found, (await node.write("+doc:first viewer user:a")).revision)
        yield found
    finally:
        reader.cancel()
        await asyncio.wait([reader])


async def until_read(found: list[FeedEntry], revision: int) -> None:
    async with asyncio.timeout(10):
        while not found or found[-1].revision < revision:
            await asyncio.sleep(0)


def stream_reads(valkey: RealValkey) -> int:
    """How often the server was asked for a part of a stream."""
    found = re.search(rb"cmdstat_xrange:calls=(\d+)", valkey.call("INFO", "commandstats"))
    return int(found[1]) if found else 0


@pytest.mark.parametrize("idle_s", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(15))
async def test_nothing_is_skipped_and_nothing_is_repeated(
    seed: int, idle_s: float, open_node: OpenNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers come at any time, at any place, with a buffer of any size."""
    monkeypatch.setattr(tail_module, "IDLE_S", idle_s)
    rnd = random.Random(seed)
    us = await open_node("us1")
    count = 80
    end = asyncio.get_running_loop().create_future()

    async def write() -> None:
        for number in range(count):
            changes = rnd.choice([1, 1, 1, 2, 5, 60])
            written = await us.write(*numbered(changes, f"+doc:{number}-{{}} viewer user:a"))
            for _ in range(rnd.choice([0, 0, 1, 20])):
                await asyncio.sleep(0)
        end.set_result(written.revision)

    async def read_from_somewhere(tail: Tail) -> None:
        for _ in range(rnd.randint(0, 3_000)):
            await asyncio.sleep(0)
        feed = await us.store.feed_after(0, 1_000)
        after = rnd.choice([0, feed[-1].revision, rnd.choice(feed).revision - rnd.randint(0, 1)])
        found: list[int] = []
        async for entries in tail.entries_after(after):
            found += [entry.revision for entry in entries]
            for _ in range(rnd.choice([0, 0, 5])):
                await asyncio.sleep(0)
            if end.done() and found[-1] == end.result():
                break
        wanted = [e.revision for e in await us.store.feed_after(0, 1_000) if e.revision > after]
        assert found == wanted, f"seed {seed}, after {after}"

    async with asyncio.timeout(30), following(us, rnd.randint(1, 50)) as tail:
        readers = [asyncio.create_task(read_from_somewhere(tail)) for _ in range(6)]
        await write()
        # For those that began at the tip after the last one.
        end = asyncio.get_running_loop().create_future()
        while not all(reader.done() for reader in readers):
            written = await us.write("+doc:last viewer user:a")
            end = asyncio.get_running_loop().create_future()
            end.set_result(written.revision)
            await asyncio.wait(readers, timeout=0.05)
        await asyncio.gather(*readers)


async def test_readers_at_the_tip_share_one_reading(open_node: OpenNode) -> None:
    us = await open_node("us1")
    async with following(us, 1_000) as tail, reading_at_the_tip(us, tail):
        begin, before = us.store.revision, stream_reads(us.valkey)
        readers = [asyncio.create_task(tail.after(begin)) for _ in range(20)]
        written = await us.write("+doc:1 viewer user:a")
        for entries in await asyncio.gather(*readers):
            assert [entry.revision for entry in entries] == [written.revision]
        assert stream_reads(us.valkey) == before


async def test_who_has_fallen_behind_the_buffer_reads_the_stream(open_node: OpenNode) -> None:
    us = await open_node("us1")
    async with following(us, 5) as tail, reading_at_the_tip(us, tail) as newest:
        revisions = [(await us.write(text)).revision for text in numbered(20)]
        await until_read(newest, revisions[-1])
        before = stream_reads(us.valkey)
        # Five changes are kept: behind the fifteenth nothing has to be asked for.
        found = await read(tail, revisions[14], revisions[-1])
        assert [entry.revision for entry in found] == revisions[15:]
        assert stream_reads(us.valkey) == before
        found = await read(tail, revisions[13], revisions[-1])
        assert [entry.revision for entry in found] == revisions[14:]
        assert stream_reads(us.valkey) > before


async def test_a_transaction_larger_than_the_buffer_is_read_all_the_same(
    open_node: OpenNode,
) -> None:
    us = await open_node("us1")
    async with following(us, 1) as tail, reading_at_the_tip(us, tail) as newest:
        begin = us.store.revision
        large = await us.write(*numbered(100))
        small = await us.write("+doc:1 editor user:b")
        await until_read(newest, small.revision)
        found = [(e.revision, e.changes) for e in await read(tail, begin, small.revision)]
        assert found == [(large.revision, 100), (small.revision, 1)]


async def test_what_others_wrote_is_in_the_feed_as_well(open_node: OpenNode) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    begin = us.store.revision
    async with following(us, 100) as tail:
        reading = asyncio.create_task(tail.after(begin))
        await eu.write("+doc:1 viewer user:a")
        await us.take(eu)
        origins = {entry.origin for entry in await reading}
        assert origins == {eu.store.origin}


async def test_a_count_limits_a_list_and_loses_nothing(open_node: OpenNode) -> None:
    us = await open_node("us1")
    begin = us.store.revision
    async with following(us, 100) as tail:
        revisions = [(await us.write(text)).revision for text in numbered(7)]
        found, after = [], begin
        while after < revisions[-1]:
            entries = await tail.after(after, count=2)
            assert 1 <= len(entries) <= 2
            found += [entry.revision for entry in entries]
            after = found[-1]
        assert found == revisions


async def test_it_goes_on_when_all_give_up_while_the_store_is_closed(
    open_node: OpenNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then there is nothing to read until somebody waits again."""
    monkeypatch.setattr(tail_module, "IDLE_S", 0.0)
    node = await open_node("a")
    reopened = asyncio.Event()
    async with following(node, 100) as tail:
        async with reading_at_the_tip(node, tail):
            pass
        monkeypatch.setattr(node.store, "opened", reopened.wait)
        written = await node.write("+doc:unread viewer user:a")
        impatient = asyncio.create_task(tail.after(written.revision))
        await asyncio.sleep(0.05)  # so that it waits, and the tail waits for the store
        impatient.cancel()
        await asyncio.wait([impatient])
        reopened.set()
        async with asyncio.timeout(10), reading_at_the_tip(node, tail) as found:
            assert found
