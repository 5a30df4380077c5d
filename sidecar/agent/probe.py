"""How the other nodes are: each is asked once a second, and believed when it says so twice.

Owns what counts as healthy, and the patience. What follows from it is decided in `core/router.py`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from sidecar.core.router import NodeHealth
from sidecar.core.topology import Node, NodeId
from sidecar.errors import SidecarError
from sidecar.metrics import Metrics
from sidecar.peer.calls import PeerCalls

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
TIMEOUT_S = 2.0
FAILURES = 2
"""So many in a row make a node unreachable: a lost packet does not."""
DRAINING = "draining"
"""What a node that is about to end says of itself at /health: it serves, and wants no more."""


LEVELS = {NodeHealth.HEALTHY: 2, NodeHealth.DEGRADED: 1, NodeHealth.UNREACHABLE: 0}


class _Standing:
    """What is known of one node. The first answer counts at once, and so does any good one."""

    def __init__(self) -> None:
        self.health = NodeHealth.HEALTHY
        self.wake = asyncio.Event()
        self.is_known = False
        self._failures = 0
        self._begun = 0
        self._asked = asyncio.Condition()

    def note(self, health: NodeHealth, *, is_certain: bool = False) -> bool:
        """Take in the result of a probe; whether the node has changed by it.

        is_certain: the node says so itself, and means it.
        """
        before = self.health
        self._failures = self._failures + 1 if health is NodeHealth.UNREACHABLE else 0
        if is_certain or not self._failures or self._failures >= FAILURES or not self.is_known:
            self.health = health
        self.is_known = True
        return self.health is not before

    def begin(self) -> None:
        """A probe begins."""
        self._begun += 1
        self.wake.clear()

    async def end(self) -> None:
        """It has ended; those who wait for one are told."""
        async with self._asked:
            self._asked.notify_all()

    async def ask(self) -> NodeHealth:
        """What a probe finds that begins from now on."""
        before = self._begun
        self.wake.set()
        async with self._asked:
            # The one that is under way may have begun too early.
            await self._asked.wait_for(lambda: self._begun > before)
        return self.health


class Probes:
    """The health of every node, as this one sees it.

    own: how this node itself is; asked anew each time, because it costs nothing. serves_again: told
    of a node that could not be reached, or did not serve, and does.
    """

    def __init__(
        self,
        others: Iterable[Node],
        calls: PeerCalls,
        own: Callable[[], NodeHealth],
        metrics: Metrics,
        *,
        interval_s: float = INTERVAL_S,
        serves_again: Callable[[str], None] = lambda node: None,
    ) -> None:
        self._serves_again = serves_again
        self._others = {node.id: node for node in others}
        self._asking: dict[NodeId, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._calls, self._own, self._interval_s = calls, own, interval_s
        self._metrics = metrics
        self._standing = {node: _Standing() for node in self._others}

    def health_of(self, node: NodeId) -> NodeHealth:
        """How a node is."""
        standing = self._standing.get(node)
        return self._own() if standing is None else standing.health

    def seen(self) -> dict[str, str]:
        """The health of every other node, as a word."""
        return {node: standing.health.value for node, standing in self._standing.items()}

    def ask_now(self, node: str) -> None:
        """There is reason to ask a node before its turn: a session with it has ended."""
        if (standing := self._standing.get(NodeId(node))) is not None:
            standing.wake.set()

    async def ask(self, node: NodeId) -> NodeHealth | None:
        """How a node is, asked anew; None: it is no other node of the topology."""
        standing = self._standing.get(node)
        return None if standing is None else await standing.ask()

    def doubt(self, node: NodeId) -> None:
        """A request could not reach a node: that counts as a probe, and it is asked now."""
        if node in self._standing:
            self._note(node, NodeHealth.UNREACHABLE, "a request did not reach it")
            self.ask_now(node)

    async def run(self) -> None:
        """Ask every node for ever."""
        async with asyncio.TaskGroup() as self._group:
            for node in self._others.values():
                self._begin(node)
            await asyncio.Event().wait()  # also without anybody to ask: others may come

    def adapt(self, others: Iterable[Node]) -> None:
        """Ask these nodes from here on. One that is new does not serve before it has said so."""
        before, self._others = self._others, {node.id: node for node in others}
        for node_id, node in before.items():
            if self._others.get(node_id) == node:
                continue
            if (asking := self._asking.pop(node_id, None)) is not None:
                asking.cancel()
            del self._standing[node_id]
            if node_id not in self._others:
                self._metrics.forget_node(node_id)
        for node in self._others.values():
            if node.id not in self._standing:
                self._standing[node.id] = standing = _Standing()
                standing.health = NodeHealth.UNREACHABLE
                self._begin(node)

    def _begin(self, node: Node) -> None:
        if self._group is not None:
            asking = self._group.create_task(self._ask_for_ever(node), name=f"probe {node.id}")
            self._asking[node.id] = asking

    async def _ask_for_ever(self, node: Node) -> None:
        standing = self._standing[node.id]
        try:
            while True:
                standing.begin()
                self._note(node.id, *await self._ask(node))
                await standing.end()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval_s):
                        await standing.wake.wait()
        finally:
            # It is asked no more: nobody waits for what would come of it.
            standing.begin()
            await standing.end()

    async def _ask(self, node: Node) -> tuple[NodeHealth, str, bool]:
        """Its health, why it is so, and whether it says so itself and means it."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await self._calls.get(node.endpoint, "/health")
        except TimeoutError:
            return NodeHealth.UNREACHABLE, f"no answer within {TIMEOUT_S:.0f} s", False
        except SidecarError as failure:
            return NodeHealth.UNREACHABLE, failure.message, failure.code == DRAINING
        is_whole = answer.get("status") == "healthy"
        return NodeHealth.HEALTHY if is_whole else NodeHealth.DEGRADED, "", False

    def _note(
        self, node: NodeId, health: NodeHealth, reason: str, is_certain: bool = False
    ) -> None:
        standing = self._standing[node]
        before, was_known = standing.health, standing.is_known
        has_changed = standing.note(health, is_certain=is_certain)
        self._metrics.node_health(node, LEVELS[standing.health])
        if not has_changed or NodeHealth.UNREACHABLE not in (before, health):
            return
        if health is NodeHealth.UNREACHABLE:
            log.log(
                # Nodes that are started together find each other starting, and one that goes in
                # order says so.
                logging.WARNING if was_known and not is_certain else logging.INFO,
                "a node does not serve: requests go elsewhere",
                extra={"peer": node, "reason": reason},
            )
        else:
            log.info("a node serves again", extra={"peer": node, "health": health.value})
            self._serves_again(node)
