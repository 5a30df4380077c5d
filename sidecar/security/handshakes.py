"""The TLS listener of peers: like aiohttp's own, but who is turned away is known and logged.

asyncio says nothing of a handshake that fails, neither who it was nor why. So connections are
accepted here, and handed over to it one by one.
"""

import asyncio
import contextlib
import logging
import socket
import ssl

from aiohttp import web

from sidecar.endings import end
from sidecar.security.refusals import Refusals
from sidecar.security.tls import HANDSHAKE_S, handshake_refusal

log = logging.getLogger(__name__)

MAX_HANDSHAKES = 1000
"""Under way at once; more wait until one of them is through, or its time is over."""

PAUSE_S = 1.0
"""After a failure to accept: the system has no room for more connections."""


class TlsSite(web.BaseSite):
    """Listens at host and port, and hands over to the runner who has passed the handshake."""

    def __init__(
        self,
        runner: web.AppRunner,
        host: str,
        port: int,
        context: ssl.SSLContext,
        refusals: Refusals,
    ) -> None:
        super().__init__(runner, ssl_context=context)
        self._host, self._port = host, port
        self._context, self._refusals = context, refusals
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(MAX_HANDSHAKES)

    @property
    def name(self) -> str:
        return f"https://{self._host}:{self._port}"

    async def start(self) -> None:
        """Raises OSError when it cannot listen there."""
        await super().start()
        loop = asyncio.get_running_loop()
        places = await loop.getaddrinfo(
            self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        try:
            for family, _, _, _, address in dict.fromkeys(places):
                made = socket.create_server(address[:2], family=family, backlog=128)
                self._sockets.append(made)
                made.setblocking(False)
        except OSError:
            self._close()
            raise
        for listening in self._sockets:
            self._begin(loop.create_task(self._accept(listening)))

    async def stop(self) -> None:
        """Nobody is let in any more; who is in stays until the runner ends."""
        await end(self._tasks)
        self._close()
        await super().stop()

    def _close(self) -> None:
        while self._sockets:
            self._sockets.pop().close()

    def _begin(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                arrived, address = await loop.sock_accept(listening)
            except OSError as error:
                self._room.release()
                log.warning("no connection can be accepted", extra={"reason": str(error)})
                await asyncio.sleep(PAUSE_S)
                continue
            except asyncio.CancelledError:
                self._room.release()
                raise
            self._begin(loop.create_task(self._greet(arrived, str(address[0]))))

    async def _greet(self, arrived: socket.socket, source: str) -> None:
        """The handshake with who has come."""
        assert self._runner.server is not None
        try:
            with contextlib.suppress(OSError):
                arrived.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                self._runner.server,
                arrived,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_S,
            )
        except (ssl.SSLError, ConnectionAbortedError) as error:
            self._refusals.note(source, handshake_refusal(error))
            arrived.close()
        except (OSError, asyncio.CancelledError):
            arrived.close()  # it has gone without a word, or this node has no time any more
        finally:
            self._room.release()
