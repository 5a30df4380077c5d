"""What the calls of the admin listener share: how routes are added, and a limit is read."""

from collections.abc import Iterable

from aiohttp import hdrs, web

from sidecar.api.answers import Answers, Route
from sidecar.errors import Refused


def add_routes(
    app: web.Application, answers: Answers, routes: Iterable[tuple[str, str, Route]]
) -> None:
    """Add routes (method, path, call), with JSON also for what aiohttp would answer in plain text.

    GET takes HEAD as well.
    """
    for method, path, route in routes:
        guarded = answers.guarded(route)
        if method == "GET":
            app.router.add_get(path, guarded)
        else:
            app.router.add_post(path, guarded)
        refuse = _refuse_method(answers, path, "GET, HEAD" if method == "GET" else method)
        app.router.add_route(hdrs.METH_ANY, path, answers.guarded(refuse))


def _refuse_method(answers: Answers, path: str, allowed: str) -> Route:
    async def route(request: web.Request) -> web.Response:
        message = f"{path} takes {allowed}, not {request.method}"
        return answers.http(405, message, {"Allow": allowed})

    return route


def limit_of(text: str | None, default: int, most: int) -> int:
    """A limit as it stands in a query. Raises Refused("invalid_request")."""
    if text is None:
        return default
    limit = int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else 0
    if not 1 <= limit <= most:
        raise Refused("invalid_request", f"limit is a whole number from 1 to {most}")
    return limit
