"""The metrics that users were promised: names, types and meaning; and those beside them."""

import math
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.metrics import CONTENT_TYPE, Metrics

DATA = Path(__file__).parents[1] / "data"
PREFIX = "inferadb_replication_"
COUNTERS = ["changes_total", "failures_total", "conflicts_total"]
GAUGES = [
    "conflicts_resolved_local",
    "conflicts_resolved_remote",
    "lag_milliseconds",
    "targets_connected",
    "targets_total",
]
HISTOGRAMS = ["batch_size", "duration_seconds"]


def shown(metrics: Metrics) -> dict[str, float]:
    """Every series as it is written in the text format, with its value."""
    lines = metrics.render().decode().splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }


def types(metrics: Metrics) -> dict[str, str]:
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", metrics.render().decode(), re.MULTILINE))


def test_the_ten_names_are_spelled_as_promised_and_carry_no_labels() -> None:
    metrics = Metrics()
    names = shown(metrics)
    for name in COUNTERS + GAUGES:
        assert names[PREFIX + name] == 0
    for name in HISTOGRAMS:
        assert names[f"{PREFIX}{name}_count"] == names[f"{PREFIX}{name}_sum"] == 0
    kinds = types(metrics)
    assert {kinds[PREFIX + name] for name in COUNTERS} == {"counter"}
    assert {kinds[PREFIX + name] for name in GAUGES} == {"gauge"}
    assert {kinds[PREFIX + name] for name in HISTOGRAMS} == {"histogram"}


def test_the_queries_of_the_documentation_find_their_series() -> None:
    queries = (DATA / "seed-queries.promql").read_text(encoding="utf-8")
    names = set(re.findall(r"inferadb_\w+", queries))
    assert names
    assert names <= set(shown(Metrics()))


def test_the_text_format_is_the_old_one_and_can_be_read() -> None:
    """Two of the names are invalid in the newer one."""
    metrics = Metrics()
    metrics.has_targets({"eu1": lambda: 5.0})
    assert "version=0.0.4" in CONTENT_TYPE
    text = metrics.render().decode()
    assert not text.endswith("# EOF\n")
    assert "_created" not in text
    assert len(list(text_string_to_metric_families(text))) == len(types(metrics))


def test_conflicts_are_the_sum_of_the_two_ways_to_resolve_them() -> None:
    metrics = Metrics()
    metrics.merged(3, local=2, remote=5)
    metrics.merged(1, local=1, remote=0)
    names = shown(metrics)
    assert names[PREFIX + "conflicts_resolved_local"] == 3
    assert names[PREFIX + "conflicts_resolved_remote"] == 5
    assert names[PREFIX + "conflicts_total"] == 8
    assert names[PREFIX + "merged_transactions_total"] == 4


def test_changes_are_summed_over_targets() -> None:
    metrics = Metrics()
    metrics.has_targets({"eu1": lambda: 0.0, "ap1": lambda: 0.0})
    metrics.acknowledged("eu1", 10, 0.25)
    metrics.acknowledged("ap1", 7, 0.75)
    names = shown(metrics)
    assert names[PREFIX + "changes_total"] == 17
    assert names[PREFIX + 'target_changes_total{target="eu1"}'] == 10
    assert names[PREFIX + 'target_changes_total{target="ap1"}'] == 7
    assert names[PREFIX + "duration_seconds_count"] == 2
    assert names[PREFIX + "duration_seconds_sum"] == 1.0


def test_the_lag_is_that_of_the_worst_target_at_this_moment() -> None:
    metrics, lags = Metrics(), {"eu1": 0.0, "ap1": 0.0}
    metrics.has_targets({name: lambda name=name: lags[name] for name in lags})  # type: ignore[misc]
    assert shown(metrics)[PREFIX + "lag_milliseconds"] == 0
    lags.update(eu1=12.5, ap1=7.0)
    names = shown(metrics)
    assert names[PREFIX + "lag_milliseconds"] == 12.5
    assert names[PREFIX + 'target_lag_milliseconds{target="ap1"}'] == 7
    assert names[PREFIX + "targets_total"] == 2


