"""What an operator does on the admin listener: look, accept a loss, drop what is parked, promote.

Owns the paths, what they answer, and that each deliberate step is logged. What the steps do is
decided by `Peers` and in Redis.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from aiohttp import web

from sidecar.admin.calls import add_routes
from sidecar.agent.primacy import Primacy
from sidecar.agent.probe import Probes
from sidecar.agent.ship import Shipping, Target
from sidecar.api.answers import Answers, Route, compact
from sidecar.core.relationship import BUCKETS
from sidecar.core.topology import Node
from sidecar.core.vector import node_of
from sidecar.core.wire import encode_vector
from sidecar.errors import Refused
from sidecar.health import RELEASE
from sidecar.partition import Partition
from sidecar.store.calls import Phase
from sidecar.store.redis_store import RedisStore

log = logging.getLogger(__name__)

STATUS: Final = "/status"
ACCEPT_LOSS: Final = "/accept-loss"
PARKED: Final = "/parked"
DROP: Final = "/parked/drop"
PROMOTE: Final = "/promote"

MAX_BODY_BYTES = 4096
MAX_TIMESTAMP_DIGITS = 16

_STORED = ("feed_length", "unsettled", "parked")
_PARKED = ("timestamp", "previous", "reason", "since")


class Operations:
    """The calls about the state of one node, and those that change what it waits for.

    partitions: those of the node, that of everywhere first. database: how the one behind the node
    does; None where there is none.
    """

    def __init__(
        self,
        node: Node,
        partitions: Iterable[Partition],
        answers: Answers,
        *,
        primacy: Primacy,
        promote: Route,
        probes: Probes,
        database: Callable[[], Awaitable[dict[str, object] | None]],
    ) -> None:
        self._node, self._partitions, self._answers = node, tuple(partitions), answers
        self._primacy, self._promote, self._probes = primacy, promote, probes
        self._database = database

    def add_to(self, app: web.Application) -> None:
        """Add the routes, with JSON also for what aiohttp would answer in plain text."""
        routes: tuple[tuple[str, str, Route], ...] = (
            ("GET", STATUS, self._status),
            ("POST", ACCEPT_LOSS, self._accept_loss),
            ("GET", PARKED, self._list_parked),
            ("POST", DROP, self._drop),
            ("POST", PROMOTE, self._promote),
        )
        add_routes(app, self._answers, routes)

    # -- looking ----------------------------------------------------------------------------------

    async def _status(self, _: web.Request) -> web.Response:
        """All of it in one answer; what only Redis knows is null while it is away.

        At the top the partition of everywhere, under `partitions` the others in the same shape.
        """
        everywhere, *others = self._partitions
        shown = {
            "node": str(self._node.id),
            "region": str(self._node.region),
            "release": RELEASE,
            **await _status_of(everywhere),
            "primary": self._primacy.region,
            "epoch": self._primacy.epoch and self._primacy.epoch.to_json(),
            "health": self._probes.seen(),
            "database": await self._database(),
            "partitions": {
                one.name: {"regions": one.regions, **await _status_of(one)} for one in others
            },
        }
        return self._answers.json(compact(shown))

    async def _list_parked(self, _: web.Request) -> web.Response:
        """The transactions that wait, one of each origin; those of bound tenants say which."""
        rows = [
            row if one.regions is None else {**row, "partition": one.name}
            for one in self._partitions
            for row in parked_rows(await one.store.parked())
        ]
        return self._answers.json(compact({"parked": rows}))

    # -- deliberate steps -------------------------------------------------------------------------

    async def _accept_loss(self, request: web.Request) -> web.Response:
        """Go on without what a partition lacks; 409 where nothing is missing.

        `?partition=` names it, and may be left out while no other one lacks anything.
        """
        one = self._lacking(request.query.get("partition"))
        await one.peers.accept_loss()
        accepted = {
            "node": str(self._node.id),
            "partition": one.name,
            "phase": one.store.phase.value,
        }
        return self._answers.json(compact(accepted))

    def _lacking(self, name: str | None) -> Partition:
        by_name = {one.name: one for one in self._partitions}
        if name is not None:
            if name not in by_name:
                known = ", ".join(by_name)
                raise Refused(
                    "no_such_partition", f"there is no partition {name[:80]!r} here; {known}"
                )
            return by_name[name]
        behind = [one for one in self._partitions if one.store.phase is Phase.BEHIND]
        if len(behind) > 1:
            listed = ", ".join(one.name for one in behind)
            raise Refused(
                "several_behind",
                f"{listed} are behind, and each has lost something else: name one with partition",
                409,
            )
        return behind[0] if behind else self._partitions[0]

    async def _drop(self, request: web.Request) -> web.Response:
        """Apply a parked transaction as an empty one; 409 where this one is not parked."""
        origin, timestamp = await _named(request)
        # Origins are never the same in two partitions.
        dropped = [await one.store.drop(origin, int(timestamp)) for one in self._partitions]
        if not any(dropped):
            raise Refused(
                "not_parked",
                f"no transaction of {origin[:80]} with timestamp {timestamp} is parked here; GET "
                f"{PARKED} lists what is",
                409,
            )
        log.warning(
            "the operator dropped a parked transaction: this node differs from those that have it",
            extra={"origin": origin, "timestamp": timestamp},
        )
        return self._answers.json(compact({"dropped": {"origin": origin, "timestamp": timestamp}}))


async def _status_of(one: Partition) -> dict[str, object]:
    store, peers, shipping = one.store, one.peers, one.shipping
    stability = peers.stability
    stored = await _stored(store) if store.is_open else dict.fromkeys(_STORED)
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
        "targets": {target.node: _told_of(shipping, target) for target in shipping.targets},
    }


def _change(one: Partition) -> list[str] | None:
    """The nodes whose states a change of the conflict rules waits for; None: there is none."""
    joined = one.store.joined
    if joined is None:
        return None
    return [node for node in one.peers.rows.members if node not in joined]


async def _stored(store: RedisStore) -> dict[str, Any]:
    return {
        "feed_length": await store.feed_length(),
        "unsettled": await store.unsettled(),
        "parked": parked_rows(await store.parked()),
    }


def _transfer_in(store: RedisStore) -> dict[str, object] | None:
    if not store.progress:
        return None
    begun = json.loads(store.progress)
    return {"source": node_of(begun["source"]), "buckets": begun["next"], "of": BUCKETS}


def _told_of(shipping: Shipping, target: Target) -> dict[str, object]:
    return {
        "connected": target.is_connected,
        "unreachable": target.is_unreachable,
        "paused": target.is_paused,
        "acknowledged": str(target.acknowledged),
        "lag_ms": round(shipping.lag_ms(target), 1),
        "last_error": target.last_error or None,
    }


def parked_rows(parked: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """One object per origin, sorted; timestamps and `since` in microseconds since 1970."""
    return [
        {"origin": origin, **{name: parked[origin][name] for name in _PARKED}}
        for origin in sorted(parked)
    ]


async def _named(request: web.Request) -> tuple[str, str]:
    """Origin and timestamp of the body `{"origin", "timestamp"}`."""
    wrong = Refused(
        "invalid_request",
        'the body is {"origin": "…", "timestamp": "…"}, both as GET /parked shows them',
    )
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise wrong
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise wrong from None
    if not isinstance(body, dict) or body.keys() != {"origin", "timestamp"}:
        raise wrong
    origin, timestamp = body["origin"], body["timestamp"]
    if not isinstance(origin, str) or not isinstance(timestamp, str):
        raise wrong
    if not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > MAX_TIMESTAMP_DIGITS:
        raise wrong
    return origin, timestamp
