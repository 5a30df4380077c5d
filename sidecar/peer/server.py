"""The peer listener: other sidecars come here with sessions, and anyone may ask for /health."""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping
from typing import Protocol

import aiohttp
from aiohttp import web
from aiohttp.http import WebSocketReader
from aiohttp.typedefs import Middleware

from sidecar.agent.incoming import Frame, Incoming, Intake
from sidecar.agent.peers import Peers
from sidecar.core.session import Party, quoted, refuse
from sidecar.core.wire import MAX_FRAME_BYTES, decode_frame
from sidecar.errors import Refused, SidecarError, Unavailable, ungrouped
from sidecar.health import Health
from sidecar.logs import speak_of
from sidecar.peer.client import PATH
from sidecar.security.links import Links
from sidecar.store.redis_store import RedisStore

log = logging.getLogger(__name__)

READ_AHEAD = 8
"""Frames read and not yet merged; beyond it the link fills up and the sender's window holds."""

MAX_MERGE_BYTES = 128 * 1024
"""Batches that wait are merged together up to this, so that Redis never blocks for long."""

MAX_UNPROVED_BYTES = 1024 * 1024
"""Of a frame of who has not proved yet who it is: a hello names each origin, and no more."""

MAX_REMEMBERED = 1000
"""Sources whose refusal is remembered; beyond it all are forgotten and logged anew."""


class Receiver:
    """Takes the sessions of other nodes with a partition and merges what they bring.

    regions: node id -> region id of every node of the partition. timeout_s: how long any frame may
    take.
    """

    def __init__(
        self,
        store: RedisStore,
        peers: Peers,
        me: Party,
        regions: Mapping[str, str],
        timeout_s: float,
    ) -> None:
        self._store, self._peers, self._me = store, peers, me
        self._regions, self._timeout_s = regions, timeout_s
        self._intake = Intake()
        self._sessions: dict[str, tuple[Incoming, web.WebSocketResponse]] = {}
        # Those that have not agreed yet among them.
        self._open: set[tuple[Incoming, web.WebSocketResponse]] = set()
        # Who was refused, and why: a source that comes again with the same fault is no news.
        self._refused: dict[str, str] = {}

    async def serve(
        self, socket: web.WebSocketResponse, hello: Mapping[str, object], remote: str
    ) -> None:
        """One session, from its hello to its end; remote: the address it comes from."""
        speak_of(self._me.partition)
        session = Incoming(self._store, self._peers, self._intake, self._me, self._regions)
        self._open.add((session, socket))
        try:
            await self._agree(session, socket, hello)
            with ungrouped():
                await self._converse(session, socket)
        except SidecarError as failure:
            await self.refuse(socket, session.node or session.claimed or remote, failure)
        except ConnectionError:
            pass  # the other end has gone; it will come again
        finally:
            if self._sessions.get(session.node, (None, None))[0] is session:
                del self._sessions[session.node]
            await session.end()
            self._open.discard((session, socket))

    async def refuse(
        self, socket: web.WebSocketResponse, source: str, failure: SidecarError
    ) -> None:
        """Tell a source, and the log if that is news, why there is no session with it."""
        if self._refused.get(source) != failure.message:
            if len(self._refused) >= MAX_REMEMBERED:
                self._refused.clear()
            self._refused[source] = failure.message
            log.warning(
                "replication session refused", extra={"source": source, "reason": failure.message}
            )
        with contextlib.suppress(ConnectionError):
            await _send(socket, refuse(failure.code, failure.message))

    async def close(self) -> None:
        """End every session; their nodes come again when this one is back."""
        for _, socket in list(self._sessions.values()):
            await socket.close(code=aiohttp.WSCloseCode.GOING_AWAY)

    async def adapt(self, regions: Mapping[str, str]) -> None:
        """From here on only nodes of this topology are let in.

        When this returns, nothing that earlier sessions bring is taken any more.
        """
        self._regions = regions
        ending = list(self._open)
        for session, _ in ending:
            await session.end()

        async def close(socket: web.WebSocketResponse) -> None:
            with contextlib.suppress(ConnectionError):
                await socket.close(code=aiohttp.WSCloseCode.SERVICE_RESTART)

        await asyncio.gather(*(close(socket) for _, socket in ending))

    async def _agree(
        self, session: Incoming, socket: web.WebSocketResponse, hello: Mapping[str, object]
    ) -> None:
        # A node has one session here; an older one is a link that died without a word. What it has
        # brought is merged before this node says what it has.
        older = self._sessions.pop(session.identify(hello), None)
        if older is not None:
            await older[0].end()
        answer = await session.greet(hello)
        self._sessions[session.node] = (session, socket)
        self._refused.pop(session.node, None)
        log.info("replication session from a peer", extra={"source": session.node})
        await _send(socket, answer)
        if older is not None:
            await older[1].close()

    async def _converse(self, session: Incoming, socket: web.WebSocketResponse) -> None:
        """Read ahead while Redis merges; what has come meanwhile is merged together."""
        frames: asyncio.Queue[Frame] = asyncio.Queue(maxsize=READ_AHEAD)
        try:
            async with asyncio.TaskGroup() as group:
                answering = group.create_task(self._answer(session, socket, frames))
                while (frame := await _next(socket, self._timeout_s)) is not None:
                    await frames.put(frame)
                # What is left in the queue was not acknowledged; it comes again.
                answering.cancel()
        except* ConnectionError:
            pass  # the other end has gone while it was answered; it will come again

    async def _answer(
        self, session: Incoming, socket: web.WebSocketResponse, frames: asyncio.Queue[Frame]
    ) -> None:
        batches: list[Frame] = []
        while True:
            frame = await frames.get()
            is_batch = frame[0]["type"] == "batch"
            if is_batch:
                batches.append(frame)
            is_enough = sum(len(lines) for _, lines in batches) > MAX_MERGE_BYTES
            if batches and (is_enough or not is_batch or frames.empty()):
                await _send(socket, await session.on_batches(batches))
                batches = []
            if not is_batch:
                await _send(socket, await session.on_frame(*frame))


