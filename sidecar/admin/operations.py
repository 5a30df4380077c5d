"""What an operator does on the admin listener: look, accept a loss, promote, see to what waits.

Owns the paths, what they answer, and that each deliberate step is logged. What the steps do is
decided by `Peers` and in Redis.
"""

import asyncio
import json
import logging
import time
from collections.abc import Iterable
from typing import Final

from aiohttp import web

from sidecar.admin.calls import add_routes
from sidecar.api.answers import Answers, Route, compact
from sidecar.core.topology import Node
from sidecar.errors import Refused
from sidecar.node_status import NodeStatus, parked_rows
from sidecar.partition import Partition
from sidecar.store.calls import Phase
from sidecar.store.redis_store import RedisStore

log = logging.getLogger(__name__)

STATUS: Final = "/status"
ACCEPT_LOSS: Final = "/accept-loss"
PARKED: Final = "/parked"
RELEASE: Final = "/parked/release"
DROP: Final = "/parked/drop"
PROMOTE: Final = "/promote"

RETRY_S = 3.0
"""So long a node that has what is parked may take to send it again; it does so each second."""
LOOK_S = 0.05

MAX_BODY_BYTES = 4096
MAX_TIMESTAMP_DIGITS = 16


class Operations:
    """The calls about the state of one node, and those that change what it waits for.

    partitions: those of the node, that of everywhere first.
    """

    def __init__(
        self,
        node: Node,
        partitions: Iterable[Partition],
        answers: Answers,
        *,
        status: NodeStatus,
        promote: Route,
    ) -> None:
        self._node, self._partitions, self._answers = node, tuple(partitions), answers
        self._told, self._promote = status, promote

    def add_to(self, app: web.Application) -> None:
        """Add the routes, with JSON also for what aiohttp would answer in plain text."""
        routes: tuple[tuple[str, str, Route], ...] = (
            ("GET", STATUS, self._status),
            ("POST", ACCEPT_LOSS, self._accept_loss),
            ("GET", PARKED, self._list_parked),
            ("POST", RELEASE, self._release),
            ("POST", DROP, self._drop),
            ("POST", PROMOTE, self._promote),
        )
        add_routes(app, self._answers, routes)

    # -- looking ----------------------------------------------------------------------------------

    async def _status(self, _: web.Request) -> web.Response:
        return self._answers.json(compact(await self._told.tell()))

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

    async def _release(self, request: web.Request) -> web.Response:
        """Wait until a parked transaction was tried again, and say what has become of it.

        Whoever has it sends it each second, so there is nothing to set in motion; and nothing is
        let in by force. One that is ahead of the clock would take the clock of this node along,
        and what is written here then would be parked everywhere else.
        """
        origin, timestamp = await _named(request)
        store = await self._parking(origin, timestamp)
        named = {"origin": origin, "timestamp": timestamp}
        log.info("the operator has a parked transaction tried again", extra=named)
        tries, until = store.tries_of(origin), time.monotonic() + RETRY_S
        while store.vector.get(origin, 0) < int(timestamp):
            reason = (await store.parked()).get(origin, {}).get("reason", "it is not told why")
            if store.tries_of(origin) > tries:
                raise Refused("still_parked", f"it was tried again, and waits: {reason}", 409)
            if time.monotonic() > until:
                raise Refused(
                    "not_sent_again",
                    f"no node has sent it again within {RETRY_S:.0f} s: no node that has it has a "
                    f"session with this one. It waits because: {reason}",
                    409,
                )
            await asyncio.sleep(LOOK_S)
        log.info("a parked transaction is applied", extra=named)
        return self._answers.json(compact({"released": named}))

    async def _parking(self, origin: str, timestamp: str) -> RedisStore:
        """Where it is parked. Raises Refused("not_parked")."""
        # Origins are never the same in two partitions.
        for one in self._partitions:
            found = (await one.store.parked()).get(origin)
            if found is not None and found["timestamp"] == timestamp:
                return one.store
        raise _not_parked(origin, timestamp)

    async def _drop(self, request: web.Request) -> web.Response:
        """Apply a parked transaction as an empty one; 409 where this one is not parked."""
        origin, timestamp = await _named(request)
        # Origins are never the same in two partitions.
        dropped = [await one.store.drop(origin, int(timestamp)) for one in self._partitions]
        if not any(dropped):
            raise _not_parked(origin, timestamp)
        log.warning(
            "the operator dropped a parked transaction: this node differs from those that have it",
            extra={"origin": origin, "timestamp": timestamp},
        )
        return self._answers.json(compact({"dropped": {"origin": origin, "timestamp": timestamp}}))


def _not_parked(origin: str, timestamp: str) -> Refused:
    return Refused(
        "not_parked",
        f"no transaction of {origin[:80]} with timestamp {timestamp} is parked here; GET {PARKED} "
        "lists what is",
        409,
    )


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
