"""Who is the primary, on a real server: epochs only rise, a fence lets nothing pass, and what was
not shipped before a promotion is listed once.
"""

import asyncio
import logging
from dataclasses import dataclass, field

import pytest

from sidecar.agent.primacy import ASK_S, Primacy
from sidecar.core.epoch import Epoch
from sidecar.core.topology import RegionId, ReplicationStrategy, Topology, TopologyBuilder
from sidecar.errors import Refused, Unavailable
from sidecar.store.conflicts import FencedEntry
from tests.store.conftest import Node, OpenNode, dump, numbered

US, EU, AP = map(RegionId, ("us-west-1", "eu-central-1", "ap-southeast-1"))


def topology(strategy: ReplicationStrategy = ReplicationStrategy.PRIMARY_REPLICA) -> Topology:
    builder = TopologyBuilder(strategy, US)
    for region in (US, EU, AP):
        is_primary = region == US and strategy is ReplicationStrategy.PRIMARY_REPLICA
        builder.add_region(region, region, is_primary)
    return builder.build()


@dataclass
class Member:
    """A node of a region, and what it knows of the primary."""

    node: Node
    region: RegionId
    strategy: ReplicationStrategy = ReplicationStrategy.PRIMARY_REPLICA
    now_s: float = 100.0
    primacy: Primacy = field(init=False)

    def __post_init__(self) -> None:
        self.primacy = Primacy(
            self.node.store,
            topology(self.strategy),
            self.region,
            self.node.metrics,
            now_s=lambda: self.now_s,
        )
        self.node.store.fence_by(self.primacy.refusal)
        # Nobody is asked here.
        self.now_s += ASK_S

    async def refusal(self) -> str:
        """Why a write is not taken; "" when it is."""
        try:
            await self.node.write("+probe:1 viewer user:a")
        except Unavailable as unavailable:
            return unavailable.code
        return ""

    async def hear(self, other: "Member") -> None:
        await self.primacy.hear(other.primacy.facts().get("epoch"))

    async def fenced(self) -> list[FencedEntry]:
        """What is listed as not shipped, oldest first."""
        found = await self.node.store.conflicts(None, 100_000)
        return [one for one in reversed(found) if isinstance(one, FencedEntry)]


async def members(open_node: OpenNode, *regions: RegionId) -> list[Member]:
    found = [Member(await open_node(region[:2] + "1"), region) for region in regions]
    for member in found:
        await member.primacy.prepare()
    return found


def resources(entries: list[FencedEntry]) -> list[str]:
    return [entry.tuple[1] for entry in entries]


# -- epochs ----------------------------------------------------------------------------------------


async def test_epochs_only_rise_by_number_and_then_by_region(open_node: OpenNode) -> None:
    us, ap, eu = await members(open_node, US, AP, EU)
    assert await ap.primacy.raise_to(1)
    assert await eu.primacy.raise_to(1)
    assert await us.primacy.raise_to(1)
    for one, other in ((us, ap), (us, eu), (eu, ap), (ap, us), (eu, us), (ap, eu)):
        await one.hear(other)
    assert {m.primacy.region for m in (us, eu, ap)} == {US}, "the last by the bytes of its name"
    assert await ap.primacy.raise_to(2)
    await us.hear(ap)
    await eu.hear(ap)
    await us.primacy.hear(Epoch(1, "zz-9", {}).to_json())
    assert {m.primacy.region for m in (us, eu, ap)} == {AP}
    assert not await eu.primacy.raise_to(1), "a higher one is there"
    assert eu.primacy.region == AP
    assert [await m.refusal() for m in (us, eu, ap)] == ["not_primary", "not_primary", ""]


async def test_regions_are_compared_by_bytes(open_node: OpenNode) -> None:
    """`a-b` is below `a1`, whatever the locale of the server or of this process says."""
    (us,) = await members(open_node, US)
    for region in ("a", "a-b", "a1", "ab"):
        await us.primacy.hear(Epoch(1, region, {}).to_json())
        assert us.primacy.region == region
    await us.primacy.hear(Epoch(1, "a-z", {}).to_json())
    assert us.primacy.region == "ab"


