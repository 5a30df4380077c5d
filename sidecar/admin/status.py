"""The admin listener: metrics, health, and the log of conflicts."""

from aiohttp import web

from sidecar.admin.conflicts import ConflictLog
from sidecar.health import Health
from sidecar.metrics import CONTENT_TYPE, Metrics


def admin_app(metrics: Metrics, health: Health, conflicts: ConflictLog) -> web.Application:
    """The application of the admin listener."""

    async def get_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/metrics", get_metrics)
    app.router.add_get("/health", health.answer)
    conflicts.add_to(app)
    return app
