"""A node that is about to end lets the others know: they ask it how it is, and learn that it goes.

What another node says is not believed, it only makes this one ask: nobody can talk a node down.
"""

import json
from typing import Final

from aiohttp import web

from sidecar.agent.probe import Probes
from sidecar.api.answers import Answers, compact
from sidecar.core.topology import NodeId
from sidecar.errors import Refused

PATH: Final = "/peer/v1/doubt"

MAX_BODY_BYTES: Final = 1_024


class Doubts:
    """The call of the peer listener."""

    def __init__(self, probes: Probes, answers: Answers) -> None:
        self._probes, self._answers = probes, answers

    def add_to(self, app: web.Application) -> None:
        """Serve it there."""
        app.router.add_post(PATH, self._answers.guarded(self.doubt))

    async def doubt(self, request: web.Request) -> web.Response:
        """`{"node"}` -> `{"health"}`, after that node was asked. Raises Refused."""
        node = _node_of(await request.content.read(MAX_BODY_BYTES))
        health = await self._probes.ask(NodeId(node))
        if health is None:
            raise Refused("unknown_node", "node: no other node of the topology here", 404)
        return self._answers.json(compact({"health": health.value}))


def _node_of(raw: bytes) -> str:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    node = body.get("node") if isinstance(body, dict) else None
    if not isinstance(node, str):
        raise Refused("bad_body", 'the body is {"node": "the id of a node"}')
    return node
