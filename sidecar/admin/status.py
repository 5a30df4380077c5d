"""The admin listener: metrics and health."""

from aiohttp import web

from sidecar.health import Health
from sidecar.metrics import CONTENT_TYPE, Metrics


def admin_app(metrics: Metrics, health: Health) -> web.Application:
    """The application of the admin listener."""

    async def get_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/metrics", get_metrics)
    app.router.add_get("/health", health.answer)
    return app
