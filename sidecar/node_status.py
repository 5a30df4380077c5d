"""What a node says of itself: `GET /status` on its admin listener, and to other nodes.

Owns the shape of the answer, and what of it may leave the region: text that comes from stored data
or from a database stays here, for it may name the tenants of restricted partitions.
"""

import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from sidecar.agent.backlog import Waiting
from sidecar.agent.probe import Probes
from sidecar.agent.ship import Shipping, Target
from sidecar.core.relationship import BUCKETS, format_expires_at
from sidecar.core.topology import Node
from sidecar.core.vector import node_of
from sidecar.core.wire import encode_vector
from sidecar.errors import Unavailable
from sidecar.health import RELEASE, Health
from sidecar.metrics import Metrics
from sidecar.partition import Partition
from sidecar.store.redis_store import RedisStore

JsonObject = dict[str, Any]

PATH: Final = "/peer/v1/status"

_STORED = ("feed_length", "unsettled", "parked")
_PARKED = ("timestamp", "previous", "reason", "since")
_WITHHELD = "the admin listener of that node says why"


class NodeStatus:
    """What one node says of itself.

    partitions: those of the node, that of everywhere first. database: how the one behind the node
    does; None where there is none. feed_limit: entries of a feed, beyond which the oldest go.
    """

    def __init__(
        self,
        node: Node,
        partitions: Iterable[Partition],
        *,
        health: Health,
        metrics: Metrics,
        probes: Probes,
        database: Callable[[], Awaitable[JsonObject | None]],
        feed_limit: int,
    ) -> None:
        self._node, self._partitions = node, tuple(partitions)
        self._health, self._metrics = health, metrics
        self._probes, self._database = probes, database
        self._feed_limit = feed_limit
        self._started_us, self._started_s = time.time_ns() // 1000, time.monotonic()

    async def tell(self) -> JsonObject:
        """All of it; what only Redis knows is null while it is away.

        At the top the partition of everywhere, under `partitions` the others in the same shape.
        """
        everywhere, *others = self._partitions
        primacy = everywhere.primacy
        _, health = self._health.check()
        not_ready = self._health.not_ready_because()
        return {
            "node": str(self._node.id),
            "region": str(self._node.region),
            "zone": str(self._node.zone),
            "release": RELEASE,
            "started_at": format_expires_at(self._started_us),
            "uptime_s": round(time.monotonic() - self._started_s, 1),
            "status": health["status"],
            "reasons": health["reasons"],
            "is_ready": not not_ready,
            "not_ready_because": not_ready,
            "counts": self._metrics.counts(),
            "feed_limit": self._feed_limit,
            **await _status_of(everywhere),
            "primary": primacy.region,
            "epoch": primacy.epoch and primacy.epoch.to_json(),
            "health": self._probes.seen(),
            "database": await self._database(),
            "partitions": {
                one.name: {"regions": one.regions, **await _status_of(one)} for one in others
            },
        }

    async def tell_nodes(self) -> JsonObject:
        """What nodes of other regions may know, too: no text that may name what is stored."""
        shown = await self.tell()
        database = shown["database"]
        restricted = {name: _withheld(one) for name, one in shown["partitions"].items()}
        shown["parked"] = _without_reasons(shown["parked"])
        for words in ("reasons", "not_ready_because"):
            shown[words] = self._health.withheld(shown[words])
        if database is not None:
            hidden = {"away_because", "failing_because"}
            shown["database"] = {
                word: _WITHHELD if word in hidden and value else value
                for word, value in database.items()
            }
        return shown | {"partitions": restricted}


def _withheld(one: JsonObject) -> JsonObject:
    """What a restricted partition tells everywhere: numbers, names of nodes, no sentences."""
    return one | {
        "parked": _without_reasons(one["parked"]),
        "targets": {
            node: target | {"last_error": target["last_error"] and _WITHHELD}
            for node, target in one["targets"].items()
        },
    }


def _without_reasons(parked: list[JsonObject] | None) -> list[JsonObject] | None:
    return None if parked is None else [row | {"reason": _WITHHELD} for row in parked]


async def _status_of(one: Partition) -> JsonObject:
    store, peers, shipping = one.store, one.peers, one.shipping
    stability = peers.stability
    stored: JsonObject = dict.fromkeys(_STORED)
    waiting: dict[str, Waiting] = {}
    if store.is_open:
        try:
            waiting = {target.node: await one.backlog.of(target) for target in shipping.targets}
            stored = await _stored(store)
        except Unavailable:
            pass  # it has just gone away
    return {
        "phase": store.phase.value,
        "serves_not_because": store.serves_not_because or None,
        "takes_no_writes_because": (store.takes_no_writes_because or store.full_because or None),
        "origin": store.origin,
        "behind": encode_vector(store.behind),
        "revision": str(store.revision),
        "vector": encode_vector(store.vector),
        "durable": encode_vector(store.durable),
        "floor": encode_vector(store.floor),
        "trimmed": str(store.trimmed),
        **stored,
        "collection": {
            "stable": None if stability.vector is None else encode_vector(stability.vector),
            "held_by": stability.held_by,
        },
        "rules": {"fingerprint": store.rules.fingerprint, "change_waits_for": _change(one)},
        "members": list(peers.rows.members),
        "removed": dict(peers.removed),
        "rows": {node: encode_vector(row) for node, row in peers.rows.known.items()},
        "ended": encode_vector(peers.rows.ended),
        "transfer_in": _transfer_in(store),
        "transfers_out": {
            target.node: {"buckets": target.buckets_sent, "of": BUCKETS}
            for target in shipping.targets
            if target.buckets_sent is not None
        },
        "targets": {
            target.node: _told_of(shipping, target, waiting.get(target.node))
            for target in shipping.targets
        },
    }


def _change(one: Partition) -> list[str] | None:
    """The nodes whose states a change of the conflict rules waits for; None: there is none."""
    joined = one.store.joined
    if joined is None:
        return None
    return [node for node in one.peers.rows.members if node not in joined]


async def _stored(store: RedisStore) -> JsonObject:
    return {
        "feed_length": await store.feed_length(),
        "unsettled": await store.unsettled(),
        "parked": parked_rows(await store.parked()),
    }


def _transfer_in(store: RedisStore) -> JsonObject | None:
    if not store.progress:
        return None
    begun = json.loads(store.progress)
    return {"source": node_of(begun["source"]), "buckets": begun["next"], "of": BUCKETS}


def _told_of(shipping: Shipping, target: Target, waiting: Waiting | None) -> JsonObject:
    silent_ms = shipping.silent_ms(target)
    return {
        "connected": target.is_connected,
        "unreachable": target.is_unreachable,
        "paused": target.is_paused,
        "acknowledged": str(target.acknowledged),
        "cursor": str(target.cursor),
        "heard_ms_ago": None if silent_ms is None else round(silent_ms),
        "lag_ms": round(shipping.lag_ms(target), 1),
        "lag_transactions": None if waiting is None else waiting.transactions,
        "backlog": None if waiting is None else waiting.entries,
        "backlog_is_estimate": waiting is not None and waiting.is_estimate,
        "in_flight": 0 if target.sender is None else target.sender.in_flight,
        "window": shipping.window,
        "last_error": target.last_error or None,
    }


def parked_rows(parked: Mapping[str, Mapping[str, str]]) -> list[JsonObject]:
    """One object per origin, sorted; timestamps and `since` in microseconds since 1970."""
    return [
        {"origin": origin, **{name: parked[origin][name] for name in _PARKED}}
        for origin in sorted(parked)
    ]