@pytest.mark.parametrize(
    "value",
    [
        *(7, "eu", [], {}, {"number": 1, "region": "eu"}),
        *({"number": n, "region": "eu", "vector": {}} for n in (0, -1, 1.0, True, "1", 10**10)),
        *({"number": 1, "region": r, "vector": {}} for r in ("", "EU", 'e"u', None, "é")),
        {"number": 1, "region": "eu", "vector": {"eu1.x": 5}},
    ],
)
async def test_what_is_no_epoch_changes_nothing(value: object, open_node: OpenNode) -> None:
    (us,) = await members(open_node, US)
    before = dump(us.node.valkey)
    with pytest.raises(Refused, match=r"epoch|vector"):
        await us.primacy.hear(value)
    assert dump(us.node.valkey) == before


async def test_without_primary_replica_nothing_is_fenced(open_node: OpenNode) -> None:
    (us,) = await members(open_node, US)
    await us.primacy.hear(Epoch(1, EU, {}).to_json())
    assert await us.refusal() == "not_primary"
    active = Member(us.node, US, ReplicationStrategy.ACTIVE_ACTIVE)
    await active.primacy.prepare()
    await active.primacy.hear(Epoch(2, EU, {}).to_json())
    assert (active.primacy.region, active.primacy.facts()) == (None, {})
    assert await active.refusal() == ""


# -- a restart -------------------------------------------------------------------------------------


async def test_an_epoch_beats_is_primary_after_a_restart_and_the_log_says_so(
    open_node: OpenNode, caplog: pytest.LogCaptureFixture
) -> None:
    us, eu = await members(open_node, US, EU)
    assert await eu.primacy.raise_to(1)
    await us.hear(eu)
    caplog.set_level(logging.WARNING)
    again = Member(await open_node("us1"), US), Member(await open_node("eu1"), EU)
    # The fence is in Redis: it holds also before the epoch has been read.
    again[0].node.store.fence_by(lambda: None)
    assert await again[0].refusal() == "not_primary"
    again[0].node.store.fence_by(again[0].primacy.refusal)
    for member in again:
        await member.primacy.prepare()
    assert "the region that was promoted, not that of is_primary" in caplog.text
    assert [await member.refusal() for member in again] == ["not_primary", ""]
    assert again[0].primacy.epoch == again[1].primacy.epoch == eu.primacy.epoch


async def test_a_redis_that_has_lost_the_epoch_gets_it_back(open_node: OpenNode) -> None:
    us, eu = await members(open_node, US, EU)
    assert await eu.primacy.raise_to(1)
    await us.hear(eu)
    for name in ("epoch", "fenced"):
        await us.node.store._control.call("HDEL", us.node.store.keys.meta, name)
    await us.primacy.tick()
    us.node.store.fence_by(lambda: None)
    assert await us.refusal() == "not_primary"


async def test_a_node_without_data_asks_before_it_writes(open_node: OpenNode) -> None:
    us = Member(await open_node("us1", has_peers=True), US)
    us.now_s -= ASK_S
    await us.primacy.prepare()
    assert await us.refusal() == "starting"
    us.now_s += ASK_S
    assert await us.refusal() == "", "nobody is there to be asked"


# -- the fence -------------------------------------------------------------------------------------


async def test_an_epoch_that_cannot_be_stored_fences_from_the_moment_it_is_heard(
    open_node: OpenNode,
) -> None:
    (us,) = await members(open_node, US)
    us.node.store._set_closed(Unavailable("store_unavailable", "gone"))
    with pytest.raises(Unavailable):
        await us.primacy.hear(Epoch(1, EU, {}).to_json())
    assert us.primacy.facts() == {}, "it is told only when it is stored"
    us.node.store._opened.set()
    assert await us.refusal() == "not_primary"
    await us.primacy.tick()
    assert "epoch" in us.primacy.facts()


async def test_a_promotion_counts_only_once_it_is_stored(open_node: OpenNode) -> None:
    (eu,) = await members(open_node, EU)
    eu.node.store._set_closed(Unavailable("store_unavailable", "gone"))
    with pytest.raises(Unavailable):
        await eu.primacy.hear(Epoch(1, EU, {}).to_json())
    eu.node.store._opened.set()
    assert await eu.refusal() == "starting"
    await eu.primacy.tick()
    assert await eu.refusal() == ""


