"""The receiving end of a session: what becomes of the frames that another node sends.

Owns the order of things for one source: greeting, merging, taking in a state transfer. It knows
the store and no socket, so that the simulator can drive it.
"""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence

from sidecar.agent.peers import Peers, Replica
from sidecar.core.relationship import BUCKETS
from sidecar.core.session import (
    AckOutcome,
    Party,
    acknowledge,
    greet,
    heartbeat,
    joined_of,
    welcome,
)
from sidecar.core.vector import Vector
from sidecar.core.wire import decode_vector, encode_frame, encode_vector
from sidecar.errors import Refused, Unavailable
from sidecar.store.calls import AbsorbOutcome, MergeOutcome, Way

log = logging.getLogger(__name__)

Frame = tuple[dict[str, object], bytes]


class Intake:
    """State transfers into this node: one at a time, from one source."""

    def __init__(self) -> None:
        self.owner: Incoming | None = None


class Incoming:
    """One session of another node. `greet` first; then frames in the order in which they come.

    claimed: the node of the topology that it says to be.
    """

    def __init__(
        self,
        store: Replica,
        peers: Peers,
        intake: Intake,
        me: Party,
        regions: Mapping[str, str],
    ) -> None:
        self._store, self._peers, self._intake = store, peers, intake
        self._me, self._regions = me, regions
        self._turn = asyncio.Lock()
        self._is_over = False
        self._own_origin = ""
        self._born = ""
        self._start: Vector = {}
        self._transfer = 0
        self._reached = 0
        self._source_joined: frozenset[str] | None = None
        self.node = self.claimed = ""
        self.origin = ""

    def identify(self, head: Mapping[str, object]) -> str:
        """The node that says hello. Raises Refused when there can be no session with it."""
        if isinstance(name := head.get("node"), str):
            # Also where it is no member any more: it should hear why.
            self._peers.refuse_removed(name, head)
            self.claimed = name if name in self._regions else ""
        node, _ = greet(head, self._me, self._regions)
        decode_vector(head.get("vector"))
        return node

    async def greet(self, head: Mapping[str, object]) -> str | bytes:
        """The answer to a hello. Raises Refused or Unavailable when there can be no session."""
        node, protocol = greet(head, self._me, self._regions)
        if not self._store.is_open:
            raise Unavailable("store_unavailable", "the store of the target is closed")
        await self._peers.greeted(node, head)
        if self._is_over:
            raise Unavailable("topology_changed", f"the topology of {self._me.node} has changed")
        self.node, self.origin = node, str(head.get("origin"))
        self._born = str(head.get("born", self.origin))
        self._own_origin = self._store.origin
        return welcome(self._me, self._store.origin, protocol, self._peers.facts(to=node))

    async def end(self) -> None:
        """Nothing of this session is merged any more when this returns."""
        self._is_over = True
        if self._intake.owner is self:
            self._intake.owner = None
        async with self._turn:
            pass

    async def on_batches(self, batches: Sequence[Frame]) -> str | bytes:
        """Merge batches in their order; the answer to the last one answers all of them."""
        async with self._turn:
            self._check()
            merged = await self._store.merge(
                b"\n".join(lines for _, lines in batches), self._peers.known
            )
        if merged.outcome is MergeOutcome.LOST:
            raise Unavailable("store_lost_writes", merged.detail)
        number = batches[-1][0].get("batch")
        outcome = AckOutcome(merged.outcome.value)
        return acknowledge(number, outcome, merged.vector, self._store.durable, merged.parked)

    async def on_frame(self, head: Mapping[str, object], lines: bytes) -> str | bytes:
        """The answer to any other frame."""
        async with self._turn:
            self._check()
            match head["type"]:
                case "heartbeat":
                    await self._peers.heard(self.node, head)
                    return heartbeat(self._peers.facts())
                case "transfer":
                    return self._begin_transfer(head)
                case "page":
                    return await self._take_page(head, lines)
                case "transfer_end":
                    return await self._end_transfer(head)
                case other:
                    raise Refused("bad_frame", f"a session does not know {other!r}")

    def _check(self) -> None:
        if self._is_over:
            raise Unavailable("session_replaced", f"this session with {self.node} has ended here")
        if self._store.origin != self._own_origin:
            raise Unavailable("new_incarnation", f"{self._me.node} has begun a new incarnation")
        self._peers.refuse_removed(self.node, {"born": self._born})
        if self._peers.is_outdated(self.node, self.origin):
            raise Refused("old_incarnation", f"a newer incarnation of {self.node} is known here")

    # -- state transfer ---------------------------------------------------------------------------

    def _begin_transfer(self, head: Mapping[str, object]) -> str | bytes:
        number = _number(head)
        owner = self._intake.owner
        is_ended = number < self._transfer or (number == self._transfer and owner is not self)
        if is_ended or (owner is not None and owner is not self):
            return encode_frame({"type": "busy", "transfer": number})
        self._intake.owner = self
        begun = json.loads(self._store.progress) if self._store.progress else {}
        if begun.get("source") == self.origin:
            reached, self._start = int(begun["next"]), decode_vector(begun["start"])
            self._source_joined = joined_of(begun)
        else:
            reached, self._start = 0, decode_vector(head.get("start"))
            self._source_joined = joined_of(head)
        self._transfer, self._reached = number, reached
        log.info("state transfer begins", extra={"source": self.node, "from_bucket": reached})
        return encode_frame(
            {
                "type": "ready",
                "transfer": number,
                "start": encode_vector(self._start),
                "next": reached,
            }
        )

    def _progress(self, reached: int) -> str:
        # Sorted: the text is compared as a whole.
        joined = self._source_joined
        progress = {
            "source": self.origin,
            "start": encode_vector(self._start),
            "next": reached,
            **({} if joined is None else {"joined": sorted(joined)}),
        }
        return json.dumps(progress, sort_keys=True)

    async def _take_page(self, head: Mapping[str, object], lines: bytes) -> str | bytes:
        self._own_transfer()
        first, following = head.get("first"), head.get("next")
        if not isinstance(following, int) or not 0 < following <= BUCKETS:
            raise Refused("bad_frame", "a page says which bucket follows")
        # A page that leaves some out would make the vector rise over what is not here.
        if head.get("transfer") == self._transfer and first == self._reached:
            absorbed = await self._store.absorb(
                lines, Way.JOIN, self._progress(following), self._peers.known
            )
            if absorbed.outcome is AbsorbOutcome.SKEW:
                raise Unavailable("skew", "a page has writes ahead of the clock of this node")
            self._reached = following
        return encode_frame({"type": "page_ack", "transfer": self._transfer, "next": self._reached})

    async def _end_transfer(self, head: Mapping[str, object]) -> str | bytes:
        self._own_transfer()
        if head.get("transfer") != self._transfer or self._reached != BUCKETS:
            raise Refused("bad_frame", "the end of a transfer before its last page")
        joined = self._joined()
        if not await self._store.finish(self._start, self._progress(BUCKETS), joined=joined):
            raise Unavailable("transfer_lost", "the transfer is not the one that was begun here")
        self._intake.owner = None
        log.info("state transfer ends", extra={"source": self.node})
        return encode_frame(
            {
                "type": "done",
                "transfer": self._transfer,
                "vector": encode_vector(self._store.vector),
                "durable": encode_vector(self._store.durable),
                **({} if joined is None else {"joined": sorted(joined)}),
            }
        )

    def _joined(self) -> frozenset[str] | None:
        """Whose states are joined here with the end of this transfer, if rules have changed."""
        mine, theirs = self._store.joined, self._source_joined
        if mine is not None:
            return mine | (frozenset(self._peers.rows.members) if theirs is None else theirs)
        # A new node has nothing but what this source has joined.
        return theirs | {self._me.node} if theirs is not None and self._peers.is_new else None

    def _own_transfer(self) -> None:
        if self._intake.owner is not self:
            raise Refused("bad_frame", "a page without a transfer that was begun")


def _number(head: Mapping[str, object]) -> int:
    number = head.get("transfer")
    if not isinstance(number, int):
        raise Refused("bad_frame", "a transfer has a number")
    return number
