"""What an operator does on the admin listener: look, accept a loss, drop what is parked, promote.

Owns the paths, what they answer, and that each deliberate step is logged. What the steps do is
decided by `Peers` and in Redis.
"""

import json
import logging
from typing import Any, Final

from aiohttp import hdrs, web

from sidecar.agent.peers import Peers
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
    """The calls about the state of one node, and those that change what it waits for."""

    def __init__(
        self,
        node: Node,
        store: RedisStore,
        peers: Peers,
        shipping: Shipping,
        answers: Answers,
        *,
        primacy: Primacy,
        promote: Route,
        probes: Probes,
    ) -> None:
        self._node, self._store, self._peers = node, store, peers
        self._shipping, self._answers, self._probes = shipping, answers, probes
        self._primacy, self._promote = primacy, promote

    def add_to(self, app: web.Application) -> None:
        """Add the routes, with JSON also for what aiohttp would answer in plain text."""
        routes: tuple[tuple[str, str, Route], ...] = (
            ("GET", STATUS, self._status),
            ("POST", ACCEPT_LOSS, self._accept_loss),
            ("GET", PARKED, self._list_parked),
            ("POST", DROP, self._drop),
            ("POST", PROMOTE, self._promote),
        )
        for method, path, route in routes:
            guarded = self._answers.guarded(route)
            if method == "GET":
                app.router.add_get(path, guarded)  # and HEAD
            else:
                app.router.add_post(path, guarded)
            refuse = self._refuse_method(path, "GET, HEAD" if method == "GET" else method)
            app.router.add_route(hdrs.METH_ANY, path, self._answers.guarded(refuse))

    # -- looking ----------------------------------------------------------------------------------

    async def _status(self, _: web.Request) -> web.Response:
        """All of it in one answer; what only Redis knows is null while it is away."""
        store, peers = self._store, self._peers
        stability = peers.stability
        stored = await self._stored() if store.is_open else dict.fromkeys(_STORED)
        shown = {
            "node": str(self._node.id),
            "region": str(self._node.region),
            "release": RELEASE,
            "phase": store.phase.value,
            "serves_not_because": store.serves_not_because or None,
            "takes_no_writes_because": (
                store.takes_no_writes_because or store.full_because or None
            ),
            "primary": self._primacy.region,
            "epoch": self._primacy.epoch and self._primacy.epoch.to_json(),
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
            "rules": {"fingerprint": store.rules.fingerprint, "change_waits_for": self._change()},
            "members": list(peers.rows.members),
            "removed": dict(peers.removed),
            "rows": {node: encode_vector(row) for node, row in peers.rows.known.items()},
            "ended": encode_vector(peers.rows.ended),
            "health": self._probes.seen(),
            "transfer_in": self._transfer_in(),
            "transfers_out": {
                target.node: {"buckets": target.buckets_sent, "of": BUCKETS}
                for target in self._shipping.targets
                if target.buckets_sent is not None
            },
            "targets": {target.node: self._told_of(target) for target in self._shipping.targets},
        }
        return self._answers.json(compact(shown))

    async def _stored(self) -> dict[str, Any]:
        store = self._store
        return {
            "feed_length": await store.feed_length(),
            "unsettled": await store.unsettled(),
            "parked": parked_rows(await store.parked()),
        }

    def _change(self) -> list[str] | None:
        """The nodes whose states a change of the conflict rules waits for; None: there is none."""
        joined = self._store.joined
        if joined is None:
            return None
        return [node for node in self._peers.rows.members if node not in joined]

    def _transfer_in(self) -> dict[str, object] | None:
        if not self._store.progress:
            return None
        begun = json.loads(self._store.progress)
        return {"source": node_of(begun["source"]), "buckets": begun["next"], "of": BUCKETS}

    def _told_of(self, target: Target) -> dict[str, object]:
        return {
            "connected": target.is_connected,
            "unreachable": target.is_unreachable,
            "acknowledged": str(target.acknowledged),
            "lag_ms": round(self._shipping.lag_ms(target), 1),
            "last_error": target.last_error or None,
        }

    async def _list_parked(self, _: web.Request) -> web.Response:
        """The transactions that wait, one of each origin."""
        return self._answers.json(compact({"parked": parked_rows(await self._store.parked())}))

    # -- deliberate steps -------------------------------------------------------------------------

    async def _accept_loss(self, _: web.Request) -> web.Response:
        """Go on without what this node lacks; 409 where nothing is missing."""
        await self._peers.accept_loss()
        accepted = {"node": str(self._node.id), "phase": self._store.phase.value}
        return self._answers.json(compact(accepted))

    async def _drop(self, request: web.Request) -> web.Response:
        """Apply a parked transaction as an empty one; 409 where this one is not parked."""
        origin, timestamp = await _named(request)
        if not await self._store.drop(origin, int(timestamp)):
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

    def _refuse_method(self, path: str, allowed: str) -> Route:
        async def route(request: web.Request) -> web.Response:
            message = f"{path} takes {allowed}, not {request.method}"
            return self._answers.http(405, message, {"Allow": allowed})

        return route


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
