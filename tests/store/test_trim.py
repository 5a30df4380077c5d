"""Trimming on a real server: the store, the loop, and a tail that is overtaken."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from sidecar.agent import trim as trim_module
from sidecar.agent.tail import Tail
from sidecar.agent.trim import Trimming
from sidecar.core.trim import Keep
from sidecar.errors import Refused, Unavailable
from tests.servers import RealValkey
from tests.store.conftest import Node, OpenNode, numbered, running_node
from tests.unit.test_metrics import shown

S = 1_000_000


async def revisions(node: Node) -> list[int]:
    return [entry.revision for entry in await node.store.feed_after(0, 100_000)]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


# -- the store ------------------------------------------------------------------------------------


async def test_what_was_trimmed_is_known_also_after_a_restart(valkey: RealValkey) -> None:
    async with running_node(valkey, "us1") as us, running_node(valkey, "eu1") as eu:
        await us.store.opened()
        await eu.store.opened()
        assert (us.store.trimmed, us.store.floor) == (0, {})
        foreign = await eu.write("+doc:1 viewer user:a")
        await us.take(eu)
        own = await us.write("+doc:2 viewer user:a")
        last = await us.write("+doc:3 viewer user:a")
        assert await us.store.trim(own.revision, 1_000) == (4, False)
        assert await revisions(us) == [last.revision]
        floor = {us.store.origin: own.revision, eu.store.origin: foreign.revision}
        assert (us.store.trimmed, us.store.floor) == (own.revision, floor)
        assert await us.listed() == [f"doc:{n} viewer user:a" for n in (1, 2, 3)]
    async with running_node(valkey, "us1") as us:
        await us.store.opened()
        assert (us.store.trimmed, us.store.floor) == (own.revision, floor)
        assert await us.store.whole_after(own.revision - 1) == own.revision
        assert await us.store.whole_after(own.revision) == own.revision
        assert await us.store.trim(own.revision, 1_000) == (0, False)


async def test_a_long_feed_goes_in_steps(open_node: OpenNode) -> None:
    us = await open_node("us1")
    for text in numbered(9):
        await us.write(text)
    whole = await revisions(us)
    assert await us.store.trim(whole[6], 4) == (4, True)
    assert us.store.trimmed == whole[3]
    assert await us.store.trim(whole[6], 4) == (3, False)
    assert await revisions(us) == whole[7:]
    assert await us.store.feed_length() == 3


async def test_a_store_that_has_lost_writes_is_not_trimmed(open_node: OpenNode) -> None:
    us = await open_node("us1")
    written = await us.write("+doc:1 viewer user:a")
    us.valkey.call("HSET", us.store.keys.meta, "clock", "5")
    with pytest.raises(Unavailable) as lost:
        await us.store.trim(written.revision, 1_000)
    assert lost.value.code == "store_lost_writes"
    assert us.valkey.call("XLEN", us.store.keys.feed) == b":2\r\n"


# -- the loop -------------------------------------------------------------------------------------


@asynccontextmanager
async def trimming(node: Node, *targets: str, keep: Keep) -> AsyncIterator[Trimming]:
    """A loop that runs."""
    trimming = loop_of(node, *targets, keep=keep)
    running = asyncio.create_task(trimming.run())
    try:
        yield trimming
    finally:
        running.cancel()
        await asyncio.wait([running])


def loop_of(node: Node, *targets: str, keep: Keep) -> Trimming:
    node.metrics.has_targets({target: lambda: 0.0 for target in targets})
    return Trimming(node.store, targets, keep, metrics=node.metrics, now_us=node.clock)


async def test_without_targets_what_is_old_goes(
    open_node: OpenNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trim_module, "EVERY_S", 0.01)
    us = await open_node("us1")
    async with trimming(us, keep=Keep(60 * S, 1_000)):
        us.clock.pass_s(30)
        young = await us.write("+doc:1 viewer user:a")
        us.clock.pass_s(30)
        await until(lambda: us.store.trimmed)
        assert await revisions(us) == [young.revision]
        us.clock.pass_s(30)
        await until(lambda: us.store.trimmed == young.revision)
        assert await revisions(us) == []
        # The metrics are told after the store knows.
        await until(lambda: shown(us.metrics)["inferadb_sidecar_feed_trimmed_total"] == 2)
        assert shown(us.metrics)["inferadb_sidecar_feed_entries"] == 0
        after = await us.write("+doc:2 viewer user:a")
        await until(lambda: shown(us.metrics)["inferadb_sidecar_feed_entries"] == 1)
        assert await revisions(us) == [after.revision]


async def test_much_goes_in_one_turn_after_the_other(
    open_node: OpenNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause between two turns is the short one as long as more is left."""
    monkeypatch.setattr(trim_module, "EVERY_S", 3_600.0)
    monkeypatch.setattr(trim_module, "MAX_ENTRIES_PER_CALL", 7)
    us = await open_node("us1")
    await asyncio.gather(*(us.write(text) for text in numbered(100)))
    us.clock.pass_s(61)
    async with trimming(us, keep=Keep(60 * S, 1_000)):
        await until(lambda: us.store.trimmed == us.store.revision)
    assert await revisions(us) == []


