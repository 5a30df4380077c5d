"""`GET /peer/v1/status`: what a node tells the others of itself.

Each node shows an operator all of them (`admin/deployment.py`).
"""

from aiohttp import web

from sidecar.api.answers import Answers, compact
from sidecar.node_status import PATH, NodeStatus


class Telling:
    """The call of one node."""

    def __init__(self, status: NodeStatus, answers: Answers) -> None:
        self._status, self._answers = status, answers

    def add_to(self, app: web.Application) -> None:
        """Add the route."""
        app.router.add_get(PATH, self._answers.guarded(self._tell))

    async def _tell(self, _: web.Request) -> web.Response:
        return self._answers.json(compact(await self._status.tell_nodes()))
