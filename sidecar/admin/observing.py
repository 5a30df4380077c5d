"""What the dashboard knows of the deployment while somebody looks at it.

Owns how often nodes are asked. Each is asked for itself, so that one that does not answer holds up
nothing; this node does it once for all viewers.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sidecar.admin import view
from sidecar.api.answers import compact
from sidecar.core.topology import Node, Topology
from sidecar.errors import SidecarError

ASK_S = 0.5
"""A node is asked so soon again: a cut between two others must show within two seconds."""
TIMEOUT_S = 2.0
LOOK_S = 0.25
TELL_S = 1.0
"""Figures are told so often, a change of state at once."""

Status = Mapping[str, Any]


class Observer:
    """Asks every node how it does, again and again, while `observe` runs."""

    def __init__(
        self,
        me: Node,
        topology: Callable[[], Topology],
        own: Callable[[], Awaitable[Status]],
        ask: Callable[[Node], Awaitable[Status]],
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """own: how this node does. ask: how another does; raises Unavailable or Refused."""
        self._me, self._topology, self._own, self._ask = me, topology, own, ask
        self._clock_s = clock_s
        self._asking: set[str] = set()
        self._heard: dict[str, tuple[float, Status]] = {}
        self._errors: dict[str, str] = {}

    async def observe(self) -> None:
        """Ask for ever; what was known before is forgotten."""
        self._asking.clear()
        self._heard.clear()
        self._errors.clear()
        async with asyncio.TaskGroup() as group:
            while True:
                for node in self._topology().nodes():
                    if node.id not in self._asking:
                        self._asking.add(node.id)
                        group.create_task(self._ask_one(node))
                await asyncio.sleep(ASK_S)

    def seen(self) -> list[view.Seen]:
        """Every node as it was seen last, in configured order."""
        return [self._seen(node) for node in self._topology().nodes()]

    def _seen(self, node: Node) -> view.Seen:
        error = self._errors.get(node.id)
        if (heard := self._heard.get(node.id)) is None:
            return view.Seen(node, error=error)
        heard_s, status = heard
        return view.Seen(node, status, (self._clock_s() - heard_s) * 1000, error)

    async def _ask_one(self, node: Node) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                status = await (self._own() if node.id == self._me.id else self._ask(node))
            self._heard[node.id] = self._clock_s(), status
            self._errors.pop(node.id, None)
        except TimeoutError:
            self._errors[node.id] = f"no answer within {TIMEOUT_S:.0f} s"
        except SidecarError as failure:
            self._errors[node.id] = failure.message
        finally:
            self._asking.discard(node.id)


class DeploymentTopic:
    """The event `deployment`: each second, and at once when a state has changed."""

    name, period_s = "deployment", LOOK_S

    def __init__(
        self,
        observer: Observer,
        topology: Callable[[], Topology],
        facts: Callable[[], Status],
        me: str,
    ) -> None:
        """facts: what else is shown of the deployment. me: the node that is asked."""
        self._observer, self._topology, self._facts, self._me = observer, topology, facts, me
        self._told: tuple[float, str] | None = None

    async def news(self) -> str | None:
        """What has changed, or the figures when it is time."""
        seen, topology = self._observer.seen(), self._topology()
        if not any(one.status or one.error for one in seen):
            return None  # the first answers are on their way
        targets = {
            str(one.node.id): [str(target.id) for target in topology.targets_of(one.node.id)]
            for one in seen
        }
        shown, states = view.deployment(seen, targets, self._me)
        now_s = time.monotonic()
        if self._told is not None and self._told[1] == states and now_s - self._told[0] < TELL_S:
            return None
        self._told = now_s, states
        return compact({"at": time.time_ns() // 1_000_000, **self._facts(), **shown})

    def forget(self) -> None:
        """What comes next is news."""
        self._told = None