async def test_no_write_on_its_way_passes_the_fence(open_node: OpenNode) -> None:
    """Writes of the group commit race with the epoch: none is in the feed behind it."""
    us, eu = await members(open_node, US, EU)
    assert await eu.primacy.raise_to(1)
    # What a client asked for before this process had heard: only Redis can stop it now.
    us.node.store.fence_by(lambda: None)
    writes = [asyncio.ensure_future(us.node.write(text)) for text in numbered(3_000)]
    await asyncio.wait(writes, return_when=asyncio.FIRST_COMPLETED)
    raised = await us.node.store.raise_epoch(US, eu.primacy.epoch)
    answers = await asyncio.gather(*writes, return_exceptions=True)
    taken = [one for one in answers if not isinstance(one, BaseException)]
    refused = [one for one in answers if isinstance(one, BaseException)]
    assert {one.code for one in refused if isinstance(one, Unavailable)} == {"not_primary"}
    assert len(taken) + len(refused) == 3_000
    last = raised.vector[us.node.store.origin]
    own = await us.node.store.feed_after(0, 100_000)
    assert max(entry.timestamp for entry in own) == max(one.revision for one in taken) == last
    assert len(own) == len(taken) + 1


async def test_held_writes_end_with_the_time_limit_or_an_epoch(open_node: OpenNode) -> None:
    us, eu = await members(open_node, US, EU)
    with pytest.raises(Refused, match="not the primary"):
        await eu.primacy.hold(5, AP)
    await us.node.write("+doc:1 viewer user:a")
    had = await us.primacy.hold(5, EU)
    assert had[us.node.store.origin] == us.node.store.revision
    assert await us.refusal() == "draining"
    us.node.store.fence_by(lambda: None)
    assert await us.refusal() == "not_primary", "also what is on its way"
    us.node.store.fence_by(us.primacy.refusal)
    us.now_s += 4
    await us.primacy.tick()
    assert await us.refusal() == "draining"
    us.now_s += 1
    await us.primacy.tick()
    assert await us.refusal() == ""
    await us.primacy.hold(5, EU)
    await us.primacy.let_go()
    assert await us.refusal() == ""
    # A process that ends meanwhile leaves nothing held behind.
    await us.primacy.hold(5, EU)
    again = Member(us.node, US)
    await again.primacy.prepare()
    assert await again.refusal() == ""
    await us.primacy.hold(5, EU)
    assert await eu.primacy.raise_to(1)
    await us.hear(eu)
    assert [await us.refusal(), await eu.refusal()] == ["not_primary", ""]


# -- what was not shipped --------------------------------------------------------------------------


async def test_exactly_what_was_not_shipped_is_listed_and_only_once(open_node: OpenNode) -> None:
    us, eu = await members(open_node, US, EU)
    await us.node.write("+doc:1 viewer user:a")
    await eu.node.take(us.node)
    condition = '{"name":"é"}'
    await us.node.write(
        f"+doc:2 viewer user:a if {condition} until 1924992000000000", tenant="acme"
    )
    await us.node.write("+doc:3 viewer user:a", "-doc:1 viewer user:a")
    assert await eu.primacy.raise_to(1)
    await us.node.write("+doc:4 viewer user:a")
    await us.hear(eu)
    await us.primacy.tick()
    first, *others = await us.fenced()
    assert first.tuple == ("acme", "doc:2", "viewer", "user:a")
    assert (first.number, first.primary) == (1, EU)
    assert first.written.sibling.condition == condition
    assert first.written.sibling.expires_at == 1_924_992_000_000_000
    assert resources(others) == ["doc:3", "doc:1", "doc:4"]
    assert [one.written.sibling.operation.value for one in others] == ["insert", "delete", "insert"]
    own = {entry.timestamp for entry in await us.node.store.feed_after(0, 1_000)}
    assert {one.written.version[0] for one in (first, *others)} <= own
    # Neither a further look nor a restart lists it again.
    await us.primacy.tick()
    again = Member(await open_node("us1"), US)
    await again.primacy.prepare()
    await again.primacy.tick()
    assert len(await us.fenced()) == 4
    # It is merged like any other write, and what comes back is not listed at all.
    await eu.node.take(us.node)
    await eu.node.write("+doc:5 viewer user:a")
    await us.node.take(eu.node)
    await us.primacy.tick()
    assert await us.node.listed() == await eu.node.listed()
    assert len(await us.fenced()) == 4


