"""What a program of its own may use: the names, who wins and why, and a feed within the program."""

import asyncio
import gc
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta

import pytest

import sidecar
from sidecar import (
    Change,
    ChangeFeed,
    Conflict,
    ConflictResolutionStrategy,
    ConflictResolver,
    NodeId,
    Refused,
    RegionId,
    Relationship,
    ReplicationConfig,
    ReplicationStrategy,
    Side,
    TopologyBuilder,
    Unavailable,
    Why,
    ZoneId,
)
from sidecar.settings import Agent

LWW, PRIORITY, INSERT_WINS, DELETE_WINS, CUSTOM = ConflictResolutionStrategy
DOCUMENT = Relationship("default", "document:readme", "viewer", "user:alice")
FOLDER = Relationship("default", "folder:plans", "owner", "user:bob")


def insert(timestamp: int, node: str, region: str = "", incarnation: str = "1") -> Change:
    origin = f"{node}.{incarnation}"
    return Change.insert(0, DOCUMENT, timestamp=timestamp, origin=origin, region=region)


def delete(timestamp: int, node: str, region: str = "") -> Change:
    return Change.delete(0, DOCUMENT, timestamp=timestamp, origin=f"{node}.1", region=region)


# -- the names ---------------------------------------------------------------------------------


def test_every_public_name_is_there() -> None:
    for name in sidecar.__all__:
        assert getattr(sidecar, name).__name__ == name
    assert set(sidecar.__all__) <= set(dir(sidecar))
    with pytest.raises(AttributeError, match="no attribute 'Manager'"):
        _ = sidecar.Manager  # type: ignore[attr-defined]


def test_importing_the_package_imports_nothing_of_it() -> None:
    """The command line imports the package first, and `--help` is to be quick."""
    asked = (
        "import sys, sidecar; print(*[m for m in sys.modules if m.startswith('sidecar.') "
        "or m.split('.')[0] in ('redis', 'aiohttp', 'pydantic', 'prometheus_client')])"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# -- who wins, and why -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "local", "remote", "winner", "why"),
    [
        (LWW, insert(5, "us1"), delete(6, "eu1"), Side.REMOTE, Why.TIMESTAMP),
        (LWW, insert(6, "us1"), delete(6, "eu1"), Side.LOCAL, Why.NODE),
        (LWW, insert(6, "n"), delete(6, "n-1"), Side.REMOTE, Why.NODE),
        (LWW, insert(6, "n"), insert(6, "n", incarnation="2"), Side.REMOTE, Why.INCARNATION),
        (INSERT_WINS, insert(5, "us1"), delete(6, "eu1"), Side.LOCAL, Why.OPERATION),
        (INSERT_WINS, insert(5, "us1"), insert(6, "eu1"), Side.REMOTE, Why.TIMESTAMP),
        (DELETE_WINS, insert(6, "us1"), delete(5, "eu1"), Side.REMOTE, Why.OPERATION),
        (PRIORITY, delete(5, "us1", "us"), insert(9, "eu1", "eu"), Side.LOCAL, Why.REGION_PRIORITY),
        (PRIORITY, delete(5, "us2", "us"), insert(9, "us1", "us"), Side.REMOTE, Why.TIMESTAMP),
        # A region that is not listed ranks with the first one.
        (PRIORITY, insert(9, "sa1", "sa"), delete(5, "ap1", "ap"), Side.LOCAL, Why.TIMESTAMP),
    ],
)
def test_who_wins_and_why(
    strategy: ConflictResolutionStrategy, local: Change, remote: Change, winner: Side, why: Why
) -> None:
    resolver = ConflictResolver(strategy).with_region_priorities(["ap", "eu", "us"])
    here, there = resolver.resolve(local, remote), resolver.resolve(remote, local)
    assert (here.winner, here.why) == (winner, why)
    # The node at the other end sees it the other way round, and the same change stands.
    assert there.winner is not winner
    assert there.change == here.change


def test_priorities_leave_the_resolver_they_were_given_to_as_it_was() -> None:
    plain = ConflictResolver(PRIORITY)
    assert plain.with_region_priorities(["eu", "us"]).region_priorities == ("eu", "us")
    assert plain.region_priorities == ()


def test_a_function_decides_custom_conflicts() -> None:
    """The longer name of a node, here: whatever the program likes."""

    def longer(conflict: Conflict) -> Change:
        return max((conflict.local, conflict.remote), key=lambda change: len(change.origin))

    resolver = ConflictResolver(CUSTOM, resolve=longer)
    resolution = resolver.resolve(insert(9, "us1"), delete(5, "eu-central"))
    assert (resolution.winner, resolution.why) == (Side.REMOTE, Why.CUSTOM)


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (lambda: ConflictResolver(CUSTOM), "CUSTOM needs resolve="),
        (
            lambda: ConflictResolver(CUSTOM, resolve=lambda conflict: conflict.local),
            "by which of the two is local",
        ),
        (
            lambda: ConflictResolver(CUSTOM, resolve=lambda _: insert(1, "other")),
            "one of the two changes",
        ),
        (lambda: ConflictResolver(LWW, resolve=lambda c: c.local), "resolve= is for CUSTOM"),
        (lambda: ConflictResolver(PRIORITY), r"needs with_region_priorities\("),
        (
            lambda: ConflictResolver(PRIORITY).with_region_priorities(["us"]),
            "the region of each change",
        ),
        (lambda: ConflictResolver(LWW).with_region_priorities(["us", "us"]), "listed twice"),
    ],
)
def test_a_resolver_that_could_not_decide_alike_everywhere_is_refused(
    made: Callable[[], ConflictResolver], complaint: str
) -> None:
    with pytest.raises(Refused, match=complaint):
        made().resolve(insert(5, "us1"), delete(6, "eu1"))


