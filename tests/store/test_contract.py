"""What the replication relies on holds for the store on Redis and for that of the simulator.

The same scenes on both; `test_same_histories.py` drives them side by side.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Protocol

import pytest

from sidecar.core.conflict import Rules
from sidecar.core.relationship import Change, Identity, Operation, Relationship
from sidecar.core.vector import Vector, Version
from sidecar.errors import Refused, Unavailable
from sidecar.store.calls import AbsorbOutcome, MergeOutcome, Phase, Way
from tests.lua.replicas import sibling_of
from tests.servers import RealValkey
from tests.store.bodies import (
    Body,
    Kept,
    buckets_of,
    in_memory,
    lines_of,
    on_redis,
    page_of,
    transfer,
    view,
)
from tests.store.conftest import DELETE_WINS, WallClock

DOC: Identity = ("default", "document:1", "viewer", "user:ann")
FOLDER: Identity = ("default", "folder:1", "viewer", "user:ann")
BUCKETS = buckets_of([DOC, FOLDER])


class Opens(Protocol):
    """Opens a data set that closes with the test."""

    async def __call__(self, name: str, rules: Rules = DELETE_WINS) -> Body: ...


@pytest.fixture
def clock() -> WallClock:
    return WallClock()


@pytest.fixture(params=["redis", "memory"])
async def opened(
    request: pytest.FixtureRequest, valkey: RealValkey, clock: WallClock
) -> AsyncIterator[Opens]:
    async with AsyncExitStack() as stack:

        async def opens(name: str, rules: Rules = DELETE_WINS) -> Body:
            if request.param == "memory":
                body: Body = in_memory(name, rules, clock)
            else:
                body = await stack.enter_async_context(on_redis(valkey, name, rules, clock))
            await body.store.end_phase()
            return body

        yield opens


async def insert(body: Body, identity: Identity = DOC) -> Version:
    return await body.write([Change(Operation.INSERT, Relationship(*identity))])


async def delete(body: Body, identity: Identity = DOC) -> Version:
    return await body.write([Change(Operation.DELETE, Relationship(*identity))])


async def siblings(store: Kept, identity: Identity = DOC) -> set[Version]:
    state = (await view(store, BUCKETS)).tuples.get(identity)
    return set(state.siblings) if state else set()


async def take(target: Body, source: Body) -> None:
    """Merge everything of the other feed."""
    merged = await target.store.merge(b"\n".join(await lines_of(source.store)))
    assert merged.outcome is MergeOutcome.APPLIED


# -- writes and merges ----------------------------------------------------------------------------


async def test_a_write_stands_alone_and_raises_the_vector(opened: Opens) -> None:
    here = await opened("a")
    first, second = await insert(here), await delete(here)
    assert first < second
    assert here.store.vector[here.store.origin] == second[0] == here.store.revision
    assert await siblings(here.store) == {second}


async def test_concurrent_writes_stand_beside_each_other_and_a_repeat_changes_nothing(
    opened: Opens,
) -> None:
    here, there = await opened("a"), await opened("b")
    mine, theirs = await insert(here), await delete(there)
    await take(here, there)
    assert await siblings(here.store) == {mine, theirs}
    before = await view(here.store, BUCKETS)
    await take(here, there)
    assert await view(here.store, BUCKETS) == before
    assert here.conflicts() == (0, 1)


async def test_what_continues_something_that_is_missing_is_a_gap(opened: Opens) -> None:
    here, there = await opened("a"), await opened("b")
    for _ in range(3):
        await insert(there)
    before = await view(here.store, BUCKETS)
    merged = await here.store.merge((await lines_of(there.store))[-1])
    assert merged.outcome is MergeOutcome.GAP
    assert await view(here.store, BUCKETS) == before


async def test_what_comes_of_a_node_that_nobody_knows_waits_and_others_go_on(
    opened: Opens,
) -> None:
    """The topology may be on its way: it is taken when the node is in it."""
    here, there, third = await opened("a"), await opened("b"), await opened("c")
    await insert(there)
    await insert(third, FOLDER)
    unknown = await lines_of(there.store)
    batch = b"\n".join([*unknown, *await lines_of(third.store)])
    merged = await here.store.merge(batch, ["a", "c"])
    assert list(merged.parked) == [there.store.origin]
    assert await siblings(here.store) == set()
    assert len(await siblings(here.store, FOLDER)) == 1
    assert not (await here.store.merge(b"\n".join(unknown), ["a", "b", "c"])).parked
    assert len(await siblings(here.store)) == 1


async def test_a_page_with_writes_of_a_node_that_nobody_knows_is_refused(opened: Opens) -> None:
    here, there = await opened("a"), await opened("b")
    await insert(there)
    before = await view(here.store, BUCKETS)
    with pytest.raises(Refused):
        await here.store.absorb(await page_of(there.store, BUCKETS), Way.JOIN, nodes=["a", "c"])
    assert await view(here.store, BUCKETS) == before


async def test_what_is_ahead_of_the_clock_is_parked_and_others_go_on(
    opened: Opens, clock: WallClock
) -> None:
    here, there, third = await opened("a"), await opened("b"), await opened("c")
    clock.pass_s(120)
    await insert(there)
    ahead = await lines_of(there.store)
    clock.pass_s(-120)
    await insert(third, FOLDER)
    merged = await here.store.merge(b"\n".join([*ahead, *await lines_of(third.store)]))
    assert list(merged.parked) == [there.store.origin]
    assert await siblings(here.store) == set()
    assert len(await siblings(here.store, FOLDER)) == 1
    clock.pass_s(120)
    assert not (await here.store.merge(b"\n".join(ahead))).parked
    assert len(await siblings(here.store)) == 1


async def test_a_write_of_this_incarnation_that_is_not_here_is_a_loss(opened: Opens) -> None:
    here = await opened("a")
    here.save()
    await insert(here)
    lost = await lines_of(here.store)
    await here.restart(loses=True)
    await here.store.prove()
    assert (await here.store.merge(b"\n".join(lost))).outcome is MergeOutcome.LOST


# -- pages ----------------------------------------------------------------------------------------


async def test_absence_in_a_page_is_a_removal_when_the_source_had_it(opened: Opens) -> None:
    here, there = await opened("a"), await opened("b")
    await insert(here)
    await take(there, here)
    await delete(there)
    await there.store.collect(there.store.vector, {})
    assert await siblings(there.store) == set()
    await transfer(there.store, here.store, BUCKETS)
    assert await siblings(here.store) == set()


async def test_absence_in_a_page_is_nothing_when_the_source_never_had_it(opened: Opens) -> None:
    here, there = await opened("a"), await opened("b")
    mine = await insert(here)
    await transfer(there.store, here.store, BUCKETS)
    assert await siblings(here.store) == {mine}


async def test_the_vector_rises_at_the_end_of_a_transfer_and_so_does_the_floor(
    opened: Opens,
) -> None:
    here, there = await opened("a"), await opened("b")
    await insert(there)
    origin, start = there.store.origin, dict(there.store.vector)
    absorbed = await here.store.absorb(await page_of(there.store, BUCKETS), Way.JOIN, "one")
    assert (absorbed.appeared, absorbed.disappeared) == (1, 0)
    assert origin not in here.store.vector
    assert (await view(here.store, BUCKETS)).beyond[BUCKETS[0]] == start
    assert not await here.store.finish(start, "another one")
    assert await here.store.finish(start, "one")
    assert here.store.vector[origin] == here.store.floor[origin] == start[origin]
    assert (await view(here.store, BUCKETS)).beyond == {}


async def test_what_came_with_a_page_is_not_taken_from_the_stream_again(opened: Opens) -> None:
    """The change was overwritten before the page was read, and the page says so by its absence."""
    here, there = await opened("a"), await opened("b")
    await insert(there)
    await delete(there)
    await there.store.collect(there.store.vector, {})
    await here.store.absorb(await page_of(there.store, BUCKETS), Way.JOIN, "one")
    await take(here, there)
    assert await siblings(here.store) == set()


async def test_a_local_write_overwrites_what_came_with_a_page(opened: Opens) -> None:
    here, there, third = await opened("a"), await opened("b"), await opened("c")
    await insert(there)
    await here.store.absorb(await page_of(there.store, BUCKETS), Way.JOIN, "one")
    mine = await delete(here)
    await take(third, there)
    await take(third, here)
    assert await siblings(third.store) == {mine}


async def test_a_transfer_goes_on_after_a_restart(opened: Opens) -> None:
    here, there = await opened("a"), await opened("b")
    await insert(there)
    await insert(there, FOLDER)
    start = dict(there.store.vector)
    await here.store.absorb(await page_of(there.store, BUCKETS[:1]), Way.JOIN, "half")
    await here.restart()
    await here.store.prove()
    assert here.store.progress == "half"
    await here.store.absorb(await page_of(there.store, BUCKETS[1:]), Way.JOIN, "whole")
    assert await here.store.finish(start, "whole")
    assert (await view(here.store, BUCKETS)).tuples == (await view(there.store, BUCKETS)).tuples


async def test_a_repair_takes_their_word_for_all_that_they_have_seen(opened: Opens) -> None:
    """Collected there, and kept here: by their word it is gone."""
    here, there = await opened("a"), await opened("b")
    await insert(there)
    await take(here, there)
    await delete(there)
    await there.store.collect(there.store.vector, {})
    assert len(await siblings(here.store)) == 1
    await here.store.absorb(await page_of(there.store, BUCKETS), Way.REPLACE)
    assert await siblings(here.store) == set()


async def test_a_repair_does_not_bring_back_what_was_overwritten_here(opened: Opens) -> None:
    """They have not seen the delete yet; their insert is what it has overwritten."""
    here, there = await opened("a"), await opened("b")
    await insert(there)
    await take(here, there)
    mine = await delete(here)
    await here.store.absorb(await page_of(there.store, BUCKETS), Way.REPLACE)
    assert await siblings(here.store) == {mine}


async def test_a_page_that_is_ahead_of_the_clock_is_left(opened: Opens, clock: WallClock) -> None:
    here, there = await opened("a"), await opened("b")
    clock.pass_s(120)
    await insert(there)
    page = await page_of(there.store, BUCKETS)
    clock.pass_s(-120)
    before = await view(here.store, BUCKETS)
    assert (await here.store.absorb(page, Way.JOIN, "one")).outcome is AbsorbOutcome.SKEW
    assert await view(here.store, BUCKETS) == before


async def test_what_nobody_has_any_more_is_let_go(opened: Opens) -> None:
    """A page named an incarnation that was set aside later: no vector will ever reach it."""
    here, there = await opened("a"), await opened("b")
    await there.store.begin(None)
    exposed = there.store.origin
    page = await page_of(there.store, BUCKETS)
    await there.store.begin({"b.0": 1})
    await there.store.end_phase()
    await here.store.absorb(page, Way.JOIN, "one")
    await take(here, there)
    await here.store.let_go({})
    assert exposed in (await view(here.store, BUCKETS)).beyond[BUCKETS[0]]
    assert await here.store.collect(here.store.vector, {}) in (-1, None)
    await here.store.let_go({}, is_whole=True)
    assert (await view(here.store, BUCKETS)).beyond == {}


# -- what a source has lost since -----------------------------------------------------------------


@pytest.mark.parametrize("operation", Operation)
async def test_what_a_page_brought_and_its_source_lost_is_written_again(
    opened: Opens, operation: Operation
) -> None:
    """The new write overwrites at the others what the lost one had overwritten here."""
    here, there, third = await opened("a"), await opened("b"), await opened("c")
    first = await insert(there)
    await take(here, there)
    await take(third, there)
    payload = ('{"until":"noon"}', 2**52) if operation is Operation.INSERT else ()
    change = Change(operation, Relationship(*DOC, *payload))
    lost = await there.write([change])
    await here.store.absorb(await page_of(there.store, BUCKETS), Way.JOIN, "one")
    assert await siblings(here.store) == {lost}
    ended = {there.store.origin: first[0]}
    left = await here.store.let_go(ended)
    assert [(orphan.again, orphan.lost) for orphan in left.orphans] == [(change, lost)]
    assert (await here.store.taken())[there.store.origin] == lost[0]
    assert await here.store.write_again(left.orphans[0])
    assert not (await here.store.let_go(ended)).orphans
    assert await here.store.taken() == {}
    (again,) = await siblings(here.store)
    assert again[1] == here.store.origin
    await take(third, here)
    tuples = (await view(third.store, BUCKETS)).tuples
    assert tuples[DOC].siblings == {again: sibling_of(change)}


async def test_what_is_not_above_the_end_is_let_go_as_it_stands(opened: Opens) -> None:
    here, there = await opened("a"), await opened("b")
    theirs = await insert(there)
    await insert(there, FOLDER)
    page = await page_of(there.store, buckets_of([DOC]))
    await here.store.absorb(page, Way.JOIN, "one")
    assert not (await here.store.let_go({there.store.origin: theirs[0]})).orphans
    assert await here.store.taken() == {}
    assert await siblings(here.store) == {theirs}


async def test_what_was_written_meanwhile_is_not_overwritten_by_what_was_lost(
    opened: Opens,
) -> None:
    here, there = await opened("a"), await opened("b")
    await insert(there)
    await here.store.absorb(await page_of(there.store, BUCKETS), Way.JOIN, "one")
    (orphan,) = (await here.store.let_go({there.store.origin: 1})).orphans
    mine = await delete(here)
    assert not await here.store.write_again(orphan)
    assert await siblings(here.store) == {mine}


async def test_what_an_incarnation_wrote_that_nobody_has_is_written_again(opened: Opens) -> None:
    """A page named it, and no vector ever will: it ended before its first write."""
    here, there = await opened("a"), await opened("b")
    lost = await insert(there)
    await here.store.absorb(await page_of(there.store, BUCKETS), Way.JOIN, "one")
    assert not (await here.store.let_go({}, is_whole=True)).orphans
    newer = (await lines_of(there.store))[0].replace(b'"b.', b'"b.z')
    await here.store.merge(newer)
    (orphan,) = (await here.store.let_go({}, is_whole=True)).orphans
    assert orphan.lost == lost


# -- collection, rows, trimming -------------------------------------------------------------------


async def test_only_what_is_stable_is_collected(opened: Opens) -> None:
    here, there = await opened("a"), await opened("b")
    await insert(here)
    theirs = await delete(there)
    await take(here, there)
    only_mine: Vector = {here.store.origin: here.store.vector[here.store.origin]}
    await here.store.collect(only_mine, {})
    assert theirs in await siblings(here.store)
    assert await here.store.unsettled() == 1
    assert await here.store.oldest_unsettled() == max(await siblings(here.store))[0]
    await here.store.collect(here.store.vector, {})
    assert await siblings(here.store) == set()
    assert await here.store.unsettled() == 0
    assert await here.store.oldest_unsettled() is None


async def test_nothing_is_collected_while_a_page_knows_more(opened: Opens) -> None:
    here, there = await opened("a"), await opened("b")
    await delete(here)
    await insert(there)
    await here.store.absorb(await page_of(there.store, BUCKETS), Way.JOIN, "one")
    assert await here.store.collect(here.store.vector, {}) == -1
    assert len(await siblings(here.store)) == 2


async def test_rows_are_there_after_a_restart(opened: Opens) -> None:
    here = await opened("a")
    await here.store.store_rows({"b": {"b.1": 5}, "c": {"c.1": 7}})
    await here.store.store_rows({"b": {"b.2": 9}})
    await here.restart()
    assert await here.store.rows(["b", "c", "d"]) == {"b": {"b.2": 9}, "c": {"c.1": 7}}


async def test_the_floor_says_what_the_feed_does_not_hold_any_more(opened: Opens) -> None:
    here, there = await opened("a"), await opened("b")
    theirs = await insert(there)
    await take(here, there)
    taken = here.store.revision
    mine = await insert(here)
    await here.trim(taken)
    assert here.store.floor[theirs[1]] == theirs[0]
    assert here.store.floor[mine[1]] < mine[0]
    assert [entry.timestamp for entry in await here.store.feed_after(0, 10)] == [mine[0]]


# -- incarnations ---------------------------------------------------------------------------------


async def test_a_new_data_set_is_exposed_until_somebody_has_told(
    opened: Opens, clock: WallClock
) -> None:
    here = await opened("a")
    clock.pass_s(1)
    before = here.store.origin
    await here.store.begin(None)
    exposed = await view(here.store, BUCKETS)
    assert exposed.phase == Phase.EXPOSED
    assert exposed.origin > before
    assert exposed.vector[exposed.origin] == here.store.revision
    await here.store.end_phase()
    assert here.store.phase is Phase.SERVING


async def test_a_newer_incarnation_than_any_that_is_known(opened: Opens) -> None:
    here = await opened("a")
    await here.store.begin(None, ["a.zzzzzzzy0000"])
    assert here.store.origin > "a.zzzzzzzy0000"


async def test_a_node_that_is_behind_writes_again_what_it_had_written_exposed(
    opened: Opens,
) -> None:
    here, there = await opened("a"), await opened("b")
    old = await insert(here)
    await here.store.begin(None)
    exposed = await delete(here)
    await here.store.begin({"b.1": 5})
    assert here.store.phase is Phase.BEHIND
    assert await siblings(here.store) == {old}
    assert exposed[1] not in here.store.vector
    with pytest.raises(Unavailable):
        await insert(here)
    theirs = await insert(there)
    await take(here, there)
    await here.store.end_phase()
    again = await siblings(here.store)
    assert len(again) == 1
    assert again.isdisjoint({old, exposed, theirs})


async def test_what_was_exposed_before_a_restart_can_still_be_set_aside(opened: Opens) -> None:
    """Nobody had told before it nor after it: none of its writes has known what it should have."""
    here = await opened("a")
    old = await insert(here)
    await here.store.begin(None)
    first = await delete(here)
    await here.restart()
    await here.store.begin(None)
    second = await insert(here, FOLDER)
    await here.store.begin({"b.1": 5})
    assert await siblings(here.store) == {old}
    assert await siblings(here.store, FOLDER) == set()
    assert not {first[1], second[1]} & here.store.vector.keys()
    await here.store.end_phase()
    assert len(await siblings(here.store)) == len(await siblings(here.store, FOLDER)) == 1


async def test_what_was_exposed_is_not_trimmed(opened: Opens) -> None:
    here = await opened("a")
    await here.store.begin(None)
    exposed = await insert(here)
    await here.trim(here.store.revision)
    assert exposed[0] in [entry.timestamp for entry in await here.store.feed_after(0, 10)]


async def test_what_was_told_before_a_merge_can_be_undone_no_more(opened: Opens) -> None:
    """After a restart one peer has told, another has not: its batches are merged meanwhile."""
    here, there = await opened("a"), await opened("b")
    await here.store.begin(None)
    mine = await insert(here)
    await here.restart()
    await here.store.end_exposure()
    assert here.store.phase is Phase.UNPROVEN
    theirs = await delete(there)
    await take(here, there)
    await here.store.begin({"c.1": 5})
    assert await siblings(here.store) == {mine, theirs}


async def test_a_node_that_is_behind_is_so_after_a_restart(opened: Opens) -> None:
    here = await opened("a")
    await here.store.begin({"b.1": 5})
    await here.restart()
    assert (await view(here.store, BUCKETS)).phase == Phase.UNPROVEN
    assert here.store.behind == {"b.1": 5}
    await here.store.prove()
    assert here.store.phase is Phase.BEHIND


# -- restarts -------------------------------------------------------------------------------------


async def test_a_process_that_remembers_goes_on_after_a_restart_of_the_server(
    opened: Opens,
) -> None:
    here = await opened("a")
    mine = await insert(here)
    before = here.store.origin
    await here.restart_server()
    assert (here.store.phase, here.store.origin) == (Phase.SERVING, before)
    assert await siblings(here.store) == {mine}


async def test_a_process_that_remembers_more_than_there_is_begins_anew(opened: Opens) -> None:
    here = await opened("a")
    here.save()
    before = here.store.origin
    await insert(here)
    await here.restart_server(loses=True)
    assert here.store.origin > before
    assert await siblings(here.store) == set()


async def test_a_new_process_on_a_restarted_server_waits_for_proof(opened: Opens) -> None:
    here = await opened("a")
    before = here.store.origin
    await here.restart()
    assert here.store.phase is Phase.UNPROVEN
    with pytest.raises(Unavailable):
        await insert(here)
    await here.store.prove()
    assert (here.store.phase, here.store.origin) == (Phase.SERVING, before)
    await insert(here)


async def test_a_second_restart_proves_nothing(opened: Opens) -> None:
    """The process knows only what it found at its start, and that may have been too little."""
    here = await opened("a")
    await here.restart()
    await here.restart_server()
    assert here.store.phase is Phase.UNPROVEN


async def test_a_second_restart_that_loses_what_was_safe_leaves_it_behind(opened: Opens) -> None:
    here, there = await opened("a"), await opened("b")
    here.save()
    await insert(there)
    await take(here, there)
    await here.restart()
    await here.restart_server(loses=True)
    assert here.store.phase is Phase.BEHIND
    assert there.store.origin in here.store.behind
