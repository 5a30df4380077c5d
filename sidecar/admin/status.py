"""The admin listener: metrics, health, the log of conflicts, and what operators do."""

from collections.abc import Iterable
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

from sidecar.admin.calls import add_routes
from sidecar.admin.openapi import admin_document
from sidecar.api.answers import Answers, Route
from sidecar.health import Health
from sidecar.metrics import CONTENT_TYPE, Metrics
from sidecar.openapi import OPENAPI, Documented


class Calls(Protocol):
    """Calls that belong together."""

    def add_to(self, app: web.Application) -> None: ...


def admin_app(
    metrics: Metrics,
    health: Health,
    answers: Answers,
    *calls: Calls,
    guards: Iterable[Middleware] = (),
) -> web.Application:
    """The application of the admin listener. guards: what a request passes first."""

    async def get_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application(middlewares=guards)
    described = Documented(admin_document(), answers).get
    routes: tuple[tuple[str, str, Route], ...] = (
        ("GET", "/metrics", get_metrics),
        ("GET", "/health", health.answer),
        ("GET", OPENAPI, described),
    )
    add_routes(app, answers, routes)
    for each in calls:
        each.add_to(app)
    return app
