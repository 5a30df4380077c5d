"""Metrics as an interface of domain events; nothing but this and `gauges` sees Prometheus.

The ten names of the seed carry no labels; what belongs to one target has a name of its own.
"""

import contextlib
import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Self

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from sidecar.core.residency import GLOBAL
from sidecar.errors import Broken
from sidecar.gauges import ComeTo, Shared

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

# A series of its own for when each series began helps nobody here.
disable_created_metrics()  # type: ignore[no-untyped-call]

_BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
_DURATION_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0),
)


class Metrics:
    """Counts what happens on this node. Each instance has a registry of its own.

    What partitions have in common is counted together; a target is connected when all of its
    sessions are. `of` gives each of them the object it tells its part to.
    """

    def __init__(self) -> None:
        self._partition = GLOBAL
        self._lags: dict[str, dict[str, Callable[[], float]]] = {}
        self._held_by: dict[str, str | None] = {}
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        def shared(come_to: ComeTo, name: str, text: str, *labels: str) -> Shared:
            return Shared(gauge(name, text, *labels), come_to)

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
        self._applied = counter(
            "inferadb_sidecar_database_applied_tuples_total",
            "Tuples that the database behind this node was told of, proxy mode",
        )
        self._dirty = shared(
            sum,
            "inferadb_sidecar_database_pending_tuples",
            "Tuples that were merged and that the database behind this node does not have yet",
        )
        self._held = shared(
            sum,
            "inferadb_sidecar_database_held_tuples",
            "Tuples that the database behind this node refuses",
        )
        self._intents = shared(
            sum,
            "inferadb_sidecar_database_unknown_outcomes",
            "Writes of which it is being found out whether the database has carried them out",
        )
        self._database_up = gauge(
            "inferadb_sidecar_database_up",
            "1 while the database behind this node answers; NaN where there is none",
        )
        # A 0 would be an alarm where there is nothing that could be up.
        self._database_up.set(math.nan)
        self._ready = gauge(
            "inferadb_sidecar_ready", "1 while this node is ready to serve reads and writes"
        )
        self._clock_ahead = shared(
            partial(max, key=abs, default=0.0),
            "inferadb_sidecar_clock_ahead_seconds",
            "How far the clock here is ahead of those of the other nodes, their median",
        )
        self._feed_entries = shared(
            sum, "inferadb_sidecar_feed_entries", "Transactions in the feed of this node"
        )
        self._feed_most = shared(
            sum,
            "inferadb_sidecar_feed_max_entries",
            "Transactions that the feed may hold before those go that a target still needs",
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
        self._resync_suggested = shared(
            max,
            "inferadb_replication_resync_suggested",
            "1 while the feed no longer has what this target needs next",
            "target",
        )
        self._target_lag = gauge(
            "inferadb_replication_target_lag_milliseconds",
            "Age of the oldest transaction that this target has not acknowledged",
            "target",
        )
        self._target_connected = shared(
            min,
            "inferadb_replication_target_connected",
            "1 while a session with this target stands",
            "target",
        )
        self._target_unreachable = shared(
            max,
            "inferadb_replication_target_unreachable",
            "1 after max_retries failed attempts in a row to reach this target",
            "target",
        )
        self._target_transfer = shared(
            min,
            "inferadb_replication_target_transfer_ratio",
            "How much of a state transfer to this target is done, 0 to 1; 1 when there is none",
            "target",
        )
        self._unsettled = shared(
            sum,
            "inferadb_sidecar_unsettled_tuples",
            "Tuples kept for what not every node has seen yet: deleted ones and conflicts",
        )
        self._unsettled_age = shared(
            max,
            "inferadb_sidecar_unsettled_oldest_seconds",
            "Age of the oldest write that is kept for what not every node has seen yet",
        )
        self._parked = shared(
            sum,
            "inferadb_sidecar_parked_transactions",
            "Transactions received and not yet applied; what follows of their origins waits, too",
        )
        self._holds_back = gauge(
            "inferadb_sidecar_collection_held_by",
            "1 for the node that holds back collection, while anything waits for it",
            "node",
        )
        self._unequal_buckets = shared(
            sum,
            "inferadb_sidecar_digest_unequal_buckets",
            "Buckets in which this target stores something else although it has the same writes",
            "target",
        )
        self._damaged_buckets = shared(
            sum,
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
        self._target_attempts = Counter(
            "inferadb_replication_target_attempts_total",
            "Attempts with this target: sessions begun and batches sent",
            ("target",),
            registry=registry,
        )
        self._target_failures = Counter(
            "inferadb_replication_target_failures_total",
            "Failed attempts with this target",
            ("target",),
            registry=registry,
        )

    def of(self, partition: str) -> Self:
        """What a partition tells its part to; the registry is that of the node."""
        part = copy.copy(self)
        part._partition = partition
        return part

    def has_targets(self, targets: dict[str, Callable[[], float]]) -> None:
        """The targets of a partition: each with a function that tells its lag in milliseconds.

        Asked again when they have changed: the series of those that went end.
        """
        here = self._partition
        for target in [t for t, lags in self._lags.items() if here in lags and t not in targets]:
            self._forget_target(target)
        for target, lag_ms in targets.items():
            lags = self._lags.setdefault(target, {})
            is_known = here in lags
            lags[here] = lag_ms
            if is_known:
                continue
            self._target_lag.labels(target).set_function(partial(self._lag_of, target))
            self._target_connected.tell(here, 0, target)
            self._target_unreachable.tell(here, 0, target)
            self._target_transfer.tell(here, 1, target)
            self._resync_suggested.tell(here, 0, target)
            self._unequal_buckets.tell(here, 0, target)
            self._target_changes.labels(target)
            self._target_attempts.labels(target)
            self._target_failures.labels(target)
        self._targets.set(len(self._lags))
        self._connected.set(self._target_connected.total)
        self._lag.set_function(lambda: max(map(self._lag_of, self._lags), default=0.0))

    def _forget_target(self, target: str) -> None:
        for shared in (
            self._target_connected,
            self._target_unreachable,
            self._target_transfer,
            self._resync_suggested,
            self._unequal_buckets,
        ):
            shared.forget(self._partition, target)
        del self._lags[target][self._partition]
        if not self._lags[target]:
            del self._lags[target]
            for series in (
                self._target_lag,
                self._target_changes,
                self._target_attempts,
                self._target_failures,
            ):
                series.remove(target)

    def forget_node(self, node: str) -> None:
        """A node has left the topology: what is told of it alone ends."""
        for series in (self._node_health, self._forwarded):
            with contextlib.suppress(KeyError):
                series.remove(node)

    def _lag_of(self, target: str) -> float:
        return max(lag_ms() for lag_ms in self._lags[target].values())

    def forwarded(self, target: str) -> None:
        """A request was handed to another node."""
        self._forwarded.labels(target).inc()

    def node_health(self, target: str, level: int) -> None:
        """How another node is: 2 healthy, 1 degraded, 0 unreachable."""
        self._node_health.labels(target).set(level)

    def wrote(self) -> None:
        """A write request was accepted."""
        self._writes.inc()

    def applied(self, tuples: int) -> None:
        """The database behind this node was told of tuples."""
        self._applied.inc(tuples)

    def database(self, *, dirty: int, held: int, unsettled: int, is_up: bool) -> None:
        """How the database behind this node is, and what it does not have yet."""
        self._dirty.tell(self._partition, dirty)
        self._held.tell(self._partition, held)
        self._intents.tell(self._partition, unsettled)
        self._database_up.set(int(is_up))

    def merged(self, transactions: int, *, local: int, remote: int) -> None:
        """Transactions were merged, with conflicts won by what was here, and by what came."""
        self._merged.inc(transactions)
        self._conflicts.inc(local + remote)
        self._resolved_local.inc(local)
        self._resolved_remote.inc(remote)

    def attempted(self, target: str) -> None:
        """A session with a target was begun."""
        self._attempts.inc()
        self._target_attempts.labels(target).inc()

    def sent(self, target: str, changes: int) -> None:
        """A batch was sent to a target."""
        self.attempted(target)
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
        self._target_connected.tell(self._partition, int(is_connected), target)
        self._connected.set(self._target_connected.total)

    def transferring(self, target: str, ratio: float) -> None:
        """A state transfer to a target has come so far; 1 at its end."""
        self._target_transfer.tell(self._partition, ratio, target)

    def is_ready_when(self, is_ready: Callable[[], bool]) -> None:
        """Who tells whether this node is ready, each time it is asked."""
        self._ready.set_function(lambda: float(is_ready()))

    def clock_ahead(self, seconds: float) -> None:
        """The clock here is so far ahead of those of the others; below 0 it is behind."""
        self._clock_ahead.tell(self._partition, seconds)

    def unsettled(self, tuples: int, held_by: str | None, oldest_s: float) -> None:
        """How many tuples wait for collection, how old the oldest is, the node they wait for."""
        self._unsettled.tell(self._partition, tuples)
        self._unsettled_age.tell(self._partition, oldest_s)
        self._held_by[self._partition] = held_by if tuples else None
        self._holds_back.clear()
        for node in filter(None, self._held_by.values()):
            self._holds_back.labels(node).set(1)

    def parked(self, transactions: int) -> None:
        """So many transactions wait, one of each origin that is held up."""
        self._parked.tell(self._partition, transactions)

    def unreachable(self, target: str, is_unreachable: bool) -> None:
        """A target has, or has no longer, refused or missed `max_retries` attempts in a row."""
        self._target_unreachable.tell(self._partition, int(is_unreachable), target)

    def trimmed(self, transactions: int, *, left: int) -> None:
        """So many transactions were taken off the feed, and so many are left in it."""
        self._feed_trimmed.inc(transactions)
        self._feed_entries.tell(self._partition, left)

    def feed_holds(self, most: int) -> None:
        """So many transactions may be in the feed before those go that a target still needs."""
        self._feed_most.tell(self._partition, most)

    def resync_suggested(self, target: str, is_suggested: bool) -> None:
        """The feed was trimmed past what a target has acknowledged, or it is beyond that again."""
        self._resync_suggested.tell(self._partition, int(is_suggested), target)

    def unequal_buckets(self, target: str, buckets: int) -> None:
        """In so many buckets this node and a target with the same writes differ."""
        self._unequal_buckets.tell(self._partition, buckets, target)

    def damaged_buckets(self, buckets: int) -> None:
        """So many buckets here were changed by somebody else than this node's own scripts."""
        self._damaged_buckets.tell(self._partition, buckets)

    def epoch(self, number: int) -> None:
        """The primary is that of this promotion."""
        self._epoch.set(number)

    def store_full(self, is_full: bool) -> None:
        """Redis has, or has no longer, too little memory left for writes of applications."""
        self._store_full.set(int(is_full))

    def counts(self) -> dict[str, int]:
        """What has happened since the start, for rates. Asked often: only these are read."""
        counted: dict[str, Counter | Gauge] = {
            "writes": self._writes,
            "merged": self._merged,
            "changes_shipped": self._changes,
            "attempts": self._attempts,
            "failures": self._failures,
            "conflicts": self._conflicts,
            "conflicts_resolved_local": self._resolved_local,
            "conflicts_resolved_remote": self._resolved_remote,
        }
        return {word: int(_value_of(one)) for word, one in counted.items()}

    def lags(self) -> dict[str, float]:
        """The lag of each target, in milliseconds."""
        return {target: self._lag_of(target) for target in self._lags}

    def value(self, name: str) -> float:
        """What a metric without labels says now, by its name at /metrics."""
        found = self._registry.get_sample_value(name)
        if found is None:
            raise Broken(f"there is no metric {name}")
        return found

    def render(self) -> bytes:
        """The text format 0.0.4, whatever the client would accept."""
        return generate_latest(self._registry)


def _value_of(metric: Counter | Gauge) -> float:
    """What one without labels says."""
    (family,) = metric.collect()
    return float(family.samples[0].value)