async def test_what_a_target_has_not_acknowledged_stays(open_node: OpenNode) -> None:
    us = await open_node("us1")
    written = [(await us.write(text)).revision for text in numbered(4)]
    loop = loop_of(us, "eu1", "ap1", keep=Keep(0, 1_000))
    us.clock.pass_s(1)
    await us.store.store_cursor("eu1", written[2])
    await loop.trim()
    assert us.store.trimmed == 0, "nothing is known of ap1"
    await us.store.store_cursor("ap1", written[1])
    await loop.trim()
    assert await revisions(us) == written[2:]
    await us.store.store_cursor("ap1", written[3])
    await us.store.store_cursor("eu1", written[3])
    await loop.trim()
    assert await revisions(us) == []


async def test_what_others_wrote_goes_when_targets_have_it_or_need_it_not(
    open_node: OpenNode,
) -> None:
    """It may be carried to a target over this node: only its cursor says that it is not missing."""
    us, eu = await open_node("us1"), await open_node("eu1")
    await us.store.store_cursor("ap1", us.store.revision)
    for text in numbered(5):
        await eu.write(text)
    await us.take(eu)
    us.clock.pass_s(61)
    loop = loop_of(us, "ap1", keep=Keep(60 * S, 1_000))
    await loop.trim()
    assert len(await revisions(us)) == 6, "the five, and with what the incarnation of eu1 began"
    assert us.store.floor == {us.store.origin: us.store.vector[us.store.origin]}
    await us.store.store_cursor("ap1", us.store.revision)
    own = await us.write("+doc:9 viewer user:a")
    us.clock.pass_s(61)
    await loop.trim()
    assert await revisions(us) == [own.revision]
    assert us.store.floor[eu.store.origin] == eu.store.vector[eu.store.origin]
    assert shown(us.metrics)['inferadb_replication_resync_suggested{target="ap1"}'] == 0


async def test_a_state_transfer_holds_the_feed_from_where_it_began(open_node: OpenNode) -> None:
    us = await open_node("us1")
    written = [(await us.write(text)).revision for text in numbered(4)]
    us.clock.pass_s(61)
    held: list[int | None] = [written[1]]
    loop = Trimming(
        us.store,
        (),
        Keep(0, 1_000),
        held=lambda: held[0],
        metrics=us.metrics,
        now_us=us.clock,
    )
    await loop.trim()
    assert await revisions(us) == written[2:]
    held[0] = None
    await loop.trim()
    assert await revisions(us) == []


async def test_a_feed_that_is_too_long_leaves_slow_targets_behind_and_says_so_once(
    open_node: OpenNode, caplog: pytest.LogCaptureFixture
) -> None:
    us = await open_node("us1")
    written = [(await us.write(text)).revision for text in numbered(20)]
    await us.store.store_cursor("eu1", written[3])
    await us.store.store_cursor("ap1", written[18])
    loop = loop_of(us, "eu1", "ap1", keep=Keep(3_600 * S, 10))

    def told() -> list[str]:
        return [
            str(getattr(record, "target", None))
            for record in caplog.records
            if record.message.startswith("feed trimmed past a target")
        ]

    def suggested(target: str) -> float:
        return shown(us.metrics)[f'inferadb_replication_resync_suggested{{target="{target}"}}']

    await loop.trim()
    assert await revisions(us) == written[10:]
    for text in numbered(3):
        written.append((await us.write(text)).revision)
        await loop.trim()
        assert await revisions(us) == written[-10:]
    assert told() == ["eu1"]
    assert (suggested("eu1"), suggested("ap1")) == (1, 0)
    await us.store.store_cursor("eu1", written[-1])
    await loop.trim()
    assert (suggested("eu1"), suggested("ap1")) == (0, 0)
    for text in numbered(20):
        await us.write(text)
    await loop.trim()
    assert sorted(told()) == ["ap1", "eu1", "eu1"], "said again when it happens again"


async def test_a_target_that_has_the_last_trimmed_entry_is_not_left_behind(
    open_node: OpenNode,
) -> None:
    us = await open_node("us1")
    written = [(await us.write(text)).revision for text in numbered(20)]
    await us.store.store_cursor("eu1", written[9])
    loop = loop_of(us, "eu1", keep=Keep(3_600 * S, 10))
    await loop.trim()
    assert us.store.trimmed == written[9]
    assert shown(us.metrics)['inferadb_replication_resync_suggested{target="eu1"}'] == 0


