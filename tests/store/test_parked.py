"""What cannot be applied yet waits with its reason; an operator may pass over it."""

import json
from typing import Any

import pytest

from sidecar.errors import Refused
from sidecar.store.calls import MergeOutcome
from tests.store.conftest import BEGIN_US, LWW, Node, OpenNode, WallClock, dump

HOUR_S = 3_600.0


def of_format(line: bytes, number: object) -> bytes:
    """The same transaction as a later release might write it, with changes nobody here can read."""
    return json.dumps({**json.loads(line), "format": number, "changes": {"new": True}}).encode()


async def test_a_transaction_of_an_unknown_format_waits_and_other_origins_go_on(
    open_node: OpenNode,
) -> None:
    us, eu, ap = [await open_node(name) for name in ("us1", "eu1", "ap1")]
    await eu.write("+doc:1 viewer user:a")
    await eu.write("+doc:2 viewer user:a")
    await ap.write("+doc:3 viewer user:a")
    begun, first, second = await eu.own_lines()
    newer = of_format(first, 7)
    lines = [begun, newer, second, *await ap.own_lines()]
    merged = await us.store.merge(b"\n".join(lines))
    assert merged.outcome is MergeOutcome.APPLIED
    assert merged.parked == {eu.store.origin: "it has format 7, this release reads 1"}
    assert await us.listed() == ["doc:3 viewer user:a"]
    waits = (await us.store.parked())[eu.store.origin]
    assert waits["timestamp"] == json.loads(first)["timestamp"]
    assert waits["since"] == str(BEGIN_US)
    # Sent again, by a sender that knows better: it is applied, and all that waited behind it.
    us.clock.pass_s(5)
    assert (await us.store.merge(newer)).parked == merged.parked
    assert (await us.store.parked())[eu.store.origin] == waits, "it waits since it first came"
    assert (await us.store.merge(b"\n".join([first, second]))).parked == {}
    assert await us.store.parked() == {}
    assert await us.listed() == [f"doc:{n} viewer user:a" for n in (1, 2, 3)]


@pytest.mark.parametrize("number", [None, "2", 1.5, -1, 10**9, [1]])
async def test_a_format_that_is_no_number_is_no_transaction(
    number: object, open_node: OpenNode
) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    (begun,) = await eu.own_lines()
    before = dump(us.valkey)
    with pytest.raises(Refused, match="format"):
        await us.store.merge(of_format(begun, number))
    assert dump(us.valkey) == before


@pytest.mark.parametrize(
    "changed", [{"origin": "nobody"}, {"timestamp": 5}, {"previous": None}, {"timestamp": "0"}]
)
async def test_what_cannot_be_named_cannot_wait(
    changed: dict[str, Any], open_node: OpenNode
) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    (begun,) = await eu.own_lines()
    line = json.dumps({**json.loads(begun), "format": 2, **changed}).encode()
    with pytest.raises(Refused, match="unknown format"):
        await us.store.merge(line)
    assert await us.store.parked() == {}


async def ahead(open_node: OpenNode) -> tuple[Node, Node]:
    """us1, and eu1 whose clock is an hour ahead and whose write waits at us1."""
    us, eu = await open_node("us1"), await open_node("eu1")
    await us.take(eu)
    eu.clock.pass_s(HOUR_S)
    await eu.write("+doc:1 viewer user:a")
    assert list((await us.take(eu)).parked) == [eu.store.origin]
    return us, eu


async def test_what_is_dropped_is_passed_over_and_the_clock_stays(open_node: OpenNode) -> None:
    us, eu = await ahead(open_node)
    (waits,) = (await us.store.parked()).values()
    assert await us.store.drop(eu.store.origin, int(waits["timestamp"]))
    assert await us.store.parked() == {}
    assert us.store.vector[eu.store.origin] == eu.store.vector[eu.store.origin]
    assert us.store.revision < BEGIN_US + 60 * 1_000_000, "the clock did not follow"
    newest = await us.newest()
    assert (newest.origin, newest.changes) == (eu.store.origin, 0)
    assert str(newest.timestamp) == waits["timestamp"]
    assert newest.transaction().changes == ()
    # Sent again it is old; what follows goes its way once the clocks allow it.
    assert (await us.take(eu)).transactions == 0
    assert await us.listed() == []
    us.clock.pass_s(HOUR_S)
    await eu.write("+doc:2 viewer user:a")
    assert (await us.take(eu)).transactions == 1
    assert await us.listed() == ["doc:2 viewer user:a"]


async def test_only_the_transaction_that_was_looked_at_is_dropped(open_node: OpenNode) -> None:
    us, eu = await ahead(open_node)
    (waits,) = (await us.store.parked()).values()
    before = dump(us.valkey)
    assert not await us.store.drop(eu.store.origin, int(waits["timestamp"]) + 1)
    assert not await us.store.drop("ap1.1", int(waits["timestamp"]))
    assert dump(us.valkey) == before
    assert await us.store.drop(eu.store.origin, int(waits["timestamp"]))
    assert not await us.store.drop(eu.store.origin, int(waits["timestamp"])), "once is enough"


# -- the nodes of the topology ---------------------------------------------------------------------


async def test_a_node_that_has_left_is_remembered_with_its_newest_incarnation(
    open_node: OpenNode,
) -> None:
    us, eu, ap = [await open_node(name) for name in ("us1", "eu1", "ap1")]
    for other in (eu, ap):
        await us.take(other)
    await us.store.store_rows({"eu1": eu.store.vector, "ap1": ap.store.vector})
    await us.store.store_cursor("eu1", 5)
    assert await us.store.members(["us1", "eu1", "ap1"], {}) == {}
    assert await us.store.members(["us1", "ap1"], {}) == {"eu1": eu.store.origin}
    assert (await us.store.rows(["eu1", "ap1"])).keys() == {"ap1"}
    assert await us.store.cursors() == {}
    # It stays removed when it is a member again, until its data are new ones.
    back = await us.store.members(["us1", "eu1", "ap1"], {})
    assert back == {"eu1": eu.store.origin}
    told = {"eu1": "eu1.zzzz", "ap1": "ap1.0"}
    assert await us.store.members(["us1", "eu1", "ap1"], told) == told
    older = {"eu1": "eu1.0000"}
    assert await us.store.members(["us1", "eu1", "ap1"], older) == told


async def test_a_data_set_knows_with_which_incarnation_it_began(open_node: OpenNode) -> None:
    clock = WallClock()
    us = await open_node("us1", clock=clock, rules=LWW)
    first = us.store.origin
    assert us.store.born == first
    clock.pass_s(1)
    await us.store.begin(None)
    assert us.store.origin > first
    assert us.store.born == first


async def test_the_feed_of_an_earlier_incarnation_goes_on_up_to_where_the_next_began(
    open_node: OpenNode,
) -> None:
    us = await open_node("us1")
    first = us.store.origin
    assert await us.store.last_revision_of(first) is None
    written = await us.write("+doc:1 viewer user:a")
    us.clock.pass_s(1)
    await us.store.begin(None)
    assert await us.store.last_revision_of(first) == written.revision


async def test_what_was_set_aside_is_not_in_the_feed_that_goes_on(open_node: OpenNode) -> None:
    us = await open_node("us1", has_peers=True)
    exposed = us.store.origin
    begun = us.store.revision
    await us.write("+doc:1 viewer user:a")
    us.clock.pass_s(1)
    await us.store.begin({"us1.0": 5})
    assert await us.store.last_revision_of(exposed) == begun - 1
