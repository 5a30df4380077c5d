"""What an operator does to the replication of a node that runs: pause, resume, resync, reload.

Owns the paths and what they take and answer. That each is logged where it takes effect, and what it
does there, is the business of `agent/ship.py` and `reload`.
"""

import json
import logging
from collections.abc import Sequence
from typing import Final

from aiohttp import web

from sidecar.admin.calls import add_routes
from sidecar.agent.ship import Target
from sidecar.api.answers import Answers, Route, compact
from sidecar.core.topology import Node
from sidecar.errors import Refused
from sidecar.partition import Partition
from sidecar.reload import Reloads

log = logging.getLogger(__name__)

PAUSE: Final = "/pause"
RESUME: Final = "/resume"
RESYNC: Final = "/resync"
RELOAD: Final = "/topology/reload"

MAX_BODY_BYTES = 4096


class Steering:
    """The calls of one node; a target is meant in all partitions that ship to it."""

    def __init__(
        self, node: Node, partitions: Sequence[Partition], reloads: Reloads, answers: Answers
    ) -> None:
        self._node, self._partitions, self._reloads = node, tuple(partitions), reloads
        self._answers = answers

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        routes: tuple[tuple[str, str, Route], ...] = (
            ("POST", PAUSE, self._pause),
            ("POST", RESUME, self._resume),
            ("POST", RESYNC, self._resync),
            ("POST", RELOAD, self._reload),
        )
        add_routes(app, self._answers, routes)

    async def _pause(self, request: web.Request) -> web.Response:
        """{"target"?} -> {"node", "changed", "paused"}: ship to it no more; absent: to nobody."""
        target = await self._target(request)
        changed = [n for one in self._partitions for n in await one.shipping.pause(target)]
        if changed:
            log.warning(
                "the operator paused replication: the feed keeps what waits until it is resumed or "
                "this node is restarted",
                extra={"targets": _listed(changed)},
            )
        return self._paused(changed)

    async def _resume(self, request: web.Request) -> web.Response:
        """{"target"?} -> {"node", "changed", "paused"}: ship to it again; absent: to all."""
        target = await self._target(request)
        changed = [n for one in self._partitions for n in one.shipping.resume(target)]
        if changed:
            log.warning("the operator resumed replication", extra={"targets": _listed(changed)})
        return self._paused(changed)

    async def _resync(self, request: web.Request) -> web.Response:
        """{"target"} -> {"node", "target", "connected"}: it gets a state transfer."""
        target = await self._target(request)
        if target is None:
            raise Refused("invalid_request", "target names the node that is to get everything")
        self._refuse_transfer(target)
        is_connected = target in (t.node for t in self._targets() if t.is_connected)
        log.warning("the operator asked for a state transfer", extra={"target": target})
        for one in self._partitions:
            await one.shipping.resync(target)
        answer = {"node": str(self._node.id), "target": target, "connected": is_connected}
        return self._answers.json(compact(answer))

    def _refuse_transfer(self, target: str) -> None:
        if any(t.is_paused for t in self._targets() if t.node == target):
            raise Refused("paused", f"the replication to {target} is paused; resume it first", 409)
        if any(one.peers.is_in_doubt for one in self._partitions):
            raise Refused(
                "in_doubt",
                f"{self._node.id} differs from most of the others and gives no state transfers; "
                "see `sidecar verify`",
                409,
            )

    async def _reload(self, _: web.Request) -> web.Response:
        """{"node", "reloaded", "added", "removed", "moved"}, once it is done."""
        change = await self._reloads.reload()
        return self._answers.json(compact({"node": str(self._node.id), **change.to_json()}))

    def _paused(self, changed: Sequence[str]) -> web.Response:
        paused = {target.node for target in self._targets() if target.is_paused}
        answer = {
            "node": str(self._node.id),
            "changed": sorted(set(changed)),
            "paused": sorted(paused),
        }
        return self._answers.json(compact(answer))

    async def _target(self, request: web.Request) -> str | None:
        """The `target` of the body; None where there is none. Raises Refused."""
        wrong = Refused("invalid_request", 'the body is {"target": "node"} or nothing')
        if (request.content_length or 0) > MAX_BODY_BYTES:
            raise wrong
        text = await request.read()
        try:
            body = json.loads(text) if text else {}
        except (ValueError, RecursionError):
            raise wrong from None
        if not isinstance(body, dict) or body.keys() - {"target"}:
            raise wrong
        target = body.get("target")
        if target is None:
            return None
        known = sorted({one.node for one in self._targets()})
        if target not in known:
            raise Refused(
                "no_such_target",
                f"{self._node.id} ships to no {str(target)[:80]!r}; its targets: "
                f"{_listed(known) or 'none'}",
            )
        return str(target)

    def _targets(self) -> list[Target]:
        return [target for one in self._partitions for target in one.shipping.targets]


def _listed(nodes: Sequence[str]) -> str:
    return ", ".join(sorted(set(nodes)))
