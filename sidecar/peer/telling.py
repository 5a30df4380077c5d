"""`GET /peer/v1/status`: what a node tells the others of itself, and how they ask.

Each node shows an operator all of them (`admin/deployment.py`).
"""

from typing import Any

from aiohttp import web

from sidecar.api.answers import Answers, compact
from sidecar.core.topology import Node
from sidecar.errors import Unavailable
from sidecar.node_status import PATH, NodeStatus
from sidecar.peer.calls import PeerCalls


async def told_by(node: Node, calls: PeerCalls) -> dict[str, Any]:
    """What a node tells of itself; raises as `PeerCalls.get`, Unavailable("wrong_node")."""
    status = await calls.get(node.endpoint, PATH)
    if status.get("node") != node.id:
        raise Unavailable("wrong_node", f"another node answers there: {status.get('node')!r:.40}")
    return status


class Telling:
    """The call of one node."""

    def __init__(self, status: NodeStatus, answers: Answers) -> None:
        self._status, self._answers = status, answers

    def add_to(self, app: web.Application) -> None:
        """Add the route."""
        app.router.add_get(PATH, self._answers.guarded(self._tell))

    async def _tell(self, _: web.Request) -> web.Response:
        return self._answers.json(compact(await self._status.tell_nodes()))
