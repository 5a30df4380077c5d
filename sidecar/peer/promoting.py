"""Calls of the peer listener by which regions are promoted: epochs, draining, a promotion itself.

Owns the shape of these calls; what they do is the business of `agent/promotion.py`.
"""

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from sidecar.agent.promotion import DRAIN, EPOCH, HOLD_MARGIN_S, MAX_WAIT_S, PROMOTE, Promotion
from sidecar.api.answers import Answers, compact
from sidecar.core.topology import RegionId
from sidecar.core.wire import encode_vector
from sidecar.errors import Refused


class Promoting:
    """The calls of one node; `promote` is also that of its admin listener."""

    def __init__(self, promotion: Promotion, answers: Answers) -> None:
        self._promotion, self._answers = promotion, answers

    def add_to(self, app: web.Application) -> None:
        """Add the routes of the peer listener."""
        app.router.add_post(EPOCH, self._answers.guarded(self._exchange))
        app.router.add_post(DRAIN, self._answers.guarded(self._drain))
        app.router.add_post(PROMOTE, self._answers.guarded(self._promote_here))

    async def promote(self, request: web.Request) -> web.Response:
        """{"region", "wait_s"?} -> {"region", "epoch", "node", "promoted", "untold"}."""
        region, wait_s = await _wanted(request)
        return self._answers.json(compact(await self._promotion.promote(region, wait_s)))

    async def _promote_here(self, request: web.Request) -> web.Response:
        """The same, for the region of this node."""
        region, wait_s = await _wanted(request)
        return self._answers.json(compact(await self._promotion.promote_here(region, wait_s)))

    async def _exchange(self, request: web.Request) -> web.Response:
        """{"epoch"?} -> {"epoch"?}: what each of both knows, absent for none."""
        body = await _body(request, {"epoch"})
        return self._answers.json(compact(await self._promotion.exchange(body.get("epoch"))))

    async def _drain(self, request: web.Request) -> web.Response:
        """{"for": region, "seconds"} -> {"vector"}: no writes for so long, 0: at once again."""
        body = await _body(request, {"for", "seconds"})
        seconds = _seconds("seconds", body.get("seconds"), MAX_WAIT_S + HOLD_MARGIN_S)
        vector = await self._promotion.drain(RegionId(str(body.get("for"))), seconds)
        return self._answers.json(compact({"vector": encode_vector(vector)}))


async def _wanted(request: web.Request) -> tuple[str, float | None]:
    """The region, and how long to drain, None: not at all."""
    body = await _body(request, {"region", "wait_s"})
    region, wait_s = body.get("region"), body.get("wait_s")
    if not isinstance(region, str):
        raise Refused("invalid_request", "region is the id of a region")
    return region, None if wait_s is None else _seconds("wait_s", wait_s, MAX_WAIT_S)


def _seconds(name: str, value: object, most: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not isinstance(value, int | float) or not 0 <= value <= most:
        raise Refused("invalid_request", f"{name} is a number of seconds up to {most:.0f}")
    return float(value)


async def _body(request: web.Request, known: set[str]) -> Mapping[str, Any]:
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or body.keys() - known:
        raise Refused("invalid_request", f"the body is an object with {', '.join(sorted(known))}")
    return body
