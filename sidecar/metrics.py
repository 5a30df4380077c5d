"""Metrics as an interface of domain events; nothing outside this file sees Prometheus.

The ten names of the seed carry no labels; what belongs to one target has a name of its own.
"""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from sidecar.errors import Broken

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

# A series of its own for when each series began helps nobody here.
disable_created_metrics()  # type: ignore[no-untyped-call]

_BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
_DURATION_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0),
)


class Metrics:
    """Counts what happens on this node. Each instance has a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self._changes = counter(
            "inferadb_replication_changes_total",
            "Changes acknowledged by targets, summed over targets",
        )
        self._failures = counter(
            "inferadb_replication_failures_total",
            "Failed attempts: connect, hello, batch, timeout",
        )
        self._attempts = counter(
            "inferadb_replication_attempts_total",
            "Attempts: sessions begun and batches sent",
        )
        self._conflicts = counter(
            "inferadb_replication_conflicts_total", "Conflicts detected by merges on this node"
        )
        # Gauges that only grow, because their names lack _total.
        self._resolved_local = gauge(
            "inferadb_replication_conflicts_resolved_local",
            "Conflicts resolved by keeping what was stored here",
        )
        self._resolved_remote = gauge(
            "inferadb_replication_conflicts_resolved_remote",
            "Conflicts resolved by taking what arrived",
        )
        self._lag = gauge(
            "inferadb_replication_lag_milliseconds",
            "Age of the oldest transaction that some target has not acknowledged",
        )
        self._connected = gauge(
            "inferadb_replication_targets_connected", "Targets with a session that stands"
        )
        self._targets = gauge("inferadb_replication_targets_total", "Targets configured")
        self._batch_size = Histogram(
            "inferadb_replication_batch_size",
            "Changes per batch sent",
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        self._duration = Histogram(
            "inferadb_replication_duration_seconds",
            "From sending a batch to its acknowledgement",
            buckets=_DURATION_BUCKETS,
            registry=registry,
        )
        self._merged = counter(
            "inferadb_replication_merged_transactions_total",
            "Transactions of other origins applied here",
        )
        self._writes = counter(
            "inferadb_sidecar_writes_total", "Write requests accepted here, one transaction each"
        )
        self._feed_entries = gauge(
            "inferadb_sidecar_feed_entries", "Transactions in the feed of this node"
        )
        self._feed_trimmed = counter(
            "inferadb_sidecar_feed_trimmed_total", "Transactions taken off the feed"
        )
        self._store_full = gauge(
            "inferadb_sidecar_store_full",
            "1 while writes of applications are refused because Redis is near its maxmemory",
        )
        self._forwarded = Counter(
            "inferadb_sidecar_forwarded_requests_total",
            "Requests of applications that were handed to this node",
            ("target",),
            registry=registry,
        )
        self._node_health = gauge(
            "inferadb_sidecar_node_health",
            "How another node is as this one sees it: 2 healthy, 1 degraded, 0 unreachable",
            "target",
        )
        self._resync_suggested = gauge(
            "inferadb_replication_resync_suggested",
            "1 while the feed no longer has what this target needs next",
            "target",
        )
        self._target_lag = gauge(
            "inferadb_replication_target_lag_milliseconds",
            "Age of the oldest transaction that this target has not acknowledged",
            "target",
        )
        self._target_connected = gauge(
            "inferadb_replication_target_connected",
            "1 while a session with this target stands",
            "target",
        )
        self._target_unreachable = gauge(
            "inferadb_replication_target_unreachable",
            "1 after max_retries failed attempts in a row to reach this target",
            "target",
        )
        self._target_transfer = gauge(
            "inferadb_replication_target_transfer_ratio",
            "How much of a state transfer to this target is done, 0 to 1; 1 when there is none",
            "target",
        )
        self._unsettled = gauge(
            "inferadb_sidecar_unsettled_tuples",
            "Tuples kept for what not every node has seen yet: deleted ones and conflicts",
        )
        self._parked = gauge(
            "inferadb_sidecar_parked_transactions",
            "Transactions received and not yet applied; what follows of their origins waits, too",
        )
        self._holds_back = gauge(
            "inferadb_sidecar_collection_held_by",
            "1 for the node that holds back collection, while anything waits for it",
            "node",
        )
        self._unequal_buckets = gauge(
            "inferadb_sidecar_digest_unequal_buckets",
            "Buckets in which this target stores something else although it has the same writes",
            "target",
        )
        self._damaged_buckets = gauge(
            "inferadb_sidecar_digest_damaged_buckets",
            "Buckets of this node that do not fit the digests its own writes maintain",
        )
        self._epoch = gauge(
            "inferadb_replication_epoch",
            "Number of the promotion by which there is the present primary; 0: is_primary says so",
        )
        self._target_changes = Counter(
            "inferadb_replication_target_changes_total",
            "Changes acknowledged by this target",
            ("target",),
            registry=registry,
        )
        self._target_failures = Counter(
            "inferadb_replication_target_failures_total",
            "Failed attempts with this target",
            ("target",),
            registry=registry,
        )

    def has_targets(self, targets: dict[str, Callable[[], float]]) -> None:
        """The targets of this node: each with a function that tells its lag in milliseconds."""
        self._targets.set(len(targets))
        for target, lag_ms in targets.items():
            self._target_lag.labels(target).set_function(lag_ms)
            self._target_connected.labels(target).set(0)
            self._target_unreachable.labels(target).set(0)
            self._target_transfer.labels(target).set(1)
            self._resync_suggested.labels(target).set(0)
            self._unequal_buckets.labels(target).set(0)
            self._target_changes.labels(target)
            self._target_failures.labels(target)
        self._lag.set_function(lambda: max((lag() for lag in targets.values()), default=0.0))

    def forwarded(self, target: str) -> None:
        """A request was handed to another node."""
        self._forwarded.labels(target).inc()

    def node_health(self, target: str, level: int) -> None:
        """How another node is: 2 healthy, 1 degraded, 0 unreachable."""
        self._node_health.labels(target).set(level)

    def wrote(self) -> None:
        """A write request was accepted."""
        self._writes.inc()

    def merged(self, transactions: int, *, local: int, remote: int) -> None:
        """Transactions were merged, with conflicts won by what was here, and by what came."""
        self._merged.inc(transactions)
        self._conflicts.inc(local + remote)
        self._resolved_local.inc(local)
        self._resolved_remote.inc(remote)

    def attempted(self) -> None:
        """A session was begun or a batch was sent."""
        self._attempts.inc()

    def sent(self, changes: int) -> None:
        """A batch was sent."""
        self._attempts.inc()
        self._batch_size.observe(changes)

    def acknowledged(self, target: str, changes: int, duration_s: float) -> None:
        """A target has a batch in its Redis."""
        self._changes.inc(changes)
        self._target_changes.labels(target).inc(changes)
        self._duration.observe(duration_s)

    def failed(self, target: str) -> None:
        """An attempt with a target failed."""
        self._failures.inc()
        self._target_failures.labels(target).inc()

    def connected(self, target: str, is_connected: bool) -> None:
        """A session with a target began or ended."""
        gauge = self._target_connected.labels(target)
        self._connected.inc(int(is_connected) - gauge._value.get())
        gauge.set(int(is_connected))

    def transferring(self, target: str, ratio: float) -> None:
        """A state transfer to a target has come so far; 1 at its end."""
        self._target_transfer.labels(target).set(ratio)

    def unsettled(self, tuples: int, held_by: str | None) -> None:
        """How many tuples wait for collection, and the node they wait for."""
        self._unsettled.set(tuples)
        self._holds_back.clear()
        if tuples and held_by is not None:
            self._holds_back.labels(held_by).set(1)

    def parked(self, transactions: int) -> None:
        """So many transactions wait, one of each origin that is held up."""
        self._parked.set(transactions)

    def unreachable(self, target: str, is_unreachable: bool) -> None:
        """A target has, or has no longer, refused or missed `max_retries` attempts in a row."""
        self._target_unreachable.labels(target).set(int(is_unreachable))

    def trimmed(self, transactions: int, *, left: int) -> None:
        """So many transactions were taken off the feed, and so many are left in it."""
        self._feed_trimmed.inc(transactions)
        self._feed_entries.set(left)

    def resync_suggested(self, target: str, is_suggested: bool) -> None:
        """The feed was trimmed past what a target has acknowledged, or it is beyond that again."""
        self._resync_suggested.labels(target).set(int(is_suggested))

    def unequal_buckets(self, target: str, buckets: int) -> None:
        """In so many buckets this node and a target with the same writes differ."""
        self._unequal_buckets.labels(target).set(buckets)

    def damaged_buckets(self, buckets: int) -> None:
        """So many buckets here were changed by somebody else than this node's own scripts."""
        self._damaged_buckets.set(buckets)

    def epoch(self, number: int) -> None:
        """The primary is that of this promotion."""
        self._epoch.set(number)

    def store_full(self, is_full: bool) -> None:
        """Redis has, or has no longer, too little memory left for writes of applications."""
        self._store_full.set(int(is_full))

    def value(self, name: str) -> float:
        """What a metric without labels says now, by its name at /metrics."""
        found = self._registry.get_sample_value(name)
        if found is None:
            raise Broken(f"there is no metric {name}")
        return found

    def render(self) -> bytes:
        """The text format 0.0.4, whatever the client would accept."""
        return generate_latest(self._registry)
