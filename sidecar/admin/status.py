"""The admin listener: metrics, health, the log of conflicts, and what operators do."""

from collections.abc import Iterable
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

from sidecar.health import Health
from sidecar.metrics import CONTENT_TYPE, Metrics


class Calls(Protocol):
    """Calls that belong together."""

    def add_to(self, app: web.Application) -> None: ...


def admin_app(
    metrics: Metrics, health: Health, *calls: Calls, guards: Iterable[Middleware] = ()
) -> web.Application:
    """The application of the admin listener. guards: what a request passes first."""

    async def get_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application(middlewares=guards)
    app.router.add_get("/metrics", get_metrics)
    app.router.add_get("/health", health.answer)
    for each in calls:
        each.add_to(app)
    return app
