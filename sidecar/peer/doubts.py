"""A node that is about to end lets the others know: they ask it how it is, and learn that it goes.

What another node says is not believed, it only makes this one ask: nobody can talk a node down.
"""

import asyncio
import json
from typing import Final

from aiohttp import web

from sidecar.agent.probe import TIMEOUT_S, Probes
from sidecar.api.answers import Answers, compact
from sidecar.core.topology import NodeId
from sidecar.errors import Refused, Unavailable

PATH: Final = "/peer/v1/doubt"

MAX_BODY_BYTES: Final = 1_024

ASK_S: Final = 2 * TIMEOUT_S
"""The probe that is under way, and the next one."""


class Doubts:
    """The call of the peer listener."""

    def __init__(self, probes: Probes, answers: Answers) -> None:
        self._probes, self._answers = probes, answers

    def add_to(self, app: web.Application) -> None:
        """Serve it there."""
        app.router.add_post(PATH, self._answers.guarded(self.doubt))

    async def doubt(self, request: web.Request) -> web.Response:
        """`{"node"}` -> `{"health"}`, after that node was asked. Raises Refused."""
        # Where nodes sign, the guard has read it already; then nothing is left in the stream.
        node = _node_of(await request.read())
        try:
            async with asyncio.timeout(ASK_S):
                health = await self._probes.ask(NodeId(node))
        except TimeoutError:
            # It was taken out of the topology meanwhile, perhaps.
            raise Unavailable("unreachable", f"{node[:80]} does not say how it is") from None
        if health is None:
            raise Refused("unknown_node", "node: no other node of the topology here", 404)
        return self._answers.json(compact({"health": health.value}))


def _node_of(raw: bytes) -> str:
    try:
        body = json.loads(raw) if len(raw) <= MAX_BODY_BYTES else None
    except (ValueError, RecursionError):
        body = None
    node = body.get("node") if isinstance(body, dict) else None
    if not isinstance(node, str):
        raise Refused("bad_body", 'the body is {"node": "the id of a node"}')
    return node