class _Socket(web.WebSocketResponse):
    """A link whose frames may be large only when it is known who sends them."""

    def take_large(self) -> None:
        """From the next frame on. The hello was read, and nothing follows it before its answer."""
        if self._max_msg_size == MAX_FRAME_BYTES or self._req is None or self._reader is None:
            return
        protocol = self._req.protocol
        self._max_msg_size = MAX_FRAME_BYTES
        # aiohttp fixes the limit when a link begins.
        self._parser = WebSocketReader(
            self._reader, MAX_FRAME_BYTES, compress=False, decode_text=self._decode_text
        )
        protocol._payload_parser = None
        protocol.set_parser(self._parser)


class Reception:
    """Hands each link that comes in to the partition that its hello names.

    receivers: by the names of their partitions, the first for what names none of them, and refuses
    it. timeout_s: how long a hello may take. links: how who comes proves who it is.
    """

    def __init__(
        self,
        receivers: Mapping[str, Receiver],
        timeout_s: float,
        links: Links | None = None,
    ) -> None:
        self._receivers, self._timeout_s = receivers, timeout_s
        self._links = links or Links("")

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """One link, to its end."""
        # What comes before the proof is anybody's, and stands in memory until a frame is whole.
        most = MAX_UNPROVED_BYTES if self._links.proves else MAX_FRAME_BYTES
        socket = _Socket(max_msg_size=most, compress=False, timeout=1.0, autoping=True)
        try:
            await socket.prepare(request)
        except ConnectionError:
            return web.Response()  # it has gone already, nobody reads this
        receiver, remote = next(iter(self._receivers.values())), str(request.remote)
        try:
            if (frame := await _next(socket, self._timeout_s)) is not None:
                talk = _Arrived(socket, self._timeout_s)
                hello, names = await self._links.meet(frame[0], request, talk)
                receiver = self._receivers.get(str(hello.get("partition")), receiver)
                if self._links.proves and hello.get("node") not in names:
                    raise _other_name(hello.get("node"), names)
                socket.take_large()
                await receiver.serve(socket, hello, remote)
        except ConnectionError:
            pass  # it has gone while it was asked who it is
        except SidecarError as failure:
            await receiver.refuse(socket, remote, failure)
        finally:
            await socket.close()
        return socket

    async def close(self, app: web.Application) -> None:
        """End every session of every partition."""
        for receiver in self._receivers.values():
            await receiver.close()


class _Arrived:
    """The beginning of a session at this end."""

    def __init__(self, socket: web.WebSocketResponse, timeout_s: float) -> None:
        self._socket, self._timeout_s = socket, timeout_s

    async def send(self, frame: str | bytes) -> None:
        await _send(self._socket, frame)

    async def receive(self) -> dict[str, object]:
        frame = await _next(self._socket, self._timeout_s)
        if frame is None:
            raise Unavailable("link_lost", "it went before it had said who it is")
        return frame[0]


def _other_name(claimed: object, names: frozenset[str]) -> Refused:
    listed = ", ".join(sorted(names))
    return Refused(
        "wrong_identity",
        f"it says to be {quoted(claimed)}, and what it shows is that of {listed[:200]}",
        403,
    )


async def _next(socket: web.WebSocketResponse, timeout_s: float) -> Frame | None:
    """The next frame; None when the other end has closed, or been silent for too long."""
    try:
        # Of its own, because that of `receive` begins anew with each ping.
        async with asyncio.timeout(timeout_s):
            message = await socket.receive()
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


class Calls(Protocol):
    """Calls that belong together."""

    def add_to(self, app: web.Application) -> None: ...


def peer_app(
    reception: Reception, health: Health, *calls: Calls, guards: Iterable[Middleware] = ()
) -> web.Application:
    """The application of the peer listener."""
    app = web.Application(client_max_size=MAX_FRAME_BYTES, middlewares=guards)
    app.router.add_get(PATH, reception.serve)
    app.router.add_get("/health", health.answer_nodes)
    for each in calls:
        each.add_to(app)
    app.on_shutdown.append(reception.close)
    return app
