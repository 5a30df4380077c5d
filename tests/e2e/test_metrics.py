"""What an operator sees of two regions: the seed's metrics by their names, and /health."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import MakeWorld
from tests.promql import ALERTS, DASHBOARD, metrics_of
from tests.waiting import wait_until
from tests.world import ROOT, World, ask, documents

SEED = {
    "inferadb_replication_changes_total": "counter",
    "inferadb_replication_failures_total": "counter",
    "inferadb_replication_conflicts_total": "counter",
    "inferadb_replication_conflicts_resolved_local": "gauge",
    "inferadb_replication_conflicts_resolved_remote": "gauge",
    "inferadb_replication_lag_milliseconds": "gauge",
    "inferadb_replication_targets_connected": "gauge",
    "inferadb_replication_targets_total": "gauge",
    "inferadb_replication_batch_size": "histogram",
    "inferadb_replication_duration_seconds": "histogram",
}
"""The seed's ten metrics and how they are exposed: two of its counters lack `_total`."""
OURS = {
    "inferadb_replication_attempts_total": "counter",
    "inferadb_replication_target_lag_milliseconds": "gauge",
    "inferadb_replication_target_connected": "gauge",
    "inferadb_replication_target_unreachable": "gauge",
    "inferadb_sidecar_writes_total": "counter",
}
FORMAT = "text/plain; version=0.0.4; charset=utf-8"


@pytest.fixture(scope="module")
def world(make_shared_world: MakeWorld) -> World:
    return make_shared_world().start()


def test_every_metric_of_the_seed_is_there_under_its_name(world: World) -> None:
    """Also for a scraper that would like another format, in which two names are invalid."""
    world.nodes[0].insert(*documents([1]))
    world.settle()
    for accepted in ("*/*", "application/openmetrics-text; version=1.0.0"):
        answer = ask(world.nodes[0].admin_port, "GET", "/metrics", headers={"Accept": accepted})
        assert answer.status == 200
        assert answer.headers["Content-Type"] == FORMAT
        types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", answer.body, re.MULTILINE))
        assert SEED.items() <= types.items()
        assert OURS.items() <= types.items()
        assert all(re.search(rf"^# HELP {name} \w", answer.body, re.MULTILINE) for name in types)
        for family in text_string_to_metric_families(answer.body):
            for sample in family.samples:
                is_of_seed = any(sample.name.removesuffix(end) in SEED for end in ("", "_count"))
                assert not (is_of_seed and sample.labels), f"{sample} should have no label"


def test_the_queries_of_the_seed_name_what_is_there(world: World) -> None:
    text = (ROOT / "tests/data/seed-queries.promql").read_text()
    queries = [line for line in text.splitlines() if line and not line.startswith("#")]
    named = {name for query in queries for name in re.findall(r"inferadb_\w+", query)}
    assert len(named) == 6
    assert named <= world.nodes[0].metrics().keys()


def test_alerts_and_panels_ask_for_what_a_node_shows(world: World) -> None:
    """Also those of which there is no series yet: a name without a series is there as a type."""
    answer = ask(world.nodes[0].admin_port, "GET", "/metrics")
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", answer.body, re.MULTILINE))
    assert metrics_of(ALERTS, DASHBOARD) <= types.keys()


def test_what_is_written_here_and_what_arrives_there_is_counted(world: World) -> None:
    us, eu = world.nodes
    before = us.metrics(), eu.metrics()
    us.insert(*documents(range(7), "user:counted"))
    us.delete(*documents(range(3), "user:counted"))
    world.settle()

    def grown(name: str) -> tuple[float, float]:
        return us.metrics()[name] - before[0][name], eu.metrics()[name] - before[1][name]

    wait_until(lambda: grown("inferadb_replication_changes_total") == (10, 0), "10 acknowledged")
    assert grown("inferadb_sidecar_writes_total") == (2, 0)
    assert grown("inferadb_replication_merged_transactions_total") == (0, 2)
    assert grown("inferadb_replication_batch_size_sum") == (10, 0)
    assert grown("inferadb_replication_conflicts_total") == (0, 0)


def test_a_target_that_is_away_shows_and_its_lag_grows_until_it_is_back(world: World) -> None:
    """Lag is 0 while nothing waits, whoever is away; with something waiting it is its age."""
    us, _ = world.nodes
    world.settle()
    wait_until(lambda: us.metric("lag_milliseconds") == 0, "no lag when all is acknowledged")
    assert (us.metric("targets_connected"), us.metric("targets_total")) == (1, 1)
    failures = us.metric("failures_total")
    assert us.health().body["status"] == "healthy"

    world.cut()
    wait_until(lambda: us.metric("targets_connected") == 0, "the target shows as away")
    assert us.metric("targets_total") == 1
    assert us.metric("target_connected{node2}") == 0
    assert us.metric("lag_milliseconds") == 0, "nothing waits"
    us.insert(*documents([2]))
    lag = us.metric("lag_milliseconds")
    assert 0 < lag < 10_000
    us.insert(*documents([3]))
    wait_until(lambda: us.metric("lag_milliseconds") > lag + 300, "the oldest ages")
    wait_until(lambda: us.metric("failures_total") > failures, "failures are counted")
    assert us.metric("target_lag_milliseconds{node2}") > lag
    health = us.health()
    assert (health.status, health.body["status"]) == (200, "degraded")
    assert "target node2 is not connected" in str(health.body["reasons"])

    world.heal()
    world.settle()
    wait_until(lambda: us.metric("lag_milliseconds") == 0, "no lag once it is acknowledged")
    wait_until(lambda: us.metric("targets_connected") == 1, "the target shows as back")
    wait_until(lambda: us.health().body["status"] == "healthy", "healthy again")


def test_the_lag_of_what_waits_survives_a_restart(make_world: MakeWorld) -> None:
    """A node that comes back while its target is away still knows how old its backlog is."""
    world = make_world().start()
    us, _ = world.nodes
    world.cut()
    wait_until(lambda: us.metric("targets_connected") == 0, "the target shows as away")
    us.insert(*documents([1]))
    us.insert(*documents([2]))
    wait_until(lambda: us.metric("lag_milliseconds") > 500, "the backlog ages")
    us.kill()
    us.start()
    wait_until(lambda: us.metric("lag_milliseconds") > 500, "it is as old as before", 5)
    world.heal()
    world.settle()
    wait_until(lambda: us.metric("lag_milliseconds") == 0, "all is acknowledged")


def test_health_is_answered_on_all_three_listeners(world: World) -> None:
    for node in world.nodes:
        for port in node.ports:
            answer = node.health(port)
            assert answer.status == 200
            assert answer.body["status"] == "healthy", answer
            assert (answer.body["node"], answer.body["region"]) == (node.name, node.region)
