"""The dialling end of a session's link: one WebSocket to the peer listener of a target."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from sidecar.core.wire import MAX_FRAME_BYTES, decode_frame
from sidecar.errors import Unavailable
from sidecar.peer.connections import Connections, why_not
from sidecar.security.links import Links

PATH = "/peer/v1/session"


class Link:
    """A connected link. `receive` and `send` raise Unavailable when it has gone."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, target: str) -> None:
        self._socket, self._target = socket, target

    async def send(self, frame: str | bytes) -> None:
        """Put a frame on the link; waits while the link is full."""
        try:
            if isinstance(frame, str):
                await self._socket.send_str(frame)
            else:
                await self._socket.send_bytes(frame)
        except (aiohttp.ClientError, OSError) as error:
            raise self._gone(str(error)) from error

    async def receive(self) -> dict[str, object]:
        """The head of the next frame."""
        message = await self._socket.receive()
        if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            raise self._gone(f"close code {self._socket.close_code}")
        return decode_frame(message.data)[0]

    def _gone(self, detail: str) -> Unavailable:
        return Unavailable("link_lost", f"the link to {self._target} broke: {detail}")


class Dialler(Connections):
    """Opens links. One for all targets; use as an async context manager."""

    def __init__(self, timeout_s: float, links: Links | None = None) -> None:
        super().__init__(links, timeout=aiohttp.ClientTimeout(total=None, connect=timeout_s))
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def dial(self, target: str, endpoint: str) -> AsyncIterator[Link]:
        """A link to the node at `host:port`, after both have proved who they are.

        Raises Unavailable("unreachable" | "not_let_in" | "peer_unauthenticated").
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                socket = await self._session.ws_connect(
                    f"{self._links.scheme}://{endpoint}{PATH}",
                    max_msg_size=MAX_FRAME_BYTES,
                    autoclose=True,
                    # Frames are compressed where it pays; the link does not do it again.
                    compress=0,
                    timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
                    **self._links.options(endpoint),
                )
        except aiohttp.ClientSSLError as error:
            raise Unavailable(
                "peer_unauthenticated",
                f"{target} at {endpoint} is not spoken to: {why_not(error)}",
            ) from error
        except aiohttp.WSServerHandshakeError as error:
            # A code of its own: it is there, and why it takes no session is news.
            raise Unavailable(
                "not_let_in", f"{target} at {endpoint} takes no session: HTTP {error.status}"
            ) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            detail = why_not(error) or f"no answer within {self._timeout_s:.0f} s"
            raise Unavailable(
                "unreachable", f"{target} cannot be reached at {endpoint}: {detail}"
            ) from error
        try:
            link = Link(socket, target)
            await self._introduce(link, target)
            yield link
        finally:
            await socket.close()

    async def _introduce(self, link: Link, target: str) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._links.introduce(link, target)
        except TimeoutError:
            raise Unavailable(
                "peer_unauthenticated",
                f"{target} does not say within {self._timeout_s:.0f} s that it has the shared key",
            ) from None
