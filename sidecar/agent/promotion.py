"""`sidecar promote`: how a region becomes the primary.

Owns the steps: ask all other nodes what they know, let the old primary ship what it has if that is
wanted, raise the epoch, tell everybody. What an epoch does is the business of `Primacy`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.agent.peers import Peers
from sidecar.agent.primacy import Primacy
from sidecar.core.epoch import is_above
from sidecar.core.topology import Node, RegionId, Topology
from sidecar.core.vector import Vector, node_of, pointwise_max
from sidecar.core.wire import decode_vector
from sidecar.errors import Refused, SidecarError, Unavailable
from sidecar.peer.calls import PeerCalls
from sidecar.store.redis_store import RedisStore

log = logging.getLogger(__name__)

EPOCH = "/peer/v1/epoch"
PROMOTE = "/peer/v1/promote"
DRAIN = "/peer/v1/drain"

ASK_S = 3.0
"""So long a node that does not answer is waited for; it may be the one that is lost."""
HOLD_MARGIN_S = 5.0
"""Writes are held so much longer than the drain may take, for the epoch to arrive."""
MAX_WAIT_S = 600.0

Failures = dict[str, SidecarError]


@dataclass(frozen=True, slots=True)
class Promoted:
    """What a promotion came to. number: of the epoch; 0: is_primary says so.

    is_new: False where the region was the primary already. untold: node -> why it was not told.
    """

    region: str
    number: int
    node: str
    is_new: bool
    untold: Mapping[str, str]

    def to_json(self) -> dict[str, object]:
        return {
            "region": self.region,
            "epoch": self.number,
            "node": self.node,
            "promoted": self.is_new,
            "untold": dict(self.untold),
        }


class Promotion:
    """Promotes regions at the word of an operator; `node` is this node."""

    def __init__(
        self,
        node: Node,
        topology: Topology,
        store: RedisStore,
        peers: Peers,
        *,
        primacy: Primacy,
        calls: PeerCalls,
    ) -> None:
        self._node, self._store = node, store
        self._peers, self._primacy, self._calls = peers, primacy, calls
        self._one_at_a_time = asyncio.Lock()
        self.adapt(topology)

    def adapt(self, topology: Topology) -> None:
        """From here on the nodes of this topology are asked and told."""
        self._topology = topology
        self._others = [other for other in topology.nodes() if other.id != self._node.id]

    async def promote(self, region: str, wait_s: float | None) -> dict[str, object]:
        """Make `region` the primary; `Promoted` as JSON, from the node of it that did so.

        wait_s: drain the old primary first, for so long at most. Raises Refused, with 409 where
        things stand against it, and Unavailable.
        """
        if not self._primacy.is_used:
            raise Refused("no_primary", "there is a primary only with primary_replica", 409)
        nodes = self._topology.region(region).nodes()
        if region != self._node.region:
            return await self._pass_on(nodes, region, wait_s)
        return await self.promote_here(region, wait_s)

    async def _pass_on(
        self, nodes: Sequence[Node], region: str, wait_s: float | None
    ) -> dict[str, object]:
        """The epoch holds what the new primary has, so a node of that region must raise it."""
        body = {"region": region} | ({} if wait_s is None else {"wait_s": wait_s})
        limit_s = 3 * ASK_S + (wait_s or 0.0)
        failure: SidecarError = Refused("bad_topology", f"{region} has no nodes")
        for node in nodes:
            try:
                return await self._calls.post(node.endpoint, PROMOTE, body, limit_s)
            except Unavailable as unavailable:
                failure = unavailable
        raise failure

    async def promote_here(self, region: str, wait_s: float | None) -> dict[str, object]:
        """The same for the region of this node alone."""
        if region != self._node.region or not self._primacy.is_used:
            raise Refused("wrong_node", f"{self._node.id} cannot make {region} the primary", 409)
        unreached = {r.id for r in self._topology.regions} - self._topology.reachable_from(region)
        if unreached:
            raise Refused(
                "unreached",
                f"writes of {region} would never reach {', '.join(sorted(unreached))}: see "
                "replication_targets",
                409,
            )
        async with self._one_at_a_time:
            return (await self._promote(wait_s)).to_json()

    async def _promote(self, wait_s: float | None) -> Promoted:
        if why_not := self._store.serves_not_because:
            raise Unavailable("not_serving", f"{self._node.id} cannot be promoted: {why_not}")
        await self._primacy.prepare()
        known = self._primacy.epoch
        failures = await self._spread()
        if is_above(found := self._primacy.epoch, known):
            assert found is not None
            raise Refused(
                "higher_epoch",
                f"{self._node.id} did not know of epoch {found.number}, by which "
                f"{found.region} is the primary; now it does: promote again if it still should "
                "be",
                409,
            )
        number = known.number if known else 0
        old = self._primacy.region
        if old == self._node.region:
            return self._promoted(number, failures, is_new=False)
        if wait_s is not None and old is not None:
            await self._drain(old, wait_s)
        is_raised = await self._primacy.raise_to(number + 1)
        failures = await self._spread()
        if not is_raised or self._primacy.region != self._node.region:
            raise Refused(
                "higher_epoch",
                f"{self._primacy.region} was promoted at the same time, and its epoch is the "
                "higher one: it is the primary",
                409,
            )
        return self._promoted(number + 1, failures, is_new=True)

    def _promoted(self, number: int, failures: Failures, *, is_new: bool) -> Promoted:
        untold = {node: failure.message for node, failure in failures.items()}
        if untold:
            log.warning(
                "nodes do not know yet who the primary is", extra={"nodes": ", ".join(untold)}
            )
        return Promoted(self._node.region, number, self._node.id, is_new, untold)

    async def _spread(self) -> Failures:
        """Tell all other nodes the epoch that is known here, hear theirs; who did not answer."""
        told = self._primacy.facts()
        answers, failures = await self._ask_all(self._others, EPOCH, told)
        for answer in answers.values():
            await self._primacy.hear(answer.get("epoch"))
        return failures

    async def _ask_all(
        self, nodes: Sequence[Node], path: str, body: object
    ) -> tuple[dict[str, dict[str, Any]], Failures]:
        answers: dict[str, dict[str, Any]] = {}
        failures: Failures = {}

        async def ask(node: Node) -> None:
            try:
                answers[node.id] = await self._calls.post(node.endpoint, path, body, ASK_S)
            except (Refused, Unavailable) as failure:
                failures[node.id] = failure

        async with asyncio.TaskGroup() as group:
            for node in nodes:
                group.create_task(ask(node))
        return answers, failures

    # -- draining ---------------------------------------------------------------------------------

    async def _drain(self, region: RegionId, wait_s: float) -> None:
        """Have the old primary stop, and wait for what it had. Raises Refused where that fails:
        then it takes writes again.
        """
        nodes = self._topology.region(region).nodes()
        until = asyncio.get_running_loop().time() + wait_s
        held = {"for": self._node.region, "seconds": wait_s + HOLD_MARGIN_S}
        is_drained = False
        try:
            answers, failures = await self._ask_all(nodes, DRAIN, held)
            if failures:
                node, failure = next(iter(failures.items()))
                raise Refused(
                    "cannot_drain",
                    f"{node} of {region} cannot be asked to stop writing: {failure.message}; "
                    "nothing was changed; promote without --wait if it is lost",
                    409,
                )
            wanted: Vector = {}
            for answer in answers.values():
                wanted = pointwise_max(wanted, decode_vector(answer.get("vector")))
            left_s = until - asyncio.get_running_loop().time()
            is_drained = await self._store.wait_covered(self._own(wanted, nodes), max(left_s, 0.0))
            if not is_drained:
                raise Refused(
                    "drain_timeout",
                    f"{self._node.id} has not received all writes of {region} within {wait_s:.0f} "
                    f"s; nothing was changed, {region} takes writes again; give --timeout more "
                    "seconds, or promote without --wait",
                    409,
                )
        finally:
            if not is_drained:
                # Where this does not arrive, the time limit ends it.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ASK_S):
                        await self._ask_all(nodes, DRAIN, {**held, "seconds": 0})

    def _own(self, vector: Vector, nodes: Sequence[Node]) -> Vector:
        """What these nodes have written and is not lost."""
        names, ended = {str(node.id) for node in nodes}, self._peers.rows.ended
        return {o: min(t, ended.get(o, t)) for o, t in vector.items() if node_of(o) in names}

    # -- what other nodes ask ---------------------------------------------------------------------

    async def exchange(self, value: object) -> dict[str, object]:
        """Hear the epoch of another node, and tell that of this one."""
        await self._primacy.prepare()
        await self._primacy.hear(value)
        return self._primacy.facts()

    async def drain(self, successor: RegionId, seconds: float) -> Vector:
        """Hold writes for a promotion; 0 seconds: take them again. What this node has then."""
        if seconds > 0:
            return await self._primacy.hold(seconds, successor)
        await self._primacy.let_go()
        return self._store.vector
