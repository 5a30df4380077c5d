"""The HTTP server under the app listener: also what is not HTTP gets an answer in JSON.

aiohttp answers malformed requests below the application, in plain text; here the same failures
become the same JSON as everywhere else. Knows nothing of the calls.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from aiohttp import hdrs, http_exceptions, web

from sidecar import request_ids
from sidecar.api.answers import Answers, Route

log = logging.getLogger(__name__)

BadHttp = Callable[[str, str], None]


class _Connection(web.RequestHandler):
    """A connection whose last resort speaks JSON."""

    __slots__ = ("_answers", "_bad_http", "ends_with_it")

    def __init__(
        self, answers: Answers, bad_http: BadHttp, server: web.Server, **options: Any
    ) -> None:
        super().__init__(server, **options)
        self._answers, self._bad_http = answers, bad_http
        self.ends_with_it: asyncio.Task[Any] | None = None

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self.ends_with_it is not None:
            self.ends_with_it.cancel()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """The last touch to every answer.

        What no route took is answered by aiohttp itself, in plain text.
        """
        if isinstance(resp, web.HTTPException) and resp.status >= 400:
            allowed = resp.headers.get(hdrs.ALLOW)
            resp = self._answers.http(
                resp.status, headers={hdrs.ALLOW: allowed} if allowed else None
            )
        if not resp.prepared:
            request_ids.give_back(resp)
            if self._answers.is_ending:
                resp.force_close()
        if log.isEnabledFor(logging.DEBUG):
            extra = {"method": request.method, "path": request.path, "status": resp.status}
            log.debug("request", extra=extra)
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what no route could: broken HTTP, or a failure nobody foresaw."""
        if isinstance(exc, ConnectionError):
            raise exc  # nobody is left to answer to
        if status >= 500:
            log.error("no answer to %s %s", request.method, request.path, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already; the connection ends")
        detail = None
        if isinstance(exc, http_exceptions.HttpProcessingError):
            lines = (exc.message or "").strip().splitlines()
            detail = f"the request is not valid HTTP: {lines[0].rstrip(':')}" if lines else None
            self._bad_http(str(request.remote), detail or "the request is not valid HTTP")
        answer = self._answers.http(status, detail)
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """A body that cannot be read has been refused already: no matter for the log."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)


class WhileClientStays:
    """Cancels what is inside when the client goes away: nobody wants the answer any more."""

    __slots__ = ("_connection",)

    def __init__(self, request: web.Request) -> None:
        self._connection = request.protocol

    def __enter__(self) -> None:
        if isinstance(self._connection, _Connection):
            self._connection.ends_with_it = asyncio.current_task()

    def __exit__(self, *failure: object) -> None:
        if isinstance(self._connection, _Connection):
            self._connection.ends_with_it = None


class _Server(web.Server):
    """Makes the connections; takes the place of the application's own server."""

    def __init__(self, answers: Answers, bad_http: BadHttp, handler: Any, **options: Any) -> None:
        super().__init__(handler, **options)
        self._answers, self._bad_http = answers, bad_http

    def __call__(self) -> web.RequestHandler:
        return _Connection(self._answers, self._bad_http, self, loop=self._loop, **self._kwargs)


class AppListener(web.AppRunner):
    """`aiohttp.web.AppRunner` for the app of `native_app`; without an access log.

    shortcut: the route of a request that the app need not look for, or None. id_header: what the
    id of a request comes in. bad_http: told who sent something else than HTTP, and what it was.
    """

    __slots__ = ("_answers", "_bad_http", "_id_header", "_shortcut")

    def __init__(
        self,
        app: web.Application,
        answers: Answers,
        *,
        shortcut: Callable[[web.Request], Route | None] | None = None,
        id_header: str = request_ids.REQUEST_ID,
        bad_http: BadHttp = lambda source, what: None,
        **options: Any,
    ) -> None:
        super().__init__(app, **{"access_log": None, **options})
        self._answers, self._shortcut, self._id_header = answers, shortcut, id_header
        self._bad_http = bad_http

    def end_within(self, seconds: float) -> None:
        """So long requests in flight may take when this is closed."""
        self._shutdown_timeout = seconds

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        return _Server(
            self._answers,
            self._bad_http,
            self._named(plain.request_handler),
            request_factory=plain.request_factory,
            loop=asyncio.get_running_loop(),
            **plain._kwargs,
        )

    def _named(self, handler: Any) -> Any:
        """Serves requests by their shortcut, if there is one; what is logged names them."""
        shortcut, id_header = self._shortcut, self._id_header

        async def handle(request: web.Request) -> web.StreamResponse:
            request_ids.take(request, id_header)
            route = shortcut(request) if shortcut is not None else None
            answer: web.StreamResponse = await (handler if route is None else route)(request)
            return answer

        return handle
