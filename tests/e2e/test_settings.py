"""The five settings of the agent, from the environment, in both spellings: what each one does.

Three regions: in `us` a setting is spelled as the seed spells it, in `eu` at its place in the file,
and `ap` has another value, to compare with.
"""

from typing import NamedTuple

import pytest

from tests.e2e.conftest import MakeWorld
from tests.waiting import wait_until
from tests.world import Node, World, documents

SHORT, NESTED = "INFERADB__REPLICATION__", "INFERADB__REPLICATION__AGENT__"


class Regions(NamedTuple):
    us: Node
    eu: Node
    ap: Node


def set_in(world: World, name: str, value: int, other: int | None = None) -> Regions:
    """Set it in `us` and `eu` to `value`, and in `ap` to `other`, or leave it at its default."""
    regions = Regions(*world.nodes)
    regions.us.environ[SHORT + name] = str(value)
    regions.eu.environ[NESTED + name] = str(value)
    if other is not None:
        regions.ap.environ[NESTED + name] = str(other)
    return regions


def begin_apart(world: World) -> None:
    """Start all nodes with every link cut."""
    world.cut()
    for node in world.nodes:
        node.begin()
    for node in world.nodes:
        node.wait_until_serving()


def test_max_retries_says_when_a_target_counts_as_unreachable(make_world: MakeWorld) -> None:
    """After the first attempt and so many more; probing goes on."""
    world = make_world(3, environ={SHORT + "RETRY_DELAY_MS": "10"})
    us, eu, ap = set_in(world, "MAX_RETRIES", 1, other=3)
    begin_apart(world)
    for node, attempts in ((us, 2), (eu, 2), (ap, 4)):
        for target in {"node1", "node2", "node3"} - {node.name}:
            line = f"replication target unreachable target={target} attempts={attempts}"
            wait_until(lambda n=node, text=line: text in n.log, line)  # type: ignore[misc]
            assert node.metric(f"target_unreachable{{{target}}}") == 1
            assert node.log.count(f"unreachable target={target}") == 1, "said once"
    attempts_so_far = us.metric("attempts_total")
    wait_until(lambda: us.metric("attempts_total") > attempts_so_far, "it goes on probing")
    us.insert(*documents([1]))
    world.heal()
    world.settle()
    for node in world.nodes:
        wait_until(lambda n=node: n.metric("targets_connected") == 2, "reached again")  # type: ignore[misc]
        found = node.metrics()
        assert all(found[name] == 0 for name in found if "target_unreachable" in name)


def test_retry_delay_ms_spaces_the_attempts(make_world: MakeWorld) -> None:
    """While one has tried often, those with the long delay have hardly begun."""
    world = make_world(3)
    us, eu, ap = set_in(world, "RETRY_DELAY_MS", 20_000, other=5)
    begin_apart(world)
    wait_until(lambda: ap.metric("attempts_total") >= 12, "two targets, six attempts each")
    for node in (us, eu):
        assert 1 <= node.metric("attempts_total") <= 2, f"{node.name}: one attempt per target"


def test_batch_size_limits_the_changes_of_a_batch(make_world: MakeWorld) -> None:
    """A backlog of single changes goes in batches of that size, not in one."""
    world = make_world(3)
    us, eu, ap = set_in(world, "BATCH_SIZE", 5)
    begin_apart(world)
    for node in world.nodes:
        for triple in documents(range(40), f"user:{node.name}"):
            node.insert(triple)
    world.heal()
    world.settle()
    for node in (us, eu):
        found = node.metrics()
        batches = found["inferadb_replication_batch_size_count"]
        assert batches >= 2 * 40 / 5, f"{node.name}: two targets, at least eight batches each"
        assert found["inferadb_replication_batch_size_bucket{5.0}"] == batches, "none is larger"
    found = ap.metrics()
    larger = found["inferadb_replication_batch_size_count"]
    larger -= found["inferadb_replication_batch_size_bucket{20.0}"]
    assert larger >= 2, "one large batch per target"


def test_request_timeout_secs_ends_a_session_with_a_silent_peer(make_world: MakeWorld) -> None:
    """Also one that still takes connections; who waits longer has not noticed yet."""
    world = make_world(3)
    us, eu, ap = set_in(world, "REQUEST_TIMEOUT_SECS", 1, other=60)
    world.start()
    failures = {node.name: node.metric("failures_total") for node in world.nodes}
    for link in world.links:
        link.freeze()
    for node in world.nodes:
        node.insert(*documents([1], f"user:{node.name}"))
    for node in (us, eu):
        wait_until(lambda n=node: n.metric("targets_connected") == 0, "both given up", 5)  # type: ignore[misc]
        assert node.metric("failures_total") >= failures[node.name] + 2
        assert "acknowledged nothing for 1." in node.log, "the batch that was not acknowledged"
        wait_until(lambda n=node: "no answer within 1 s" in n.log, "a hello unanswered", 5)  # type: ignore[misc]
    assert ap.metric("targets_connected") == 2
    assert ap.metric("failures_total") == failures["node3"]
    world.heal()
    world.settle()
    for node in (us, eu):
        assert node.log.count("store open") == 1, "a quiet Redis is not a silent one"


def test_buffer_size_only_decides_where_the_feed_is_read(make_world: MakeWorld) -> None:
    """Smaller than one transaction: all of it is read from the stream, and nothing is dropped."""
    world = make_world(3)
    us, eu, ap = set_in(world, "BUFFER_SIZE", 1)
    world.start()
    world.settle()
    before = {node.name: stream_reads(node) for node in world.nodes}
    for number in range(50):
        for node in world.nodes:
            node.insert(*documents(range(3), f"user:{node.name}-{number}"))
    world.settle()
    for node in world.nodes:
        assert len(node.triples()) == 3 * 3 * 50, f"{node.name} lacks something"
    for node in (us, eu):
        assert stream_reads(node) - before[node.name] >= 50, f"{node.name} read its stream"
    # A session that comes to the tip after another one may begin a step behind what is held.
    assert stream_reads(ap) - before["node3"] <= 2, "everything else was still in memory"


def stream_reads(node: Node) -> int:
    """How often its Redis was asked for a range of the feed."""
    with node.store() as call:
        statistics = call("INFO", "commandstats")
    return int(statistics.get("cmdstat_xrange", {"calls": 0})["calls"])


@pytest.mark.parametrize("spelling", [SHORT, NESTED])
def test_a_value_that_cannot_be_is_refused_by_its_name(
    spelling: str, make_world: MakeWorld
) -> None:
    (node,) = make_world(1).nodes
    node.environ[spelling + "BATCH_SIZE"] = "many"
    node.begin()
    assert node.process is not None
    assert node.process.wait(30) == 2
    assert node.log.count("\n") == 1
    assert f"replication.agent.batch_size ({spelling}BATCH_SIZE)" in node.log
