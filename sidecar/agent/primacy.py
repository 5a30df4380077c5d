"""Which region is the primary, and what follows for the writes of this node.

Owns the fencing epoch: what was heard of it, what is stored, and who may write by it. The order of
things makes it safe: an epoch that is heard keeps writes out from that moment on, it is stored
before it is told or lets writes in, and what the fence in Redis finds on its way it keeps out of
the feed (`lua/raise.lua`, `lua/write.lua`).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from sidecar.core.epoch import Epoch, decode_epoch, is_above
from sidecar.core.topology import RegionId, ReplicationStrategy, Topology
from sidecar.core.vector import Vector
from sidecar.errors import Refused, Unavailable
from sidecar.metrics import Metrics
from sidecar.store.calls import Phase
from sidecar.store.redis_store import RedisStore

log = logging.getLogger(__name__)

TICK_S = 1.0
ASK_S = 1.0
"""So long a node without data of its own waits for a peer to say who the primary is."""


class Primacy:
    """The primary region as this node, of the region `home`, knows it.

    Without `primary_replica` there is none, and nothing of this has an effect.
    """

    def __init__(
        self,
        store: RedisStore,
        topology: Topology,
        home: RegionId,
        metrics: Metrics,
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._home, self._metrics, self._now_s = store, home, metrics, now_s
        self.is_used = topology.strategy is ReplicationStrategy.PRIMARY_REPLICA
        self._configured = topology.primary
        # What was heard of; it is above the stored one while Redis is away.
        self._newest: Epoch | None = None
        self.epoch: Epoch | None = None
        self._is_loaded = False
        self._asks_until = now_s() + ASK_S
        self._held: tuple[float, str] | None = None
        self._raising = asyncio.Lock()
        self._changed = asyncio.Event()
        self._reported: object = None

    def adapt(self, topology: Topology) -> None:
        """The topology is another one; what was heard of promotions stays."""
        self._configured = topology.primary

    def is_changed_by(self, topology: Topology) -> bool:
        """Whether `is_primary` of another topology would move writes to another region."""
        return self.is_used and self._newest is None and topology.primary != self._configured

    # -- who it is --------------------------------------------------------------------------------

    @property
    def region(self) -> RegionId | None:
        """The primary region: that of the highest epoch, else that of `is_primary`.

        None unless the strategy is primary_replica.
        """
        if not self.is_used:
            return None
        return RegionId(self._newest.region) if self._newest else self._configured

    def refusal(self) -> Unavailable | None:
        """Why this node takes no writes of applications; None: it does."""
        primary = self.region
        if primary is None:
            return None
        if primary != self._home:
            return Unavailable(
                "not_primary",
                f"writes belong to the primary region, which is {primary}{self._by()}; this node "
                f"is in {self._home}",
            )
        if self._held is not None:
            return Unavailable(
                "draining",
                f"{self._home} hands its place as the primary region to {self._held[1]} and takes "
                "no more writes; try again in a moment",
            )
        if is_above(self._newest, self.epoch):
            return Unavailable("starting", f"the promotion of {self._home} is not stored here yet")
        if self._store.phase is Phase.EXPOSED and self._now_s() < self._asks_until:
            return Unavailable("starting", "this node asks its peers who the primary is")
        return None

    def _by(self) -> str:
        return f" by epoch {self._newest.number}" if self._newest else ""

    def facts(self) -> dict[str, object]:
        """What hellos and heartbeats tell: the stored epoch, nothing where there is none."""
        return {} if self.epoch is None else {"epoch": self.epoch.to_json()}

    # -- what is heard ----------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Take up what is stored, before anybody is told of it."""
        if not self._is_loaded:
            await self._store_epoch()

    async def hear(self, value: object) -> None:
        """The epoch of another node, as it travels; None: it knows of none.

        Raises Refused("bad_frame"), and Unavailable when it cannot be stored: it counts then, too.
        """
        if value is None or not self.is_used:
            return
        heard = decode_epoch(value)
        if is_above(heard, self._newest):
            # From here on, also while Redis is away.
            self._newest, self._held = heard, None
        if is_above(self._newest, self.epoch):
            await self._store_epoch()

    async def raise_to(self, number: int) -> bool:
        """Make this region the primary by the epoch of this number, with what this node has now.

        False where a higher one has come meanwhile.
        """
        async with self._raising:
            raised = await self._store.promote(self._home, number)
            self._take(raised.epoch)
        return self.epoch is not None and self.epoch.order == (number, self._home.encode())

    async def _store_epoch(self) -> Vector:
        async with self._raising:
            raised = await self._store.raise_epoch(
                self._home if self.is_used else "",
                self._newest if self.is_used else None,
                is_held=self._held is not None,
            )
            self._take(raised.epoch)
        return raised.vector

    def _take(self, stored: Epoch | None) -> None:
        if not self._is_loaded:
            self._asks_until = self._now_s() + ASK_S
        is_first, self._is_loaded = not self._is_loaded, True
        if not self.is_used or stored is None:
            return
        before = self.epoch
        self.epoch = stored
        if is_above(stored, self._newest):
            self._newest, self._held = stored, None
        if before is not None and stored.order == before.order:
            return
        self._metrics.epoch(stored.number)
        self._changed.set()
        self._tell(before, stored, is_first)

    def _tell(self, before: Epoch | None, stored: Epoch, is_first: bool) -> None:
        was = before.region if before else self._configured
        fields = {"primary": stored.region, "epoch": stored.number, "before": was}
        if is_first:
            beaten = "" if stored.region == self._configured else ", not that of is_primary"
            log.warning("the primary is the region that was promoted%s", beaten, extra=fields)
        elif stored.region == self._home:
            log.warning("this region is the primary now", extra=fields)
        elif was == self._home:
            log.warning("this region is not the primary any more: it takes no writes", extra=fields)
        else:
            log.warning("another region is the primary now", extra=fields)

    # -- handing over -----------------------------------------------------------------------------

    async def hold(self, seconds: float, successor: str) -> Vector:
        """Take no writes for so long, unless an epoch says more; what this node has then.

        Raises Refused("not_primary") where this region is not the primary.
        """
        if self.region != self._home:
            raise Refused(
                "not_primary", f"{self._home} is not the primary region: {self.region} is", 409
            )
        if self._held is None:
            log.warning(
                "writes are held for a promotion",
                extra={"successor": successor, "seconds": seconds},
            )
        self._held = (self._now_s() + seconds, successor)
        return await self._store_epoch()

    async def let_go(self) -> None:
        """Take writes again, where they are held."""
        if self._held is not None:
            self._held = None
            await self._store_epoch()
            log.warning("writes are taken again: the promotion they were held for did not come")

    # -- as time passes ---------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever: keep stored what is known, and list what was not shipped."""
        while self.is_used or not self._is_loaded:
            await self._store.opened()
            self._changed.clear()
            # Said once where it was noticed; the next turn does it.
            with contextlib.suppress(Unavailable):
                await self.tick()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._changed.wait()

    async def tick(self) -> None:
        """Once a second, and when the epoch has changed."""
        if self._held is not None and self._now_s() >= self._held[0]:
            await self.let_go()
        # Redis may have lost it with its last second.
        await self._store_epoch()
        await self._report()

    async def _report(self) -> None:
        """List as conflicts what this node had written and the new primary had not got.

        Again when this node has written since: what was set aside while it was catching up.
        """
        store, epoch = self._store, self.epoch
        if epoch is None or epoch.region == self._home:
            return
        position = (epoch.order, store.origin, store.vector.get(store.origin))
        if position == self._reported:
            return
        transactions = changes = 0
        is_more, is_trimmed = True, False
        while is_more:
            step = await store.report_fenced()
            transactions += step.transactions
            changes += step.changes
            is_more, is_trimmed = step.is_more, is_trimmed or step.is_trimmed
        self._reported = position
        if transactions or is_trimmed:
            log.warning(
                "what this node had written and the new primary had not got is merged, and listed "
                "as conflicts",
                extra={
                    "primary": epoch.region,
                    "epoch": epoch.number,
                    "transactions": transactions,
                    "changes": changes,
                    "left_the_feed": is_trimmed,
                },
            )
