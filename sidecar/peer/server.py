"""The peer listener: other sidecars come here with sessions, and anyone may ask for /health."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping

import aiohttp
from aiohttp import web

from sidecar.core.session import AckOutcome, Party, acknowledge, greet, heartbeat, refuse, welcome
from sidecar.core.wire import MAX_FRAME_BYTES, decode_frame, decode_vector
from sidecar.errors import Refused, SidecarError, Unavailable, ungrouped
from sidecar.health import Health
from sidecar.peer.client import PATH
from sidecar.store.calls import MergeOutcome
from sidecar.store.redis_store import RedisStore

log = logging.getLogger(__name__)

READ_AHEAD = 8
"""Frames read and not yet merged; beyond it the link fills up and the sender's window holds."""

MAX_MERGE_BYTES = 128 * 1024
"""Batches that wait are merged together up to this, so that Redis never blocks for long."""

MAX_REMEMBERED = 1000
"""Sources whose refusal is remembered; beyond it all are forgotten and logged anew."""

Frame = tuple[dict[str, object], bytes]


class Receiver:
    """Takes the sessions of other nodes and merges what they bring.

    regions: node id -> region id of every node of the topology. timeout_s: how long a hello, and
    later any frame, may take.
    """

    def __init__(
        self, store: RedisStore, me: Party, regions: Mapping[str, str], timeout_s: float
    ) -> None:
        self._store, self._me, self._regions, self._timeout_s = store, me, regions, timeout_s
        self._sessions: dict[str, web.WebSocketResponse] = {}
        # Who was refused, and why: a source that comes again with the same fault is no news.
        self._refused: dict[str, str] = {}

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """One session, from hello to its end."""
        socket = web.WebSocketResponse(
            max_msg_size=MAX_FRAME_BYTES, compress=False, timeout=1.0, autoping=True
        )
        try:
            await socket.prepare(request)
        except ConnectionError:
            return web.Response()  # it has gone already, nobody reads this
        node = None
        try:
            node = await self._agree(socket)
            await self._replace(node, socket)
            with ungrouped():
                await self._converse(socket)
        except SidecarError as failure:
            self._note_refusal(node or str(request.remote), failure)
            with contextlib.suppress(ConnectionError):
                await _send(socket, refuse(failure.code, failure.message))
        except ConnectionError:
            pass  # the other end has gone; it will come again
        finally:
            if node is not None and self._sessions.get(node) is socket:
                del self._sessions[node]
            await socket.close()
        return socket

    def _note_refusal(self, source: str, failure: SidecarError) -> None:
        if self._refused.get(source) == failure.message:
            return
        if len(self._refused) >= MAX_REMEMBERED:
            self._refused.clear()
        self._refused[source] = failure.message
        log.warning(
            "replication session refused", extra={"source": source, "reason": failure.message}
        )

    async def close(self, _: web.Application) -> None:
        """End every session; their nodes come again when this one is back."""
        for socket in list(self._sessions.values()):
            await socket.close(code=aiohttp.WSCloseCode.GOING_AWAY)

    async def _agree(self, socket: web.WebSocketResponse) -> str:
        frame = await self._next(socket)
        if frame is None:
            raise ConnectionResetError
        node, protocol = greet(frame[0], self._me, self._regions)
        decode_vector(frame[0].get("vector"))
        if not self._store.is_open:
            raise Unavailable("store_unavailable", self._store.closed_because)
        await _send(
            socket,
            welcome(
                self._me, self._store.origin, self._store.vector, self._store.revision, protocol
            ),
        )
        return node

    async def _replace(self, node: str, socket: web.WebSocketResponse) -> None:
        """A node has one session here; an older one is a link that died without a word."""
        older = self._sessions.get(node)
        self._sessions[node] = socket
        if older is not None:
            await older.close()
        self._refused.pop(node, None)
        log.info("replication session from a peer", extra={"source": node})

    async def _converse(self, socket: web.WebSocketResponse) -> None:
        """Read ahead while Redis merges; what has come meanwhile is merged together."""
        frames: asyncio.Queue[Frame] = asyncio.Queue(maxsize=READ_AHEAD)
        try:
            async with asyncio.TaskGroup() as group:
                answering = group.create_task(self._answer(socket, frames))
                while (frame := await self._next(socket)) is not None:
                    await frames.put(frame)
                # What is left in the queue was not acknowledged; it comes again.
                answering.cancel()
        except* ConnectionError:
            pass  # the other end has gone while it was answered; it will come again

    async def _answer(self, socket: web.WebSocketResponse, frames: asyncio.Queue[Frame]) -> None:
        batches: list[Frame] = []
        while True:
            head, lines = await frames.get()
            match head["type"]:
                case "batch":
                    batches.append((head, lines))
                case "heartbeat":
                    await _send(socket, heartbeat(self._store.vector, self._store.revision))
                case other:
                    raise Refused("bad_frame", f"a session does not know {other!r}")
            is_enough = sum(len(lines) for _, lines in batches) > MAX_MERGE_BYTES
            if batches and (is_enough or frames.empty()):
                await self._merge(socket, batches)
                batches = []

    async def _merge(self, socket: web.WebSocketResponse, batches: list[Frame]) -> None:
        """Merge batches in their order; the answer to the last one answers all of them."""
        merged = await self._store.merge(b"\n".join(lines for _, lines in batches))
        if merged.outcome is MergeOutcome.LOST:
            raise Unavailable("store_lost_writes", merged.detail)
        number = batches[-1][0].get("batch")
        outcome = AckOutcome(merged.outcome.value)
        await _send(socket, acknowledge(number, outcome, merged.detail, merged.vector))

    async def _next(self, socket: web.WebSocketResponse) -> Frame | None:
        """The next frame; None when the other end has closed, or been silent for too long."""
        try:
            message = await socket.receive(timeout=self._timeout_s)
        except TimeoutError:
            return None
        if message.type is aiohttp.WSMsgType.ERROR:
            raise Refused("bad_frame", f"the link cannot be read: {message.data}")
        if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            return None
        return decode_frame(message.data)


async def _send(socket: web.WebSocketResponse, frame: str | bytes) -> None:
    if isinstance(frame, str):
        await socket.send_str(frame)
    else:
        await socket.send_bytes(frame)


def peer_app(receiver: Receiver, health: Health) -> web.Application:
    """The application of the peer listener."""
    app = web.Application()
    app.router.add_get(PATH, receiver.serve)
    app.router.add_get("/health", health.answer)
    app.on_shutdown.append(receiver.close)
    return app
