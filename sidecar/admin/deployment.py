"""`GET /deployment` on the admin listener: every node, as it says of itself or as it is known here.

Owns who is asked, how long, and how often. Any node can be asked for all of them, so that an
operator needs one address.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from sidecar.admin.calls import add_routes
from sidecar.agent.probe import Probes
from sidecar.api.answers import Answers, compact
from sidecar.core.topology import Node, Topology
from sidecar.errors import SidecarError
from sidecar.node_status import NodeStatus
from sidecar.partition import Partition
from sidecar.peer.calls import PeerCalls
from sidecar.peer.telling import told_by

JsonObject = dict[str, Any]

DEPLOYMENT: Final = "/deployment"

ASK_S = 1.0
"""So long a node may take; one that takes longer is shown as one that cannot be reached."""

FRESH_S = 1.0
"""What is so old is told again instead of asked again, however many look."""


class Deployment:
    """All nodes as one of them sees them. Nobody is asked while nobody looks.

    topology: the present one. everywhere: the partition of this node that every node has.
    """

    def __init__(
        self,
        node: Node,
        topology: Callable[[], Topology],
        calls: PeerCalls,
        answers: Answers,
        *,
        status: NodeStatus,
        everywhere: Partition,
        probes: Probes,
    ) -> None:
        self._node, self._topology, self._calls, self._answers = node, topology, calls, answers
        self._status, self._everywhere, self._probes = status, everywhere, probes
        self._asking = asyncio.Lock()
        self._told: tuple[float, JsonObject] = (-FRESH_S, {})

    def add_to(self, app: web.Application) -> None:
        """Add the routes, with JSON also for what aiohttp would answer in plain text."""
        add_routes(app, self._answers, [("GET", DEPLOYMENT, self._get)])

    async def _get(self, _: web.Request) -> web.Response:
        return self._answers.json(compact(await self.tell()))

    async def tell(self) -> JsonObject:
        """All of it, at most FRESH_S old. Who comes while others are asked waits for the same."""
        async with self._asking:
            told_at, told = self._told
            if time.monotonic() - told_at >= FRESH_S:
                told = await self._ask_all()
                self._told = time.monotonic(), told
            return told

    async def _ask_all(self) -> JsonObject:
        topology, primacy = self._topology(), self._everywhere.primacy
        nodes = topology.nodes()
        told = await asyncio.gather(*map(self._ask, nodes))
        return {
            "asked_by": str(self._node.id),
            "asked_at_ms": time.time_ns() // 1_000_000,
            "strategy": topology.strategy.value,
            "primary": primacy.region,
            "epoch": primacy.epoch and primacy.epoch.to_json(),
            "nodes": {
                str(node.id): {
                    "region": str(node.region),
                    "zone": str(node.zone),
                    "endpoint": node.endpoint,
                    **one,
                }
                for node, one in zip(nodes, told, strict=True)
            },
        }

    async def _ask(self, node: Node) -> JsonObject:
        if node.id == self._node.id:
            return {"is_reachable": True, "status": await self._status.tell()}
        try:
            async with asyncio.timeout(ASK_S):
                status = await told_by(node, self._calls)
        except TimeoutError:
            return self._known(node, f"no answer within {ASK_S:.0f} s")
        except SidecarError as failure:
            return self._known(node, failure.message)
        return {"is_reachable": True, "status": status}

    def _known(self, node: Node, error: str) -> JsonObject:
        """What this node knows of one that does not answer."""
        peers = self._everywhere.peers
        told = peers.told.get(node.id)
        known: JsonObject = {"health": self._probes.health_of(node.id).value}
        if told is not None:
            known |= {
                "origin": told.origin,
                "phase": told.phase.value,
                "heard_s": round(peers.silent_s(node.id), 1),
            }
        return {"is_reachable": False, "error": error, "known": known}
