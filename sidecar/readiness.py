"""Whether this node is alive, and whether applications should come to it: /livez and /readyz.

Owns the words of both, and who asks: whoever looks whether this node is ready must have had time to
see that it no longer is before it goes. What a person wants to know is at /health.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from aiohttp import web

from sidecar.agent.lateness import Lateness
from sidecar.api.answers import Answers, Route, compact
from sidecar.errors import Refused
from sidecar.health import Health
from sidecar.partition import Partition

PROBES: Final = ("/livez", "/readyz")

MAX_LAG_MS: Final = 3_600_000
_LAG = re.compile(r"[0-9]{1,7}", re.ASCII)

RECENT_S: Final = 15.0
"""Who has asked within this time goes on asking, and two questions this far apart belong to it."""

SIGHTS: Final = 3
"""So often a load balancer mostly wants to see that a node is not ready before it believes it."""

LEAST_GRACE_S: Final = 0.5
"""Also who asks very often may be in the middle of sending a request."""

MAX_ASKERS: Final = 1_000
"""Askers that are remembered; beyond it the one that has been silent for longest is forgotten."""


class _Asker(NamedTuple):
    """When it asked last, and the longest time between two of its questions."""

    asked_s: float
    pause_s: float


class Askers:
    """Who asks whether this node is ready, and how often: each address at each listener."""

    def __init__(self) -> None:
        self._askers: OrderedDict[str, _Asker] = OrderedDict()

    def note(self, who: str, now_s: float) -> None:
        """One has asked."""
        before = self._askers.pop(who, None)
        pause_s = 0.0
        if before is not None and now_s - before.asked_s <= RECENT_S:
            pause_s = max(before.pause_s, now_s - before.asked_s)
        self._askers[who] = _Asker(now_s, pause_s)
        if len(self._askers) > MAX_ASKERS:
            self._askers.popitem(last=False)

    def grace_s(self, now_s: float) -> float:
        """How long all of them need to learn that this node is not ready; 0 when nobody asks."""
        pauses = [one.pause_s for one in self._askers.values() if now_s - one.asked_s <= RECENT_S]
        return max(LEAST_GRACE_S, SIGHTS * max(pauses)) if pauses else 0.0


class Readiness:
    """What /livez and /readyz answer, on all three listeners."""

    def __init__(
        self,
        health: Health,
        partitions: Iterable[Partition],
        answers: Answers,
        wall_us: Callable[[], int],
    ) -> None:
        """partitions: those of this node, looked at anew each time."""
        self._health, self._partitions, self._answers = health, partitions, answers
        self._lateness = {
            one.name: Lateness(one.me.node, _monotonic_us, wall_us) for one in partitions
        }
        self.askers = Askers()

    def lag_ms(self) -> int:
        """How late this node shows what others have written; of all partitions the latest."""
        return max(
            self._lateness[one.name].ms(one.peers.told, one.store.vector)
            for one in self._partitions
        )

    def routes(self) -> Mapping[str, Route]:
        """path -> what a GET of it answers."""
        return self._routes(self.ready)

    def add_to(self, admin: web.Application, peer: web.Application) -> None:
        """Serve both there; on the peer listener without text that may name what is stored."""
        for app, ready in ((admin, self.ready), (peer, self.ready_to_nodes)):
            for path, route in self._routes(ready).items():
                app.router.add_get(path, route)

    def _routes(self, ready: Route) -> Mapping[str, Route]:
        return dict(zip(PROBES, map(self._answers.guarded, (self.live, ready)), strict=True))

    async def live(self, _: web.Request) -> web.Response:
        """200: this process answers, whatever becomes of its Redis and its peers."""
        return self._answers.json(compact({"status": "alive", **self._health.who}))

    async def ready(self, request: web.Request) -> web.Response:
        """200 while applications are served here, 503 otherwise. Raises Refused."""
        return self._ready(request, list)

    async def ready_to_nodes(self, request: web.Request) -> web.Response:
        """The same, as anybody may know it. Raises Refused."""
        return self._ready(request, self._health.withheld)

    def _ready(
        self, request: web.Request, shown_of: Callable[[Sequence[str]], list[str]]
    ) -> web.Response:
        most_ms = _most_ms(request)
        address = request.transport and request.transport.get_extra_info("sockname")
        self.askers.note(f"{request.remote} {address}", time.monotonic())
        reasons, lag = shown_of([*self._health.not_ready_because(), *self._joining()]), {}
        if most_ms is not None:
            lag = {"lag_ms": self.lag_ms()}
            if lag["lag_ms"] > most_ms:
                reasons.append(
                    f"late: what others have written shows here after {lag['lag_ms']} ms, more "
                    f"than max_lag_ms={most_ms}"
                )
        shown = {"reasons": reasons, **lag, **self._health.who}
        if not reasons:
            return self._answers.json(compact({"status": "ready", **shown}))
        failure = {"status": "not_ready", "error": "not_ready", "message": "; ".join(reasons)}
        return self._answers.json(compact({**failure, **shown}), 503, {"Retry-After": "1"})

    def _joining(self) -> Iterator[str]:
        """Why a node that is new in its topology shows less than the others do."""
        for one in self._partitions:
            if why := one.peers.joins:
                whose = f"tenants of {', '.join(one.regions)}: " if one.regions else ""
                yield f"{whose}joining: {why}"


def _most_ms(request: web.Request) -> int | None:
    """`max_lag_ms`. Raises Refused."""
    for name in request.query:
        if name != "max_lag_ms":
            raise Refused(
                "invalid_parameter", f"{name[:80]}: unknown parameter; /readyz takes max_lag_ms"
            )
    given = request.query.getall("max_lag_ms", [])
    if not given:
        return None
    most_ms = int(given[0]) if _LAG.fullmatch(given[0]) else -1
    if len(given) > 1 or not 0 <= most_ms <= MAX_LAG_MS:
        raise Refused(
            "invalid_parameter",
            f"max_lag_ms: give one whole number of milliseconds from 0 to {MAX_LAG_MS}",
        )
    return most_ms


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000