@pytest.mark.parametrize(
    ("remote", "complaint"),
    [
        (Change.delete(0, FOLDER, timestamp=6, origin="eu1.1"), "different relationships"),
        (Change.delete(7, DOCUMENT), "needs timestamp and origin"),
        (delete(5, "us1"), "both are the write 5 of us1.1"),
    ],
)
def test_what_is_no_conflict_is_refused(remote: Change, complaint: str) -> None:
    with pytest.raises(Refused, match=complaint):
        ConflictResolver(LWW).resolve(insert(5, "us1"), remote)


def test_nodes_take_no_function() -> None:
    topology = (
        TopologyBuilder(ReplicationStrategy.ACTIVE_ACTIVE, RegionId("us"))
        .add_region(RegionId("us"), "US")
        .add_zone(RegionId("us"), ZoneId("a"), "A")
        .add_node(RegionId("us"), ZoneId("a"), NodeId("us1"), "localhost:50051")
        .build()
    )
    with pytest.raises(Refused, match=r"a node takes no function.*script"):
        ConflictResolver(CUSTOM, resolve=lambda c: c.local).rules_of(topology)
    rules = ConflictResolver(PRIORITY).with_region_priorities(["eu", "us"]).rules_of(topology)
    assert rules.priority == {"us1": 1}


# -- a feed within the program -----------------------------------------------------------------


async def test_subscribers_get_what_is_published_after_they_came() -> None:
    feed = ChangeFeed()
    await feed.publish(Change.insert(1, DOCUMENT))
    everything, documents = await feed.subscribe(), await feed.subscribe_filtered("document")
    gone, kept = Change.delete(2, DOCUMENT), Change.insert(3, FOLDER)
    assert await feed.publish(gone) == gone
    await feed.publish(kept)
    feed.close()
    assert [change async for change in everything] == [gone, kept]
    assert [change async for change in documents] == [gone]
    assert await documents.recv() is None


async def test_a_reader_waits_until_there_is_something_and_until_it_is_closed() -> None:
    feed = ChangeFeed()
    stream = await feed.subscribe()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        first = group.create_task(stream.recv())
        await asyncio.sleep(0)
        await feed.publish(Change.insert(1, DOCUMENT))
        assert await first == Change.insert(1, DOCUMENT)
        second = group.create_task(stream.recv())
        await asyncio.sleep(0)
        stream.close()
        assert await second is None
    await feed.publish(Change.insert(2, DOCUMENT))
    assert await stream.recv() is None


async def test_a_subscriber_that_reads_nothing_holds_up_the_publisher_and_not_the_others() -> None:
    """Nobody gets what one of them has no room for; one that was forgotten holds up nobody."""
    feed = ChangeFeed(buffer_size=2)
    slow, quick = await feed.subscribe(), await feed.subscribe()
    for revision in (1, 2):
        await feed.publish(Change.insert(revision, DOCUMENT))
        assert (await quick.recv()) is not None
    with pytest.raises(Unavailable, match="2 changes wait"):
        await feed.publish(Change.insert(3, DOCUMENT))
    del slow
    gc.collect()
    await feed.publish(Change.insert(4, DOCUMENT))
    change = await quick.recv()
    assert change is not None
    assert change.revision == 4


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (Relationship("default", "readme", "viewer", "user:alice"), "has no colon"),
        (Relationship("a tenant", "document:a", "viewer", "user:alice"), "tenant"),
        (DOCUMENT._replace(condition="{"), "not the text of a JSON value"),
        (DOCUMENT._replace(condition="null"), "leave it out"),
        (DOCUMENT._replace(condition="[" * 5000), "not the text of a JSON value"),
        (DOCUMENT._replace(expires_at=10**18), "after 9999"),
        (DOCUMENT._replace(expires_at=-1), "before 1970"),
    ],
)
async def test_what_no_store_would_take_is_refused(wrong: Relationship, complaint: str) -> None:
    with pytest.raises(Refused, match=complaint):
        await ChangeFeed().publish(Change.insert(1, wrong))


async def test_a_condition_arrives_as_the_one_text_of_its_value() -> None:
    asked = DOCUMENT._replace(condition='{"b": 1, "a": 2}', expires_at=1_790_000_000_000_001)
    published = await ChangeFeed().publish(Change.insert(1, asked))
    assert published.relationship == asked._replace(condition='{"a":2,"b":1}')
    # A delete has no payload.
    assert Change.delete(1, asked).relationship == DOCUMENT


# -- the settings of the agent -----------------------------------------------------------------


def test_the_defaults_are_those_of_the_settings() -> None:
    assert ReplicationConfig().settings() == Agent().model_dump()


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (ReplicationConfig(retry_delay=timedelta(microseconds=1500)), "retry_delay: .*multiple"),
        (ReplicationConfig(request_timeout=timedelta(seconds=1.5)), "request_timeout: .*multiple"),
    ],
)
def test_a_duration_that_no_setting_can_express_is_refused(
    config: ReplicationConfig, complaint: str
) -> None:
    with pytest.raises(Refused, match=complaint):
        config.settings()
