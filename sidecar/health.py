"""What a node says of itself at /health, on all three listeners."""

from collections.abc import Callable, Sequence
from importlib.metadata import version

from aiohttp import web

from sidecar.agent.ship import Target
from sidecar.core.router import NodeHealth
from sidecar.core.topology import Node
from sidecar.store.redis_store import RedisStore

RELEASE = version("inferadb-sidecar")


class Health:
    """`healthy`; `degraded` when a target is not connected, the store is full or something is
    damaged; `unhealthy` when nothing is served.
    """

    def __init__(
        self,
        node: Node,
        store: RedisStore,
        targets: Sequence[Target],
        damage: Callable[[], list[str]] = list,
    ) -> None:
        """damage: tells in words what the comparison of digests has found."""
        self._node, self._store, self._targets, self._damage = node, store, targets, damage

    def check(self) -> tuple[bool, dict[str, object]]:
        """Whether reads and writes are served here, and what a person wants to know."""
        why_not = self._store.serves_not_because
        reasons = [f"store: {why_not}"] if why_not else []
        if self._store.takes_no_writes_because:
            reasons.append(f"writes are refused: {self._store.takes_no_writes_because}")
        is_serving = not reasons
        if self._store.full_because:
            reasons.append(f"store is full, writes are refused: {self._store.full_because}")
        reasons += self._damage()
        for target in self._targets:
            if not target.is_connected:
                why = target.last_error or "no session yet"
                reasons.append(f"target {target.node} is not connected: {why}")
        word = "unhealthy" if not is_serving else "degraded" if reasons else "healthy"
        return is_serving, {
            "status": word,
            "reasons": reasons,
            "node": self._node.id,
            "region": self._node.region,
            "release": RELEASE,
        }

    def seen_by_router(self) -> NodeHealth:
        """Whether requests that arrive here are served here."""
        is_away = self._store.serves_not_because
        return NodeHealth.UNREACHABLE if is_away else NodeHealth.HEALTHY

    async def answer(self, _: web.Request) -> web.Response:
        """200 while reads and writes are served, 503 otherwise."""
        is_serving, shown = self.check()
        return web.json_response(shown, status=200 if is_serving else 503)
