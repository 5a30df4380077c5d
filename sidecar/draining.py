"""How a node goes: first it says so, then it waits until nobody comes any more, then it ends.

Owns that order and the time that each step may take. What is closed, and in which order, is the
business of `app`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from sidecar.api.answers import Answers
from sidecar.core.topology import Node
from sidecar.errors import SidecarError
from sidecar.health import Health
from sidecar.peer.calls import PeerCalls
from sidecar.peer.doubts import PATH
from sidecar.readiness import Askers

log = logging.getLogger(__name__)

TELL_S = 1.0
"""So long the others may take to hear of it; who does not, finds out by itself."""

HAND_OVER_S = 2.0
"""So much of the time is kept for what connected targets have not got yet."""


class Draining:
    """The end of one node.

    others: the nodes that send requests here. limit_s: for all of it, but for what closing what is
    idle takes. grace_s: how long the node goes on serving after it has said that it goes; None: as
    long as those need that ask whether it is ready, at most half of the limit.
    """

    def __init__(
        self,
        node: Node,
        others: Callable[[], Sequence[Node]],
        calls: PeerCalls,
        *,
        health: Health,
        askers: Askers,
        answers: Answers,
        limit_s: float,
        grace_s: float | None,
    ) -> None:
        self._node, self._others, self._calls = node, others, calls
        self._health, self._askers, self._answers = health, askers, answers
        self._limit_s, self._grace_s = limit_s, grace_s
        self._ends_s: float | None = None

    async def say_so(self) -> None:
        """Not ready from now on; returns when nobody should come any more."""
        self._ends_s = time.monotonic() + self._limit_s
        self._health.drains()
        self._answers.is_ending = True
        grace_s = self._grace()
        log.info("node stopping", extra={"node": self._node.id, "grace_s": round(grace_s, 1)})
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(grace_s))
            for other in self._others():
                group.create_task(self._tell(other))

    def _grace(self) -> float:
        if self._grace_s is not None:
            return self._grace_s
        return min(self._askers.grace_s(time.monotonic()), self._limit_s / 2)

    async def _tell(self, other: Node) -> None:
        """Have another node ask how this one is: then it sends nothing here any more."""
        with contextlib.suppress(SidecarError, TimeoutError):
            async with asyncio.timeout(min(TELL_S, self.left_s)):
                await self._calls.post(other.endpoint, PATH, {"node": self._node.id})

    @property
    def left_s(self) -> float:
        """What is left of the limit."""
        if self._ends_s is None:
            return self._limit_s
        return max(0.0, self._ends_s - time.monotonic())

    @property
    def for_requests_s(self) -> float:
        """How long requests in flight may take."""
        left_s = self.left_s
        return left_s - min(HAND_OVER_S, left_s / 2)

    @property
    def for_hand_over_s(self) -> float:
        """How long connected targets may take to get what was written here."""
        return min(HAND_OVER_S, self.left_s)
