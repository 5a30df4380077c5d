"""What the README guarantees, on real processes: small in `make test`, in full size in `make soak`.

Each story prints its figures; `make soak ARGS="-k guarantees -s"` shows them.
"""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sidecar.store.keys import Keys
from tests.e2e.conftest import MakeWorld
from tests.pouring import pour, update
from tests.waiting import wait_until
from tests.world import LIST, WRITE, Node, World, documents

MIB = 1024 * 1024


class Size(NamedTuple):
    """changes: of single writes over `tuples`. entries: the longest feed. seconds: to settle."""

    changes: int
    tuples: int
    entries: int


SMALL = Size(6_000, 1_000, 1_500)
FULL = Size(200_000, 20_000, 50_000)
sizes = pytest.mark.parametrize(
    "size", [pytest.param(SMALL, id="small"), pytest.param(FULL, id="full", marks=pytest.mark.soak)]
)


def resident_mib(node: Node) -> float:
    """Memory of the sidecar's own process."""
    status = Path(f"/proc/{node.pid}/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return int(kib) / 1024


def unsettled(world: World) -> list[float]:
    return [node.metrics()["inferadb_sidecar_unsettled_tuples"] for node in world.nodes]


def random_changes(size: Size, seed: int) -> Iterator[dict[str, object]]:
    dice = random.Random(seed)
    for _ in range(size.changes):
        operation = "insert" if dice.random() < 0.7 else "delete"
        yield update(operation, dice.randrange(size.tuples))


# -- a region that was away for long ---------------------------------------------------------------


@sizes
def test_a_region_that_was_away_for_long_catches_up_by_state_transfer(
    size: Size, make_world: MakeWorld
) -> None:
    """More changes than the feed may hold: pages, then the feed; the sender's memory stays."""
    settings = {"feed_max_entries": size.entries, "probe_interval_max_s": 1}
    world = make_world(2, replication=settings).start()
    source, target = world.nodes
    pour(source, (update("insert", *range(n, n + 100)) for n in range(0, size.tuples, 100)))
    world.settle()
    resting_mib = resident_mib(source)
    target.kill()
    pour(source, random_changes(size, seed=1))
    trimmed = "inferadb_sidecar_feed_trimmed_total"
    wait_until(
        lambda: source.metrics()[trimmed] > size.changes - size.entries - 1_000, "it is trimmed"
    )
    assert source.metrics()["inferadb_replication_resync_suggested{node2}"] == 1
    sent_before = source.metrics()["inferadb_replication_batch_size_sum"]
    began = time.monotonic()
    target.start()
    world.settle(limit_s=120)
    took_s = time.monotonic() - began
    grown_mib = resident_mib(source) - resting_mib
    streamed = source.metrics()["inferadb_replication_batch_size_sum"] - sent_before
    print(
        f"\n{size.changes:,} changes over {size.tuples:,} tuples, feed of {size.entries:,}: caught "
        f"up {took_s:.1f} s after its start, {streamed:,.0f} changes by the feed, the rest by "
        f"pages; the sender's memory grew by {grown_mib:.0f} MiB"
    )
    assert source.digest() == target.digest()
    assert source.relationships() == target.relationships()
    assert "state transfer ends" in target.log
    assert grown_mib < 100
    wait_until(
        lambda: source.metrics()["inferadb_replication_resync_suggested{node2}"] == 0,
        "nothing is suggested any more",
    )
    source.delete(*documents([1]))
    target.insert(*documents([2]))
    world.settle()


# -- nothing is left -------------------------------------------------------------------------------


def leftover_keys(node: Node) -> list[str]:
    base = Keys("sidecar").meta.removesuffix("meta")
    with node.store() as call:
        found: list[str] = []
        cursor = "0"
        while True:
            cursor, keys = call("SCAN", cursor, "COUNT", 10_000)
            found += [k for k in keys if k.removeprefix(base)[:2] in ("t:", "s:", "x:", "b:")]
            if cursor in (0, "0"):
                return found


def used_mib(node: Node) -> float:
    with node.store() as call:
        call("MEMORY", "PURGE")
        return int(call("INFO", "memory")["used_memory"]) / MIB


@pytest.mark.parametrize(
    "tuples", [1_000, pytest.param(100_000, marks=pytest.mark.soak, id="full")]
)
def test_what_was_deleted_everywhere_leaves_nothing_behind(
    tuples: int, make_world: MakeWorld
) -> None:
    world = make_world(3, replication={"feed_retention_s": 5}).start()
    first, *_, last = world.nodes
    world.settle()
    empty_mib = [used_mib(node) for node in world.nodes]
    pour(first, (update("insert", *range(n, n + 100)) for n in range(0, tuples, 100)))
    world.settle(limit_s=120)
    # One is away: it might still have an older insert to tell of.
    last.kill()
    pour(first, (update("delete", *range(n, n + 100)) for n in range(0, tuples, 100)))
    others = world.nodes[:-1]
    wait_until(
        lambda: all(n.metrics()["inferadb_sidecar_unsettled_tuples"] == tuples for n in others),
        "every delete is kept",
        60,
    )
    held = "inferadb_sidecar_collection_held_by{node3}"
    wait_until(lambda: all(n.metrics().get(held) == 1 for n in others), "the metric names it")
    assert all(n.metrics()["inferadb_sidecar_unsettled_tuples"] == tuples for n in others)
    last.start()
    world.settle(limit_s=60)
    took_s = wait_until(lambda: unsettled(world) == [0, 0, 0], "all is collected", 60)
    assert [leftover_keys(node) for node in world.nodes] == [[], [], []]
    wait_until(lambda: max(n.feed_length() for n in world.nodes) == 0, "the feed is trimmed", 60)
    grown = [used_mib(n) - before for n, before in zip(world.nodes, empty_mib, strict=True)]
    print(
        f"\n{tuples:,} inserts and their deletes in three regions: nothing left {took_s:.1f} s "
        f"after the last was acknowledged; memory of Redis {max(grown):+.2f} MiB"
    )
    assert max(grown) < 3


# -- cut off, and from an older copy ---------------------------------------------------------------


def copied(node: Node, name: str) -> Path:
    """A copy of the folder of a node that does not run."""
    copy = node.folder.parent / name
    shutil.copytree(node.folder, copy)
    return copy


def put_back(node: Node, copy: Path) -> None:
    log = node.log
    shutil.rmtree(node.folder)
    shutil.copytree(copy, node.folder)
    (node.folder / "sidecar.log").write_text(log)


def row_of(node: Node, at: Node) -> dict[str, int]:
    """The vector that another node knows it to have."""
    with at.store() as call:
        row = call("HGETALL", Keys("sidecar").known(node.name))
    return {origin: int(timestamp) for origin, timestamp in row.items()}


def test_a_node_restarted_while_it_is_cut_off_writes_at_once(make_world: MakeWorld) -> None:
    world = make_world(3).start()
    alone, *_ = world.nodes
    alone.insert(*documents(range(10)))
    world.settle()
    world.cut()
    alone.kill()
    began = time.monotonic()
    alone.start()
    alone.insert(*documents(range(10, 20)))
    alone.delete(*documents([0]))
    assert time.monotonic() - began < 10
    world.nodes[1].insert(*documents(range(20, 30)))
    world.heal()
    world.settle(limit_s=40)
    assert [node.triples() for node in world.nodes] == 3 * [set(documents(range(1, 30)))]


@pytest.mark.parametrize("writes_while_cut_off", [False, True])
def test_a_node_restored_from_an_older_copy_brings_nothing_back(
    writes_while_cut_off: bool, make_world: MakeWorld
) -> None:
    """What was deleted meanwhile stays deleted, though every tombstone is gone."""
    settings = {"conflict_resolution": "insert_wins", "probe_interval_max_s": 1}
    world = make_world(3, replication=settings).start()
    restored, other, third = world.nodes
    pour(restored, (update("insert", n) for n in range(1_000)))
    world.settle()
    restored.kill()
    copy = copied(restored, "older")
    restored.start()
    pour(restored, (update("delete", n) for n in range(500)))
    pour(other, (update("delete", n) for n in range(500, 900)))
    pour(restored, (update("insert", n) for n in range(2_000, 2_100)))
    world.settle()
    wait_until(lambda: unsettled(world) == [0, 0, 0], "all is collected", 30)
    restored.kill()
    put_back(restored, copy)
    if writes_while_cut_off:
        world.cut()
        restored.start()
        # It cannot know: these are set aside, and written again once it knows more.
        restored.delete(("document:95", "viewer", "user:0"))
        restored.insert(("document:500", "viewer", "user:0"))
        world.heal()
    else:
        restored.begin()
    wait_until(lambda: "it has caught up" in restored.log, "a peer has told it", 30)
    restored.wait_until_serving()
    world.settle(limit_s=40)
    expected = {
        f"document:{n // 10} user:{n % 10}" for n in (*range(900, 1_000), *range(2_000, 2_100))
    }
    if writes_while_cut_off:
        expected = expected - {"document:95 user:0"} | {"document:500 user:0"}
    for node in world.nodes:
        assert {f"{r} {s}" for r, _, s in node.triples()} == expected, node.name
    assert third.digest() == restored.digest()
    if writes_while_cut_off:
        assert "set_aside=2" in restored.log
        assert "written_again=2" in restored.log


def test_a_node_that_is_behind_serves_nothing_and_says_why(make_world: MakeWorld) -> None:
    world = make_world(2, replication={"probe_interval_max_s": 1}).start()
    restored, other = world.nodes
    restored.insert(*documents([1]))
    world.settle()
    restored.kill()
    copy = copied(restored, "older")
    restored.start()
    restored.insert(*documents(range(2, 20)))
    restored.delete(*documents([1]))
    world.settle()
    wait_until(lambda: row_of(restored, at=other) == restored.vector, "its peer has been told", 30)
    restored.kill()
    put_back(restored, copy)
    # The peer can tell it so, and what it lacks does not come: the other way is cut.
    world.link(other.name, restored.name).cut()
    restored.begin()
    wait_until(lambda: "it has caught up" in restored.log, "it knows that it is behind", 30)
    for path, body in ((WRITE, {"relationships": _one()}), (LIST, {})):
        answer = restored.post_here(path, body)
        assert (answer.status, answer.body["error"]) == (503, "catching_up")
        assert int(answer.headers["Retry-After"]) > 0
        assert restored.post(path, body).headers["X-Served-By"].endswith(other.name)
    assert restored.status == 503
    world.heal()
    restored.wait_until_serving()
    world.settle()
    written_meanwhile = {("document:new", "viewer", "user:alice")}
    kept = set(documents(range(2, 20))) | written_meanwhile
    assert restored.triples() == other.triples() == kept


# -- a full Redis ----------------------------------------------------------------------------------


def test_a_full_redis_drains_by_itself_when_its_target_comes_back(make_world: MakeWorld) -> None:
    settings = {"feed_retention_s": 3_600, "probe_interval_max_s": 1}
    world = make_world(2, replication=settings).start()
    source, target = world.nodes
    world.settle()
    target.kill()
    with source.store() as call:
        limit = int(call("INFO", "memory")["used_memory"]) + 8 * MIB
        assert call("CONFIG", "SET", "maxmemory", limit) in (True, "OK")
    accepted = 0
    while True:
        body = {
            "updates": update("insert", *range(accepted % 50 * 20, accepted % 50 * 20 + 20))[
                "updates"
            ]
        }
        answer = source.post("/access/v1/relationships/update", body)
        if answer.status == 503:
            assert answer.body["error"] == "store_full"
            break
        assert answer.status == 200, answer
        accepted += 1
    assert accepted > 100
    assert len(source.triples()) == min(1_000, 20 * accepted), "reads go on"
    target.start()
    took_s = wait_until(
        lambda: source.post(WRITE, {"relationships": _one()}).status == 200, "writes go on", 60
    )
    world.settle()
    print(f"\nwrites went on {took_s:.1f} s after the target was back")
    assert source.relationships() == target.relationships()
    assert source.digest() == target.digest()


def _one() -> list[dict[str, str]]:
    return [{"resource": "document:new", "relation": "viewer", "subject": "user:alice"}]
