"""What everything that dials the peer listeners of other nodes shares: a session of connections."""

import os
from types import TracebackType
from typing import Any, Self

import aiohttp

from sidecar.security.links import Links
from sidecar.security.tls import handshake_refusal

KEEPALIVE_S = 15.0


def why_not(error: BaseException) -> str:
    """What became of a connection, in words; "" for silence."""
    if isinstance(error, aiohttp.ClientSSLError):
        return handshake_refusal(error)
    if isinstance(error, aiohttp.ClientConnectorError):
        # Its own text names the address a third time, and what TLS was set.
        number, said = error.os_error.errno, error.os_error.strerror
        return os.strerror(number) if number and number > 0 else said or str(error)
    return str(error)


class Connections:
    """Connections to other nodes, kept while this is used as an async context manager.

    links: what this node shows there, and whom it believes. options: of `aiohttp.ClientSession`.
    """

    def __init__(self, links: Links | None = None, **options: Any) -> None:
        self._links = links or Links("")
        self._options = options

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            # The other end keeps idle connections for longer, so none is used that it has closed.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
            **self._options,
        )
        # It would repeat PUT and DELETE on a connection that ends.
        self._session._retry_connection = False
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()