def test_without_targets_there_is_no_lag() -> None:
    metrics = Metrics()
    metrics.has_targets({})
    names = shown(metrics)
    assert names[PREFIX + "lag_milliseconds"] == names[PREFIX + "targets_total"] == 0


def test_a_target_is_connected_once_however_often_it_is_said() -> None:
    metrics = Metrics()
    metrics.has_targets({"eu1": lambda: 0.0, "ap1": lambda: 0.0})
    seen = []
    for target, is_connected in [
        *(("eu1", True), ("eu1", True), ("ap1", True), ("eu1", False), ("eu1", False)),
        ("ap1", False),
    ]:
        metrics.connected(target, is_connected)
        seen.append(shown(metrics)[PREFIX + "targets_connected"])
    assert seen == [1, 1, 2, 1, 1, 0]


def test_failures_and_attempts_make_a_rate() -> None:
    metrics = Metrics()
    metrics.has_targets({"eu1": lambda: 0.0})
    metrics.attempted("eu1")
    metrics.sent("eu1", 5)
    metrics.failed("eu1")
    metrics.wrote()
    metrics.unreachable("eu1", True)
    names = shown(metrics)
    assert names[PREFIX + "attempts_total"] == 2
    assert names[PREFIX + "failures_total"] == 1
    assert names[PREFIX + 'target_attempts_total{target="eu1"}'] == 2
    assert names[PREFIX + 'target_failures_total{target="eu1"}'] == 1
    assert names["inferadb_sidecar_writes_total"] == 1
    assert names[PREFIX + 'target_unreachable{target="eu1"}'] == 1


def test_the_feed_and_the_room_for_it_are_shown() -> None:
    metrics = Metrics()
    metrics.has_targets({"eu1": lambda: 0.0})
    feed = "inferadb_sidecar_feed_entries", "inferadb_sidecar_feed_trimmed_total"
    full, resync = "inferadb_sidecar_store_full", PREFIX + 'resync_suggested{target="eu1"}'
    assert [shown(metrics)[name] for name in (*feed, full, resync)] == [0, 0, 0, 0]
    metrics.trimmed(3, left=7)
    metrics.trimmed(2, left=5)
    metrics.store_full(True)
    metrics.resync_suggested("eu1", True)
    assert [shown(metrics)[name] for name in (*feed, full, resync)] == [5, 5, 1, 1]
    metrics.store_full(False)
    metrics.resync_suggested("eu1", False)
    assert [shown(metrics)[name] for name in (full, resync)] == [0, 0]


@pytest.mark.parametrize(("changes", "bound"), [(0, "1.0"), (1, "1.0"), (5_000, "5000.0")])
def test_batches_of_every_legal_size_have_a_bucket(changes: int, bound: str) -> None:
    metrics = Metrics()
    metrics.sent("eu1", changes)
    names = shown(metrics)
    buckets = {
        found[1]: value
        for name, value in names.items()
        if (found := re.fullmatch(PREFIX + r'batch_size_bucket{le="(.*)"}', name))
    }
    assert buckets[bound] == 1
    assert list(buckets)[-2:] == ["10000.0", "+Inf"]


