"""Faults a test orders from a hosted database: outcomes that its caller cannot know, on demand.

Orders come as JSON over paths under `/-/`, which no real database has:

    POST /-/faults   {"kind", "path", "count"?: 1, "delay_ms"?: 0}: for the next calls of a path
    GET  /-/faults   {"ordered": what is left of them, "held": calls held now, "late":
                      calls not executed yet, "calls": by path}
    POST /-/release  lets every held call go on
    POST /-/reset    forgets what is ordered and counted, and lets held calls go on
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from aiohttp import web

Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]
MAX_ORDERED = 1_000  # beyond it an order is refused: a test that wants more has lost count


class Fault(Enum):
    """What happens to a call instead of only being executed and answered."""

    DROP_BEFORE = "drop_before"  # the connection ends, nothing is executed
    DROP_AFTER = "drop_after"  # it is executed, and the connection ends without an answer
    HOLD_BEFORE = "hold_before"  # it is executed once the test releases it
    HOLD_AFTER = "hold_after"  # it is executed, and answered once the test releases it
    LATE = "late"  # the connection ends, and it is executed after `delay_ms`
    DELAY = "delay"  # it is executed after `delay_ms`
    UNAVAILABLE = "unavailable"  # 503, nothing is executed


@dataclass
class Order:
    kind: Fault
    path: str
    count: int = 1
    delay_ms: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.delay_ms < 0 or not self.path.startswith("/"):
            raise ValueError(f"{self}: count from 1, delay_ms from 0, path from the root")


@dataclass
class Faults:
    """The orders that stand; `middleware` carries them out."""

    ordered: list[Order] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    held: int = 0
    late: set[asyncio.Task[None]] = field(default_factory=set)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post("/-/faults", self.take_order)
        app.router.add_get("/-/faults", self.show)
        app.router.add_post("/-/release", self.release)
        app.router.add_post("/-/reset", self.reset)

    async def take_order(self, request: web.Request) -> web.Response:
        asked = await request.json()
        try:
            order = Order(**{**asked, "kind": Fault(asked.get("kind"))})
        except (TypeError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=400)
        if len(self.ordered) >= MAX_ORDERED:
            return web.json_response({"error": f"{MAX_ORDERED} orders stand"}, status=400)
        self.ordered.append(order)
        return web.json_response({})

    async def show(self, _: web.Request) -> web.Response:
        left = [vars(order) | {"kind": order.kind.value} for order in self.ordered]
        counts = {"held": self.held, "late": len(self.late), "calls": self.calls}
        return web.json_response({"ordered": left, **counts})

    async def release(self, _: web.Request) -> web.Response:
        self.released.set()
        self.released = asyncio.Event()
        return web.json_response({})

    async def reset(self, request: web.Request) -> web.Response:
        self.ordered.clear()
        self.calls.clear()
        return await self.release(request)

    def next_for(self, path: str) -> Order | None:
        for order in self.ordered:
            if order.path == path:
                order.count -= 1
                if order.count == 0:
                    self.ordered.remove(order)
                return order
        return None

    async def hold(self) -> None:
        self.held += 1
        try:
            await self.released.wait()
        finally:
            self.held -= 1

    async def execute_late(
        self, request: web.Request, handler: Answering, delay_ms: int
    ) -> web.StreamResponse:
        await request.read()  # what has been read stays there when the connection has ended

        async def execute() -> None:
            await asyncio.sleep(delay_ms / 1000)
            await handler(request)

        task = asyncio.create_task(execute())
        self.late.add(task)
        task.add_done_callback(self.late.discard)
        return _drop(request)

    @property
    def middleware(self) -> Any:
        @web.middleware
        async def carry_out(request: web.Request, handler: Answering) -> web.StreamResponse:
            if request.path.startswith("/-/"):
                return await handler(request)
            self.calls[request.path] += 1
            match self.next_for(request.path):
                case None:
                    return await handler(request)
                case Order(Fault.UNAVAILABLE):
                    told = {"code": 14, "message": "the test says so", "details": []}
                    return web.json_response(told, status=503)
                case Order(Fault.DROP_BEFORE):
                    return _drop(request)
                case Order(Fault.DROP_AFTER):
                    await handler(request)
                    return _drop(request)
                case Order(Fault.LATE, delay_ms=delay_ms):
                    return await self.execute_late(request, handler, delay_ms)
                case Order(Fault.HOLD_BEFORE):
                    await self.hold()
                case Order(Fault.DELAY, delay_ms=delay_ms):
                    await asyncio.sleep(delay_ms / 1000)
                case Order(Fault.HOLD_AFTER):
                    answered = await handler(request)
                    await self.hold()
                    return answered
            return await handler(request)

        return carry_out


def _drop(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
