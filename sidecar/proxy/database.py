"""The database behind this node, over HTTP: requests of applications passed on, and our own.

Owns the connections, what of a request and an answer is about the link alone, and what a failure on
the way means. Nothing is repeated here: whoever repeats must know that it does no harm.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import NamedTuple, Self

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict
from yarl import URL

from sidecar.dialects.dialect import Ask
from sidecar.errors import Unavailable
from sidecar.hops import end_to_end

log = logging.getLogger(__name__)

CONNECT_S = 2.0
HEALTH_S = 1.0
"""Between two questions whether the database serves."""

FAILURES = 2
"""So many of them in a row, and it does not."""

NO_AUTO = frozenset({"User-Agent", "Accept", "Accept-Encoding", "Content-Type"})
Body = bytes | aiohttp.StreamReader | None


class Answer(NamedTuple):
    """An answer read whole."""

    status: int
    headers: CIMultiDict[str]
    body: bytes

    @property
    def is_done(self) -> bool:
        """Whether the database has done what it was asked."""
        return 200 <= self.status < 300

    @property
    def is_refused(self) -> bool:
        """Whether it has certainly not: 408 and 499 say that it was cut short."""
        return 400 <= self.status < 500 and self.status not in {408, 499}


class NotSent(Unavailable):
    """The request has not reached the database."""


class Database:
    """The database at `url`. Use as an async context manager; `watch` is to run meanwhile.

    timeout_s: how long it may be silent. token: the bearer key of our own requests, "" for none.
    """

    def __init__(
        self, url: str, *, health_path: str, timeout_s: float, max_connections: int, token: str = ""
    ) -> None:
        self._url, self._health_path, self._timeout_s = url.rstrip("/"), health_path, timeout_s
        self._max_connections, self._token = max_connections, token
        self._failures = 0
        self.away_because = "it has not been asked yet"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._max_connections),
            # What one client is given, another must never send.
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=NO_AUTO,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            max_line_size=32_768,
            max_field_size=32_768,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    @asynccontextmanager
    async def sent(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body,
        *,
        is_endless: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The beginning of the answer. target: path and query, as they came.

        Raises NotSent, and Unavailable("outcome_unknown") where it may have been carried out.
        """
        try:
            async with asyncio.timeout(None if is_endless else self._timeout_s):
                answer = await self._session.request(
                    method,
                    URL(self._url + target, encoded=True),
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._note(f"it cannot be reached: {error}")
            raise NotSent(
                "database_unavailable", f"the database of this node cannot be reached: {error}"
            ) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _unknown(error) from error
        async with answer:
            yield answer

    async def answer(
        self, method: str, target: str, headers: Mapping[str, str], body: Body
    ) -> Answer:
        """The answer read whole. Raises as `sent`."""
        async with self.sent(method, target, headers, body) as answer:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return Answer(answer.status, end_to_end(answer.headers), await answer.read())
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise _unknown(error) from error

    async def ask(self, ask: Ask) -> Answer:
        """Ask something of our own. Raises as `sent`."""
        headers: dict[str, str] = {hdrs.CONTENT_TYPE: "application/json"} if ask.body else {}
        if self._token:
            headers[hdrs.AUTHORIZATION] = f"Bearer {self._token}"
        return await self.answer(ask.method, ask.path, headers, ask.body or None)

    async def watch(self) -> None:
        """Ask for ever whether it serves."""
        while True:
            try:
                answer = await self.answer("GET", self._health_path, {}, None)
                self._note("" if answer.is_done else f"{self._health_path} says {answer.status}")
            except Unavailable as unavailable:
                self._note(unavailable.message)
            await asyncio.sleep(HEALTH_S)

    def _note(self, failure: str) -> None:
        self._failures = self._failures + 1 if failure else 0
        if failure and self._failures < FAILURES and not self.away_because:
            return
        if bool(failure) != bool(self.away_because) or self.away_because.startswith("it has not"):
            if failure:
                log.warning("the database does not serve", extra={"reason": failure})
            else:
                log.info("the database serves")
        self.away_because = failure


def passed_on(request: web.Request, body: Body) -> CIMultiDict[str]:
    """The headers of a request as the database gets them."""
    headers = end_to_end(request.headers, "host", "expect")
    length = request.headers.get(hdrs.CONTENT_LENGTH)
    if body is not None and not isinstance(body, bytes) and length is not None:
        headers[hdrs.CONTENT_LENGTH] = length
    return headers


def _unknown(error: BaseException) -> Unavailable:
    return Unavailable(
        "outcome_unknown",
        "the database did not answer after the request was sent, so nobody knows whether it was "
        f"carried out: {error or 'silence'}",
    )