# -- the tail -------------------------------------------------------------------------------------


@asynccontextmanager
async def following(node: Node) -> AsyncIterator[Tail]:
    tail = Tail(node.store, 10_000)
    running = asyncio.create_task(tail.run())
    try:
        yield tail
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_a_watcher_behind_what_was_trimmed_is_refused(open_node: OpenNode) -> None:
    us = await open_node("us1")
    written = [(await us.write(text)).revision for text in numbered(5)]
    await us.store.trim(written[2], 1_000)
    async with following(us) as tail:
        for revision in (0, written[1], written[2] - 1):
            with pytest.raises(Refused) as refused:
                await tail.after(revision, is_watching=True)
            assert (refused.value.code, refused.value.status) == ("cursor_expired", 410)
        found = await tail.after(written[2], is_watching=True)
        assert [entry.revision for entry in found] == written[3:]
        # A session knows by itself what is missing to it: it gets what there is.
        found = await tail.after(written[1])
        assert [entry.revision for entry in found] == written[3:]


@pytest.mark.parametrize("is_empty", [True, False])
async def test_a_tail_that_slept_while_the_feed_was_trimmed_has_a_gap_and_knows_it(
    open_node: OpenNode, is_empty: bool
) -> None:
    """Nobody waits, so nothing is read; the buffer must not join what it has to what is left."""
    us = await open_node("us1")
    async with asyncio.timeout(20), following(us) as tail:
        held = us.store.revision
        first = await us.write("+doc:0 viewer user:a")
        assert [e.revision for e in await tail.after(held)] == [first.revision]
        waiting = asyncio.create_task(tail.after(first.revision))
        second = await us.write("+doc:1 viewer user:a")
        assert [e.revision for e in await waiting] == [second.revision]
        missed = [(await us.write(text)).revision for text in numbered(5)]
        after = dict(zip([second.revision, *missed], missed, strict=False))
        if is_empty:
            await us.store.trim(missed[-1], 1_000)
            last = await us.write("+doc:9 viewer user:a")
        else:
            last = await us.write("+doc:9 viewer user:a")
            await us.store.trim(missed[-1], 1_000)

        async def read_on(place: int) -> None:
            while True:
                (entry,) = await tail.after(place, is_watching=True)
                assert entry.revision == after[place]
                place = entry.revision

        with pytest.raises(Refused, match="no longer has"):
            await read_on(second.revision)
        found = await tail.after(missed[-1], is_watching=True)
        assert [entry.revision for entry in found] == [last.revision]


async def test_a_watcher_at_the_tip_is_served_from_memory_after_the_feed_was_trimmed(
    open_node: OpenNode,
) -> None:
    us = await open_node("us1")
    async with asyncio.timeout(20), following(us) as tail:
        begin = us.store.revision
        reading = asyncio.create_task(tail.after(begin, is_watching=True))
        written = await us.write("+doc:0 viewer user:a")
        await reading
        await us.store.trim(us.store.revision, 1_000)
        # Another one that was at the same place, a moment later.
        found = await tail.after(begin, is_watching=True)
        assert [entry.revision for entry in found] == [written.revision]


async def test_watchers_under_a_trim_miss_nothing_unless_they_are_told(
    open_node: OpenNode,
) -> None:
    """Whatever the order of things: a watcher sees all that follows its place, or is refused."""
    us = await open_node("us1")
    rnd = random.Random(5)
    numbers, is_over = {us.store.revision: -1}, asyncio.Event()
    runs: list[tuple[int, list[int]]] = []

    async def write() -> None:
        for number in range(300):
            numbers[(await us.write(f"+doc:{number} viewer user:a")).revision] = number
        is_over.set()

    async def trim() -> None:
        while not is_over.is_set():
            await us.store.trim(us.store.revision - rnd.randint(0, 12), 3)

    def begun() -> tuple[int, list[int]]:
        runs.append((us.store.revision, []))
        return runs[-1]

    async def watch(tail: Tail) -> None:
        place, seen = begun()
        while not is_over.is_set():
            try:
                async with asyncio.timeout(0.2):
                    entries = await tail.after(place, 5, is_watching=True)
            except TimeoutError:
                continue
            except Refused:
                place, seen = begun()
                continue
            seen += [entry.revision for entry in entries]
            place = entries[-1].revision
            for _ in range(place % 40):
                await asyncio.sleep(0)

    async with asyncio.timeout(60), following(us) as tail:
        await asyncio.gather(write(), trim(), *(watch(tail) for _ in range(4)))
    for begin, seen in runs:
        first = numbers[begin] + 1
        assert [numbers[revision] for revision in seen] == [*range(first, first + len(seen))]
    assert sum(len(seen) for _, seen in runs) > 100, "they have seen something"
    assert len(runs) > 4, "and have been refused"