def test_the_partitions_of_a_node_are_told_together() -> None:
    """A target is as well as the worst of its sessions, and what waits is summed up."""
    node = Metrics()
    everywhere, some = node.of("global.0"), node.of("set-1.0")
    everywhere.has_targets({"eu1": lambda: 5.0, "ap1": lambda: 1.0})
    some.has_targets({"eu1": lambda: 9.0})
    for target in ("eu1", "ap1"):
        everywhere.connected(target, True)
    names = shown(node)
    assert names[PREFIX + "targets_total"] == 2
    assert names[PREFIX + "targets_connected"] == 1, "one session with eu1 is missing"
    assert names[PREFIX + 'target_connected{target="eu1"}'] == 0
    assert names[PREFIX + 'target_lag_milliseconds{target="eu1"}'] == 9
    assert names[PREFIX + "lag_milliseconds"] == 9
    some.connected("eu1", True)
    for part, number in ((everywhere, 3), (some, 4)):
        part.trimmed(1, left=number)
        part.parked(number)
        part.unsettled(number, "ap1" if part is everywhere else "eu1", number * 10.0)
        part.feed_holds(100)
        part.clock_ahead(number - 7.0)
        part.acknowledged("eu1", number, 0.1)
    some.unreachable("eu1", True)
    some.transferring("eu1", 0.25)
    names = shown(node)
    assert names[PREFIX + "targets_connected"] == 2
    assert names[PREFIX + "changes_total"] == 7
    for name in ("feed_entries", "parked_transactions", "unsettled_tuples"):
        assert names[f"inferadb_sidecar_{name}"] == 7, name
    assert names["inferadb_sidecar_feed_trimmed_total"] == 2
    assert names["inferadb_sidecar_feed_max_entries"] == 200
    assert names["inferadb_sidecar_unsettled_oldest_seconds"] == 40, "the oldest of all"
    assert names["inferadb_sidecar_clock_ahead_seconds"] == -4, "the one furthest from 0"
    for held_by in ("ap1", "eu1"):
        assert names[f'inferadb_sidecar_collection_held_by{{node="{held_by}"}}'] == 1
    assert names[PREFIX + 'target_unreachable{target="eu1"}'] == 1
    assert names[PREFIX + 'target_transfer_ratio{target="eu1"}'] == 0.25
    some.unsettled(0, None, 0.0)
    assert 'held_by{node="eu1"}' not in node.render().decode()


def test_what_is_not_there_is_neither_up_nor_down() -> None:
    metrics = Metrics()
    assert math.isnan(shown(metrics)["inferadb_sidecar_database_up"])
    metrics.database(dirty=0, held=0, unsettled=0, is_up=False)
    assert shown(metrics)["inferadb_sidecar_database_up"] == 0


def test_whether_a_node_is_ready_is_asked_when_somebody_looks() -> None:
    metrics, answers = Metrics(), iter([False, True])
    metrics.is_ready_when(lambda: next(answers))
    assert [shown(metrics)["inferadb_sidecar_ready"] for _ in range(2)] == [0, 1]


def test_nothing_is_left_of_a_target_that_has_gone() -> None:
    metrics = Metrics()
    metrics.has_targets({"eu1": lambda: 0.0, "ap1": lambda: 0.0})
    for target in ("eu1", "ap1"):
        metrics.sent(target, 1)
        metrics.acknowledged(target, 1, 0.1)
        metrics.failed(target)
    metrics.has_targets({"eu1": lambda: 0.0})
    assert not [name for name in shown(metrics) if "ap1" in name]
    assert shown(metrics)[PREFIX + "attempts_total"] == 2, "what was, was"


def test_two_nodes_of_one_process_count_apart() -> None:
    us, eu = Metrics(), Metrics()
    us.wrote()
    assert shown(us)["inferadb_sidecar_writes_total"] == 1
    assert shown(eu)["inferadb_sidecar_writes_total"] == 0


def test_the_series_of_a_target_end_with_the_last_partition_that_ships_to_it() -> None:
    metrics = Metrics()
    bound = metrics.of("set-1.0")
    metrics.has_targets({"n2": lambda: 1.0, "n3": lambda: 7.0})
    bound.has_targets({"n3": lambda: 9.0})
    for part, target in ((metrics, "n2"), (metrics, "n3"), (bound, "n3")):
        part.connected(target, True)
    metrics.resync_suggested("n2", True)
    metrics.forwarded("n3")
    metrics.node_health("n3", 2)
    metrics.has_targets({"n2": lambda: 2.0})
    assert metrics.value(f"{PREFIX}targets_total") == 2, "the other partition ships to it still"
    assert metrics.value(f"{PREFIX}lag_milliseconds") == 9
    bound.has_targets({})
    metrics.forget_node("n3")
    metrics.forget_node("n9")
    assert metrics.value(f"{PREFIX}targets_total") == 1
    assert metrics.value(f"{PREFIX}targets_connected") == 1
    assert metrics.value(f"{PREFIX}lag_milliseconds") == 2
    assert not [name for name in shown(metrics) if '"n3"' in name]
    assert shown(metrics)[f'{PREFIX}resync_suggested{{target="n2"}}'] == 1, "it stays as it was"
