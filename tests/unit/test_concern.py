"""Who waits for which region, and what wakes them; regions are told of by hand."""

import asyncio
import random
from collections.abc import Mapping

import pytest

from sidecar.agent.concern import END_GRACE_S, Concerns
from sidecar.core.concern import Reached, WriteConcern
from sidecar.core.vector import Vector
from sidecar.errors import Refused, Unavailable

LOCAL, MAJORITY, ALL = WriteConcern
MINE = "us1.aaaaaaaa0001"
REGIONS = {"us1": "us", "us2": "us", "eu1": "eu", "eu2": "eu", "ap1": "ap"}
LONG_S = 60.0


class Store:
    """A node us1 that has committed up to here."""

    node = "us1"

    def __init__(self, timestamp: int = 100) -> None:
        self.vector: Vector = {MINE: timestamp}


def concerns(regions: Mapping[str, str] = REGIONS, **options: frozenset[str]) -> Concerns:
    return Concerns(Store(), regions, **options)


async def begun(
    one: Concerns, timestamp: int, concern: WriteConcern, timeout_s: float = LONG_S
) -> "asyncio.Task[list[str]]":
    """A client that waits, and has got so far that it does."""
    task = asyncio.create_task(one.wait((timestamp, MINE), concern, timeout_s))
    await asyncio.sleep(0)
    return task


async def is_answered(task: "asyncio.Task[list[str]]") -> bool:
    for _ in range(3):
        await asyncio.sleep(0)
    return task.done()


@pytest.mark.parametrize(
    ("configured", "majority"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (10, 6)]
)
def test_a_majority_is_more_than_half_and_everything_is_one_region(
    configured: int, majority: int
) -> None:
    assert LOCAL.regions_of(configured) == 1
    assert MAJORITY.regions_of(configured) == majority
    assert ALL.regions_of(configured) == configured


def test_what_a_region_has_reached_only_grows() -> None:
    reached = Reached(["us", "eu", "ap"])
    assert [reached.note("us", 5), reached.note("eu", 3), reached.note("us", 4)] == [1, 1, 0]
    assert [reached.in_regions(count) for count in (1, 2, 3)] == [5, 3, 0]
    assert reached.missing(3) == ["ap"]
    assert reached.missing(5) == ["eu", "ap"]


async def test_a_majority_has_it_when_one_node_of_another_region_does() -> None:
    one = concerns()
    waiting = await begun(one, 100, MAJORITY)
    one.heard("us2", {MINE: 100})
    assert not await is_answered(waiting), "the own region counts once"
    one.heard("eu2", {MINE: 99})
    assert not await is_answered(waiting)
    one.heard("eu2", {MINE: 100})
    assert await waiting == []


async def test_all_is_every_region_and_not_every_node() -> None:
    one = concerns()
    waiting = await begun(one, 100, ALL)
    one.heard("eu1", {MINE: 100})
    one.heard("eu2", {MINE: 120})
    assert not await is_answered(waiting)
    # A node that this one has no session with: another one tells of it.
    one.heard("ap1", {MINE: 100}, "eu1")
    assert await waiting == []


async def test_local_waits_for_nobody_and_in_one_region_nothing_does() -> None:
    assert await concerns().wait((100, MINE), LOCAL, LONG_S) == []
    alone = concerns({"us1": "us", "us2": "us"})
    assert await alone.wait((100, MINE), MAJORITY, LONG_S) == []
    assert await alone.wait((100, MINE), ALL, LONG_S) == []


async def test_what_was_told_before_the_client_waits_counts() -> None:
    """As for a repeat with an idempotency key, or an answer that comes later than the news."""
    one = concerns()
    one.heard("eu1", {MINE: 100})
    one.heard("eu1", {MINE: 90}, "us2")
    assert await one.wait((100, MINE), MAJORITY, 0) == []
    assert await one.wait((100, MINE), ALL, 0) == ["ap"]


async def test_when_the_time_is_over_those_that_lack_it_are_named() -> None:
    one = concerns()
    one.heard("eu1", {"eu1.aaaaaaaa0001": 500})
    assert await one.wait((100, MINE), MAJORITY, 0.01) == ["eu", "ap"]
    waiting = await begun(one, 100, ALL, 0.02)
    one.heard("eu1", {MINE: 100})
    assert await waiting == ["ap"]


async def test_each_client_is_woken_by_the_news_that_covers_its_write_and_no_other() -> None:
    one = Concerns(Store(1_000), REGIONS)
    dice = random.Random(3)
    timestamps = list(range(1, 201))
    dice.shuffle(timestamps)
    clients = [(t, c, await begun(one, t, c)) for t in timestamps for c in (MAJORITY, ALL)]
    eu = ap = 0
    while min(eu, ap) < 200:
        eu, ap = min(eu + dice.randrange(30), 200), min(ap + dice.randrange(30), 200)
        one.heard("eu1", {MINE: eu})
        one.heard("ap1", {MINE: ap})
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for timestamp, concern, task in clients:
            reached = max(eu, ap) if concern is MAJORITY else min(eu, ap)
            assert task.done() == (timestamp <= reached), (timestamp, concern, eu, ap)
    assert await asyncio.gather(*(task for _, _, task in clients)) == [[]] * 400
    assert not one._waiting, "nothing is kept of those that have gone"


