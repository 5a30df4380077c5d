"""The guard of the peer listener: who asks must be a node, unless it only asks for health."""

from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sidecar.api.answers import Answers
from sidecar.errors import Refused
from sidecar.peer.client import PATH
from sidecar.security.links import Links
from sidecar.security.refusals import Refusals

OPEN: Final = frozenset({"/health", "/livez", "/readyz", PATH})
"""Probes show no certificate, and a session proves itself with its first frames."""


def peer_guard(links: Links, answers: Answers, refusals: Refusals) -> Middleware:
    """A middleware for the application of the peer listener."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in OPEN:
            try:
                await links.asker(request)
            except Refused as refused:
                refusals.note(str(request.remote), refused.message)
                return answers.failure(refused)
            except web.HTTPRequestEntityTooLarge:
                return answers.too_large(request.client_max_size)
        return await handler(request)

    return guard
