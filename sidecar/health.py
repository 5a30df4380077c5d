"""What a node says of itself at /health, on all three listeners."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Protocol, Self

from aiohttp import web

from sidecar.agent.probe import DRAINING
from sidecar.agent.ship import Target
from sidecar.core.router import NodeHealth
from sidecar.core.topology import Node
from sidecar.store.calls import Phase
from sidecar.store.redis_store import RedisStore

RELEASE = version("inferadb-sidecar")


class Behind(Protocol):
    """The database behind a node."""

    @property
    def away_because(self) -> str:
        """Why it does not serve, in words; "" when it does."""
        ...

    def reasons(self) -> list[str]:
        """What else a person should know of it."""
        ...

    def facts(self) -> Mapping[str, object]:
        """What it is."""
        ...


class Health:
    """`healthy`; `degraded` when a target is not connected, the store is full or something is
    damaged; `unhealthy` when nothing is served.

    A node serves when its partition of everywhere does. The others are independent of it: one that
    does not serve makes the node `degraded`, and its tenants are told so.
    """

    def __init__(
        self,
        node: Node,
        store: RedisStore,
        targets: Sequence[Target],
        damage: Callable[[], list[str]] = list,
        restricted: Mapping[str, Self] | None = None,
    ) -> None:
        """damage: tells in words what the comparison of digests has found.

        restricted: the regions of each other partition, in words -> the health of that one alone.
        """
        self._node, self._store, self._targets, self._damage = node, store, targets, damage
        self._restricted = restricted or {}
        self._database: Behind | None = None
        self._is_draining = False

    @property
    def who(self) -> dict[str, str]:
        """Which node this is."""
        return {"node": self._node.id, "region": self._node.region, "release": RELEASE}

    def drains(self) -> None:
        """This node is about to end: it goes on serving who comes, and wants nobody to come."""
        self._is_draining = True

    def behind_stands(self, database: Behind) -> None:
        """A database stands behind this node: it serves when that does."""
        self._database = database

    def check(self) -> tuple[bool, dict[str, object]]:
        """Whether reads and writes are served here, and what a person wants to know."""
        is_serving, reasons = self._judge()
        for regions, health in self._restricted.items():
            _, theirs = health._judge()
            # What concerns the Redis or a target as a whole is said once.
            news = [reason for reason in theirs if reason not in reasons]
            reasons += [f"tenants of {regions}: {reason}" for reason in news]
        word = "unhealthy" if not is_serving else "degraded" if reasons else "healthy"
        return is_serving, {
            **({"database": self._database.facts()} if self._database else {}),
            "status": word,
            "reasons": reasons,
            # For other nodes: that it does not serve is not to be seen twice before it is believed.
            **({"error": DRAINING, "message": reasons[0]} if self._is_draining else {}),
            **self.who,
        }

    def not_ready_because(self) -> list[str]:
        """Why applications should not come here, in words; empty: they should.

        Of the other partitions only what ends by itself, and soon, counts: they are independent.
        """
        reasons = self._serves_not_because()
        for regions, health in self._restricted.items():
            store = health._store
            if not store.is_open or store.phase is Phase.UNPROVEN:
                reasons.append(f"tenants of {regions}: store: {store.serves_not_because}")
        return reasons

    def _serves_not_because(self) -> list[str]:
        reasons = []
        if self._is_draining:
            reasons.append("draining: this node is about to end")
        if why_not := self._store.serves_not_because:
            reasons.append(f"store: {why_not}")
        if self._store.takes_no_writes_because:
            reasons.append(f"writes are refused: {self._store.takes_no_writes_because}")
        if self._database and self._database.away_because:
            reasons.append(f"database: {self._database.away_because}")
        return reasons

    def _judge(self) -> tuple[bool, list[str]]:
        reasons = self._serves_not_because()
        is_serving = not reasons
        reasons += self._database.reasons() if self._database else []
        if self._store.full_because:
            reasons.append(f"store is full, writes are refused: {self._store.full_because}")
        reasons += self._damage()
        for target in self._targets:
            if target.is_paused:
                reasons.append(f"replication to target {target.node} is paused by an operator")
            elif not target.is_connected:
                why = target.last_error or "no session yet"
                reasons.append(f"target {target.node} is not connected: {why}")
        return is_serving, reasons

    def seen_by_router(self) -> NodeHealth:
        """Whether some requests that arrive here are served here: each partition says which."""
        # Asked for each request.
        if self._database and self._database.away_because:
            return NodeHealth.UNREACHABLE
        if not self._store.serves_not_because:
            return NodeHealth.HEALTHY
        stores = (self._store, *(health._store for health in self._restricted.values()))
        is_away = all(store.serves_not_because for store in stores)
        return NodeHealth.UNREACHABLE if is_away else NodeHealth.HEALTHY

    def withheld(self, reasons: Sequence[str]) -> list[str]:
        """The same, without text that may name what is stored: for whoever is in other regions."""
        behind = self._database is not None
        # Without a database only of restricted tenants nothing is said in words.
        return [
            reason.partition(":")[0] if behind or reason.startswith("tenants of ") else reason
            for reason in reasons
        ]

    async def answer_nodes(self, _: web.Request) -> web.Response:
        """The same as `answer` on the peer listener, where anybody may ask, and from any region."""
        is_serving, shown = self.check()
        reasons = shown["reasons"]
        assert isinstance(reasons, list)
        return web.json_response(
            {**shown, "reasons": self.withheld(reasons)}, status=200 if is_serving else 503
        )

    async def answer(self, _: web.Request) -> web.Response:
        """200 while reads and writes are served, 503 otherwise."""
        is_serving, shown = self.check()
        return web.json_response(shown, status=200 if is_serving else 503)