async def test_clients_that_give_up_or_go_leave_nothing_and_wake_nobody() -> None:
    one = concerns()
    gone, patient = await begun(one, 100, ALL), await begun(one, 100, ALL)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert await one.wait((99, MINE), ALL, 0) == ["eu", "ap"]
    for node in ("eu1", "ap1"):
        one.heard(node, {MINE: 100})
    assert await patient == []
    assert not one._waiting
    assert not one._limits


async def test_a_write_of_an_earlier_incarnation_is_waited_for_by_its_own_name() -> None:
    one, older = concerns(), "us1.000000000001"
    one._store.vector = {MINE: 100, older: 50}  # type: ignore[misc]
    waiting = asyncio.create_task(one.wait((50, older), MAJORITY, LONG_S))
    newer = await begun(one, 100, MAJORITY)
    one.heard("eu1", {MINE: 100})
    assert await newer == []
    assert not waiting.done()
    one.heard("eu1", {MINE: 100, older: 50})
    assert await waiting == []


def test_what_can_never_be_met_is_refused_before_the_write() -> None:
    """The region only receives: what is written in it goes nowhere, or not everywhere."""
    one = concerns(reachable=frozenset({"us", "eu"}))
    one.check(LOCAL)
    one.check(MAJORITY)
    with pytest.raises(Refused, match="no node of ap; nothing was written") as refused:
        one.check(ALL)
    assert (refused.value.code, refused.value.status) == ("write_concern_impossible", 400)


async def test_nobody_waits_where_too_many_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.agent.concern.MAX_WAITING", 50)
    one = concerns()
    crowd = [await begun(one, 100, ALL) for _ in range(50)]
    with pytest.raises(Unavailable, match="nothing was written"):
        one.check(MAJORITY)
    one.check(LOCAL)
    one.heard("eu1", {MINE: 100})
    one.heard("ap1", {MINE: 100})
    assert await asyncio.gather(*crowd) == [[]] * 50
    one.check(MAJORITY)


async def test_when_the_node_ends_nobody_holds_it_up() -> None:
    one = concerns()
    loop = asyncio.get_running_loop()
    clients = [await begun(one, 100, ALL), await begun(one, 100, ALL, 0.01)]
    began = loop.time()
    one.end()
    clients.append(await begun(one, 100, MAJORITY))
    assert await asyncio.gather(*clients) == [["eu", "ap"]] * 3
    assert loop.time() - began < 2 * END_GRACE_S


async def test_a_node_that_is_no_member_is_not_counted() -> None:
    one = concerns()
    one.heard("gone", {MINE: 100})
    assert await one.wait((100, MINE), ALL, 0) == ["eu", "ap"]


# -- another topology ------------------------------------------------------------------------------


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_waits_does_not_wait_for_a_region_that_goes() -> None:
    one = Concerns(Store(5), REGIONS)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(one.wait((5, MINE), ALL, 60))
        await settled()
        one.heard("eu1", {MINE: 5})
        await settled()
        assert not waiting.done()
        one.adapt({"us1": "us", "eu1": "eu"})
    assert waiting.result() == []
    assert not one._waiting, "nothing is kept of those that have gone"


async def test_who_waits_does_not_begin_to_wait_for_a_region_that_comes() -> None:
    one = Concerns(Store(5), {"us1": "us", "eu1": "eu"})
    async with asyncio.TaskGroup() as group:
        before = group.create_task(one.wait((5, MINE), ALL, 60))
        await settled()
        one.adapt(REGIONS)
        after = group.create_task(one.wait((5, MINE), ALL, 60))
        await settled()
        one.heard("eu1", {MINE: 5})
        await settled()
        assert (before.done(), after.done()) == (True, False)
        one.heard("ap1", {MINE: 5})
    assert (before.result(), after.result()) == ([], [])


async def test_what_was_acknowledged_before_counts_after_a_change() -> None:
    one = Concerns(Store(5), REGIONS)
    one.heard("eu1", {MINE: 5})
    one.heard("ap1", {MINE: 5})
    one.adapt({"us1": "us", "eu1": "eu"})
    assert await one.wait((5, MINE), ALL, 0) == []
    one.adapt(REGIONS)
    assert await one.wait((5, MINE), ALL, 0) == ["ap"], "it may have come back empty"
    one.adapt(REGIONS, reachable={"us", "eu"})
    with pytest.raises(Refused, match="ap"):
        one.check(ALL)