async def test_a_long_list_is_made_in_steps_and_goes_on_after_a_restart(
    open_node: OpenNode,
) -> None:
    us, eu = await members(open_node, US, EU)
    for text in numbered(170):
        await us.node.write(text)
    assert await eu.primacy.raise_to(1)
    await us.hear(eu)
    step = await us.node.store.report_fenced()
    assert step.is_more
    assert 0 < step.transactions < 170
    again = Member(await open_node("us1"), US)
    await again.primacy.prepare()
    await again.primacy.tick()
    assert resources(await us.fenced()) == [f"doc:{n}" for n in range(170)]


async def test_a_second_promotion_adds_what_it_had_not_got_either(open_node: OpenNode) -> None:
    """ap1 had more than eu1, which was promoted at the same time and wins."""
    us, eu, ap = await members(open_node, US, EU, AP)
    await us.node.write("+doc:1 viewer user:a")
    await eu.node.take(us.node)
    for text in numbered(120, "+mid:{} viewer user:a"):
        await us.node.write(text)
    await ap.node.take(us.node)
    await us.node.write("+doc:3 viewer user:a")
    assert await ap.primacy.raise_to(1)
    await us.hear(ap)
    await us.primacy.tick()
    assert resources(await us.fenced()) == ["doc:3"]
    assert await eu.primacy.raise_to(1)
    await us.hear(eu)
    await us.primacy.tick()
    listed = await us.fenced()
    assert sorted(resources(listed)) == sorted(["doc:3", *(f"mid:{n}" for n in range(120))])
    assert {one.primary for one in listed[1:]} == {EU}


async def test_a_second_time_as_the_primary_is_a_list_of_its_own(open_node: OpenNode) -> None:
    us, eu = await members(open_node, US, EU)
    await us.node.write("+doc:1 viewer user:a")
    assert await eu.primacy.raise_to(1)
    await us.hear(eu)
    await us.primacy.tick()
    await eu.node.take(us.node)
    assert await us.primacy.raise_to(2)
    await us.node.write("+doc:2 viewer user:a")
    await eu.node.take(us.node)
    await us.node.write("+doc:3 viewer user:a")
    await eu.hear(us)
    assert await eu.primacy.raise_to(3)
    await us.hear(eu)
    await us.primacy.tick()
    assert resources(await us.fenced()) == ["doc:1", "doc:3"]
    assert [one.number for one in await us.fenced()] == [1, 3]


async def test_what_has_left_the_feed_is_said(
    open_node: OpenNode, caplog: pytest.LogCaptureFixture
) -> None:
    us, eu = await members(open_node, US, EU)
    for text in numbered(3):
        await us.node.write(text)
    feed = await us.node.store.feed_after(0, 100)
    await us.node.store.trim(feed[1].revision, 100)
    assert await eu.primacy.raise_to(1)
    await us.hear(eu)
    await us.primacy.tick()
    assert resources(await us.fenced()) == ["doc:1", "doc:2"]
    (said,) = [r for r in caplog.records if "listed as conflicts" in r.message]
    assert vars(said)["left_the_feed"] is True
    assert vars(said)["transactions"] == 2


async def test_what_was_set_aside_is_written_again_behind_the_fence_and_listed(
    open_node: OpenNode,
) -> None:
    """us1 came back without its data, took a write before it was told, and had not been primary."""
    us, eu = Member(await open_node("us1", has_peers=True), US), (await members(open_node, EU))[0]
    await us.primacy.prepare()
    us.now_s += ASK_S
    await us.node.write("+doc:1 viewer user:a")
    assert await eu.primacy.raise_to(1)
    await us.hear(eu)
    await us.node.store.begin({"us1.aaaaaaaa0001": 5})
    await us.primacy.tick()
    assert await us.fenced() == []
    await us.node.store.end_phase()
    assert await us.refusal() == "not_primary"
    await us.primacy.tick()
    assert resources(await us.fenced()) == ["doc:1"]
    assert await us.node.listed() == ["doc:1 viewer user:a"]
