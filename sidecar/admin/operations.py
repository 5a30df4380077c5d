"""What an operator does on the admin listener: look, accept a loss, drop what is parked, promote.

Owns the paths, what they answer, and that each deliberate step is logged. What the steps do is
decided by `Peers` and in Redis.
"""

import json
import logging
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

log = logging.getLogger(__name__)

STATUS: Final = "/status"
ACCEPT_LOSS: Final = "/accept-loss"
PARKED: Final = "/parked"
DROP: Final = "/parked/drop"
PROMOTE: Final = "/promote"

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
