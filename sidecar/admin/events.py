"""`GET /events`: what the dashboard shows, live, as server-sent events.

Owns the viewers: how many there may be, what a new one is told first, and when one is too slow. All
of them are told the same, made once; while nobody looks nothing is asked and nothing is made. What
there is to tell is the business of the topics.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Protocol

from aiohttp import hdrs, web

from sidecar.admin.calls import add_routes
from sidecar.api.answers import Answers
from sidecar.api.listener import WhileClientStays
from sidecar.endings import end
from sidecar.errors import Unavailable

log = logging.getLogger(__name__)

PATH = "/events"
MAX_VIEWERS = 100
"""More get 503: each takes a share of the processor that replication needs."""
QUEUED = 16
"""Events that wait for a viewer; who lets more pile up is cut off, and his page connects again."""
IDLE_S = 5.0
"""After so long without an event a comment keeps the connection from looking dead."""
RETRY_MS = 1_000
IDLE = b": idle\n\n"
HEADERS = {
    hdrs.CONTENT_TYPE: "text/event-stream",
    hdrs.CACHE_CONTROL: "no-store",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}


class Topic(Protocol):
    """One kind of event. name: of the event. period_s: between two calls of `news`."""

    @property
    def name(self) -> str: ...
    @property
    def period_s(self) -> float: ...

    async def news(self) -> str | None:
        """JSON in one line, or None: nothing that was not told already. May raise Unavailable."""
        ...

    def forget(self) -> None:
        """Nobody looks any more: what comes next is news."""
        ...


class _Viewer:
    """One open page. None in its queue is the end."""

    def __init__(self, request: web.Request) -> None:
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUED)
        self._request = request

    def tell(self, event: bytes) -> bool:
        """Whether there was room for it; if not, the viewer is cut off."""
        try:
            self.queue.put_nowait(event)
        except asyncio.QueueFull:
            log.info("viewer cut off: it reads too slowly", extra={"viewer": self._request.remote})
            if self._request.transport is not None:
                self._request.transport.abort()
            return False
        return True

    def end(self) -> None:
        """Let it go; who has no room even for that is too slow in any case."""
        try:
            self.queue.put_nowait(None)
        except asyncio.QueueFull:
            if self._request.transport is not None:
                self._request.transport.abort()


class Viewers:
    """All who look at the dashboard of one node.

    observe: runs while somebody looks. history: JSON of what a new viewer is told first.
    """

    def __init__(
        self,
        answers: Answers,
        topics: Sequence[Topic],
        *,
        observe: Callable[[], Coroutine[None, None, None]],
        history: Callable[[], str],
        limit: int = MAX_VIEWERS,
        idle_s: float = IDLE_S,
    ) -> None:
        self._answers, self._topics, self._limit, self._idle_s = answers, topics, limit, idle_s
        self._observe, self._history = observe, history
        self._viewers: set[_Viewer] = set()
        self._somebody, self._nobody = asyncio.Event(), asyncio.Event()
        self._last: dict[str, bytes] = {}
        self._is_ending = False

    @property
    def count(self) -> int:
        """How many look."""
        return len(self._viewers)

    def add_to(self, app: web.Application) -> None:
        """Add the route, and end the streams when the listener closes."""
        add_routes(app, self._answers, [("GET", PATH, self.stream)])
        app.on_shutdown.append(self._end)

    async def run(self) -> None:
        """Ask and tell while somebody looks; for ever."""
        while True:
            await self._somebody.wait()
            async with asyncio.TaskGroup() as group:
                parts = [self._observe(), *map(self._tell_of, self._topics)]
                tasks = [group.create_task(part) for part in parts]
                await self._nobody.wait()
                await end(tasks)
            self._last.clear()
            for topic in self._topics:
                topic.forget()

    def tell(self, name: str, text: Callable[[], str]) -> None:
        """Tell everybody what a new viewer learns in another way; made if anybody looks."""
        if self._viewers:
            self._publish(_event(name, text()))

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Serve one viewer until it goes, reads too slowly, or this node ends."""
        if request.method == hdrs.METH_HEAD:
            return web.Response(headers=HEADERS)
        if self._is_ending or len(self._viewers) >= self._limit:
            raise Unavailable(
                "too_many_viewers",
                f"at most {self._limit} viewers are served at once, and none while this node ends; "
                "close other dashboards, or open that of another node",
            )
        served_by = {"X-Served-By": self._answers.served_by}
        response = web.StreamResponse(headers={**HEADERS, **served_by})
        viewer = _Viewer(request)
        self._viewers.add(viewer)
        self._nobody.clear()
        self._somebody.set()
        try:
            with WhileClientStays(request):
                await response.prepare(request)
                await self._serve(response, viewer)
        except ConnectionError:
            pass  # the viewer has gone, or was cut off
        finally:
            self._viewers.discard(viewer)
            if not self._viewers:
                self._somebody.clear()
                self._nobody.set()
        return response

    async def _serve(self, response: web.StreamResponse, viewer: _Viewer) -> None:
        first = [f"retry: {RETRY_MS}\n\n".encode(), _event("history", self._history())]
        await response.write(b"".join([*first, *self._last.values()]))
        while True:
            try:
                async with asyncio.timeout(self._idle_s):
                    event = await viewer.queue.get()
            except TimeoutError:
                event = IDLE
            if event is None:
                await response.write_eof()
                return
            await response.write(event)

    async def _tell_of(self, topic: Topic) -> None:
        while True:
            try:
                text = await topic.news()
            except Unavailable as unavailable:
                # The page says so by what other topics tell; this one goes on when it can.
                log.debug("nothing to show", extra={"reason": unavailable.message})
                text = None
            if text is not None:
                self._last[topic.name] = event = _event(topic.name, text)
                self._publish(event)
            await asyncio.sleep(topic.period_s)

    def _publish(self, event: bytes) -> None:
        for viewer in [each for each in self._viewers if not each.tell(event)]:
            self._viewers.discard(viewer)

    async def _end(self, _: web.Application) -> None:
        self._is_ending = True
        for viewer in list(self._viewers):
            viewer.end()


def _event(name: str, text: str) -> bytes:
    return f"event: {name}\ndata: {text}\n\n".encode()
