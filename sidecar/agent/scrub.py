"""The periodic comparison: whether targets that have the same writes also store the same.

Owns when it happens, the alarm, and the word that a node in doubt gives no state transfers. Nothing
else follows from it: an absent tuple that a vector covers reads as deleted, so whatever is mended
by itself would spread the loss. `sidecar verify --repair` is for people.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence

from sidecar.agent.digests import Digests, Piece
from sidecar.agent.peers import Peers
from sidecar.agent.ship import Target
from sidecar.core.compare import is_outvoted
from sidecar.core.relationship import BUCKETS
from sidecar.core.session import Party
from sidecar.errors import Refused, SidecarError, Unavailable
from sidecar.metrics import Metrics
from sidecar.peer.calls import PeerCalls
from sidecar.peer.inspection import COMPARE, asked_of
from sidecar.store.redis_store import RedisStore

log = logging.getLogger(__name__)

FIRST_S = 30.0
"""The first walk after a start is this soon: what happened to the store while nobody looked."""

LONGEST_REST_S = 1.0
MAX_LISTED = 20
"""Buckets that a log line or a reason names."""


class Scrub:
    """Compares this node with its targets, piece by piece."""

    def __init__(
        self,
        store: RedisStore,
        digests: Digests,
        calls: PeerCalls,
        peers: Peers,
        targets: Sequence[Target],
        *,
        me: Party,
        interval_s: float,
        metrics: Metrics,
    ) -> None:
        self._store, self._digests, self._calls, self._peers = store, digests, calls, peers
        self._targets, self._me, self._interval_s = targets, me, interval_s
        self._metrics = metrics
        self._unequal: dict[str, set[int]] = {}
        self._told: dict[str, frozenset[int]] = {}
        self._damaged: frozenset[int] = frozenset()
        self._failures: dict[str, str] = {}

    def adapt(self) -> None:
        """The targets are others: what was found at those that went is of no interest any more."""
        present = {target.node for target in self._targets}
        for found in (self._unequal, self._told, self._failures):
            for node in found.keys() - present:
                del found[node]

    async def run(self) -> None:
        """Walk over all buckets for ever, once in each interval."""
        await self._store.opened()
        await asyncio.sleep(min(FIRST_S, self._interval_s))
        while True:
            try:
                await self.walk()
            except Unavailable as unavailable:
                log.debug("comparison waits", extra={"reason": unavailable.message})
            await asyncio.sleep(self._interval_s)

    async def walk(self) -> None:
        """All buckets once, each piece with every target that is connected. Raises Unavailable."""
        clock = asyncio.get_running_loop().time
        await self._store.opened()
        self._digests.check_serving()
        damaged = set(await self._digests.find_strays())
        first = 0
        while first < BUCKETS:
            began = clock()
            piece = await self._digests.read(first)
            damaged |= piece.damaged
            asked = asked_of(self._me, first, piece)
            connected = [target for target in self._targets if target.is_connected]
            await asyncio.gather(*(self._ask(target, asked, piece) for target in connected))
            first = piece.following
            # Others use Redis and this processor too.
            await asyncio.sleep(min(clock() - began, LONGEST_REST_S))
        self._tell_damage(frozenset(damaged))
        self._tell_differences()

    async def _ask(self, target: Target, asked: Mapping[str, object], piece: Piece) -> None:
        try:
            said = await self._calls.post(target.endpoint, COMPARE, asked)
            if said.get("node") != target.node:
                raise Refused("wrong_node", f"{str(said.get('node'))[:80]!r} answers there")
            unequal = _buckets(said, "unequal", piece)
            undecided = _buckets(said, "undecided", piece)
        except SidecarError as failure:
            # A target that cannot be asked is not compared; its session says what is wrong.
            if self._failures.get(target.node) != failure.code:
                log.info(
                    "a target was not compared",
                    extra={"target": target.node, "reason": failure.message},
                )
            self._failures[target.node] = failure.code
            return
        self._failures.pop(target.node, None)
        if target not in self._targets:
            return
        known = self._unequal.setdefault(target.node, set())
        # What could not be told stays as it was.
        known -= piece.reading.sums.keys() - undecided
        known |= unequal

    # -- the alarm ----------------------------------------------------------------------------

    def reasons(self) -> list[str]:
        """What a person wants to know, for /health; empty when all is well."""
        found = [
            f"target {target} stores something else in buckets {_listed(buckets)} although it has "
            "the same writes; see `sidecar verify`"
            for target, buckets in sorted(self._told.items())
            if buckets
        ]
        if self._damaged:
            found.append(
                f"buckets {_listed(self._damaged)} were changed behind the back of this node; see "
                "`sidecar verify`"
            )
        return found

    def _tell_differences(self) -> None:
        for target, buckets in self._unequal.items():
            now, before = frozenset(buckets), self._told.get(target, frozenset())
            self._metrics.unequal_buckets(target, len(now))
            self._told[target] = now
            if now and now != before:
                log.error(
                    "damage: a target with the same writes stores something else; nothing is "
                    "changed by itself, see `sidecar verify`",
                    extra={"target": target, "buckets": _listed(now)},
                )
            elif before and not now:
                log.info("a target stores the same again", extra={"target": target})
        is_in_doubt = is_outvoted(self._told)
        if is_in_doubt != self._peers.is_in_doubt:
            self._peers.is_in_doubt = is_in_doubt
            if is_in_doubt:
                log.error(
                    "this node differs from most of those it was compared with; it gives no state "
                    "transfers until that is mended"
                )
            else:
                log.info("this node gives state transfers again")

    def _tell_damage(self, damaged: frozenset[int]) -> None:
        self._metrics.damaged_buckets(len(damaged))
        if damaged and damaged != self._damaged:
            log.error(
                "damage: what is stored here was changed behind the back of this node; nothing is "
                "changed by itself, see `sidecar verify`",
                extra={"buckets": _listed(damaged)},
            )
        self._damaged = damaged


def _buckets(said: Mapping[str, object], name: str, piece: Piece) -> set[int]:
    """The buckets that an answer lists: some of those that were asked about."""
    listed = said.get(name)
    if not isinstance(listed, list) or not all(type(number) is int for number in listed):
        raise Refused("bad_answer", f"{name} is no list of buckets")
    return set(listed) & piece.reading.sums.keys()


def _listed(buckets: frozenset[int]) -> str:
    shown = ", ".join(map(str, sorted(buckets)[:MAX_LISTED]))
    return shown if len(buckets) <= MAX_LISTED else f"{shown} and {len(buckets) - MAX_LISTED} more"
