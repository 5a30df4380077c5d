"""Many tuples that came with pages and that their source has lost, on Redis."""

import pytest

from sidecar.core.epoch import Epoch
from sidecar.core.relationship import Change, Operation, Relationship, bucket_of
from sidecar.errors import Unavailable
from sidecar.store.calls import Way, WriteRequest
from tests.store.bodies import page_of
from tests.store.conftest import OpenNode


async def test_a_long_walk_over_what_came_with_pages_is_cut_in_steps(open_node: OpenNode) -> None:
    """Redis never blocks for long: after 1,000 tuples the next bucket waits for the next call."""
    here, there = await open_node("a"), await open_node("b")
    names = [f"document:{n}" for n in range(40)]
    changes = [
        Change(Operation.INSERT, Relationship("default", name, "viewer", f"user:{n}"))
        for name in names
        for n in range(60)
    ]
    await there.store.write(WriteRequest("default", changes))
    buckets = sorted({bucket_of("default", name) for name in names})
    await here.store.absorb(await page_of(there.store, buckets), Way.JOIN, "one")
    ended, steps, found = {there.store.origin: 1}, 0, 0
    while True:
        steps += 1
        left = await here.store.let_go(ended)
        assert len(left.orphans) < 1000 + 2 * 60
        for orphan in left.orphans:
            assert await here.store.write_again(orphan)
        found += len(left.orphans)
        if not left.orphans and not left.has_more:
            break
    assert (found, steps > 2) == (len(changes), True)
    assert await here.store.taken() == {}


async def test_what_came_with_pages_is_written_again_also_behind_a_fence(
    open_node: OpenNode,
) -> None:
    """A replica of `primary_replica` takes no writes; this one was taken before."""
    here, there = await open_node("a"), await open_node("b")
    change = Change(Operation.INSERT, Relationship("default", "document:1", "viewer", "user:1"))
    await there.store.write(WriteRequest("default", [change]))
    bucket = bucket_of("default", "document:1")
    await here.store.absorb(await page_of(there.store, [bucket]), Way.JOIN, "one")
    await here.store.raise_epoch("us-west-1", Epoch(1, "eu-central-1", {}))
    with pytest.raises(Unavailable) as refused:
        await here.store.write(WriteRequest("default", [change]))
    assert refused.value.code == "not_primary"
    (orphan,) = (await here.store.let_go({there.store.origin: 1})).orphans
    assert await here.store.write_again(orphan)
    assert (await here.store.let_go({there.store.origin: 1})).orphans == []
