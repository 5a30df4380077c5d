"""The limits of a node's Redis as users meet them: a trimmed feed, and a full memory."""

from sidecar.api.cursors import Place
from sidecar.store.keys import Keys
from tests.e2e.conftest import MakeWorld
from tests.waiting import wait_until
from tests.world import DELETE, WATCH, WRITE, Answer, Node, ask, documents

RETENTION = "INFERADB__REPLICATION__FEED_RETENTION_S"
FULL = "inferadb_sidecar_store_full"
MIB = 1024 * 1024


def limit_memory(node: Node, limit: int) -> None:
    with node.store() as call:
        assert call("CONFIG", "SET", "maxmemory", limit) in (True, "OK")


def used_memory(node: Node) -> int:
    with node.store() as call:
        return int(call("INFO", "memory")["used_memory"])


def large(node: Node, number: int) -> Answer:
    """Write 500 relationships, somewhat more than 100 KiB of store and feed."""
    relationships = [
        {"resource": f"document:{number}-{i}", "relation": "viewer", "subject": "user:alice"}
        for i in range(500)
    ]
    return node.post(WRITE, {"relationships": relationships})


def fill(node: Node) -> int:
    """Write until it is refused; how many requests were accepted."""
    for number in range(1_000):
        answer = large(node, number)
        if answer.status != 200:
            assert answer.status == 503, answer
            assert answer.body["error"] == "store_full", answer
            assert answer.headers["Retry-After"] == "5"
            assert "maxmemory" in answer.body["message"]
            return number
    raise AssertionError("it has never become full")


def test_a_full_redis_refuses_writes_and_serves_reads_until_there_is_room(
    make_world: MakeWorld,
) -> None:
    world = make_world(1, replication={"feed_retention_s": 3_600}).start()
    (node,) = world.nodes
    node.insert(*documents([1]))
    limit_memory(node, used_memory(node) + 6 * MIB)
    accepted = fill(node)
    assert accepted > 0
    triple = {"resource": "document:1", "relation": "viewer", "subject": "user:alice"}
    while (refused := node.post(DELETE, {"relationships": [triple]})).status == 200:
        # Trimming was quicker.
        node.insert(*documents([1]))
        accepted = max(accepted, fill(node))
    assert (refused.status, refused.body["error"]) == (503, "store_full")
    wait_until(lambda: node.metrics()[FULL] == 1, "it shows in the metrics")
    health = node.health()
    assert (health.status, health.body["status"]) == (200, "degraded")
    assert "store is full" in str(health.body["reasons"])
    assert set(documents([1])) <= node.triples()
    assert len(node.triples()) == 1 + 500 * accepted, "all of what was accepted, nothing else"

    # Nobody needs the feed: it goes, though it is younger than the retention, and makes room.
    wait_until(lambda: node.feed_length() == 0, "the feed has gone")
    limit_memory(node, 64 * MIB)
    wait_until(lambda: large(node, 2_000).status == 200, "writes go on")
    assert node.metrics()[FULL] == 0
    assert node.health().body["status"] == "healthy"
    assert node.log.count("store full: writes are refused") >= 1


def test_trimming_alone_makes_room(make_world: MakeWorld) -> None:
    """Rewriting the same tuples fills the feed and nothing else: no operator is needed."""
    world = make_world(1).start()
    (node,) = world.nodes
    large(node, 1)
    limit_memory(node, used_memory(node) + 4 * MIB)
    refused = 0

    def was_refused() -> bool:
        nonlocal refused
        refused += large(node, 1).status == 503
        return refused > 0

    wait_until(was_refused, "the feed fills the memory")
    wait_until(lambda: large(node, 1).status == 200, "writes go on by themselves")
    assert len(node.triples()) == 500


def test_a_short_retention_empties_the_feed_and_watchers_resume_at_its_tip(
    make_world: MakeWorld,
) -> None:
    world = make_world(1, environ={RETENTION: "1"}).start()
    (node,) = world.nodes
    watcher = world.watch(node)
    first = node.insert(*documents([1]))
    node.insert(*documents([2]))
    wait_until(lambda: watcher.complete == 2, "both are told")
    wait_until(lambda: node.feed_length() == 0, "the feed is empty", 10)
    wait_until(lambda: node.metrics()["inferadb_sidecar_feed_entries"] == 0, "and shows so")
    assert node.metrics()["inferadb_sidecar_feed_trimmed_total"] == 3

    node.kill()
    node.start()
    node.insert(*documents([3]))
    wait_until(lambda: watcher.complete == 3, "the watcher has resumed where it was")
    told = [triple for _, made in watcher.transactions for _, triple in made]
    assert told == list(documents([1, 2, 3]))
    assert not [error for error in watcher.errors if error.startswith("410")]

    refused = ask(node.app_port, "POST", WATCH, {"cursor": cursor_of(node, first["revision"])})
    assert (refused.status, refused.body["error"]) == (410, "cursor_expired")


def test_an_acknowledged_feed_goes_and_what_a_region_missed_stays(make_world: MakeWorld) -> None:
    world = make_world(2, environ={RETENTION: "1"}).start()
    us, eu = world.nodes
    us.insert(*documents([1]))
    eu.insert(*documents([2]))
    world.settle()
    wait_until(lambda: us.feed_length() == eu.feed_length() == 0, "both feeds are empty", 15)

    world.cut()
    wait_until(lambda: us.metric("targets_connected") == 0, "the link is cut")
    us.insert(*documents([3]))
    us.insert(*documents([4]))
    trimmed = us.metrics()["inferadb_sidecar_feed_trimmed_total"]
    # The other one is alone with its writes as well, and a restart must not change that.
    eu.insert(*documents([5]))
    eu.kill()
    eu.start()
    wait_until(lambda: us.metric("lag_milliseconds") > 3_000, "it is older than the retention")
    assert us.feed_length() == 2
    assert us.metrics()["inferadb_sidecar_feed_trimmed_total"] == trimmed

    world.heal()
    world.settle()
    assert us.triples() == eu.triples() == set(documents([1, 2, 3, 4, 5]))
    wait_until(lambda: us.feed_length() == eu.feed_length() == 0, "both are empty again", 15)
    for node in world.nodes:
        found = node.metrics()
        assert [found[n] for n in found if "resync_suggested" in n] == [0]


def cursor_of(node: Node, revision: str) -> str:
    """The cursor behind this revision, as a watcher would have been given it."""
    with node.store() as call:
        origin = call("HGET", Keys("sidecar").meta, "origin")
    return Place(origin, int(revision)).encode()
