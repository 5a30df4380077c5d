"""The database behind this node, over HTTP: requests of applications passed on, and our own.

Owns the connections, what of a request and an answer is about the link alone, and what a failure on
the way means. Nothing is repeated here: whoever repeats must know that it does no harm.
"""

import asyncio
import logging
from contextlib import AsyncExitStack
from types import TracebackType
from typing import NamedTuple, Self

import aiohttp
from aiohttp import hdrs
from multidict import CIMultiDict
from yarl import URL

from sidecar.dialects.dialect import Ask
from sidecar.errors import Unavailable
from sidecar.hops import HOP_BY_HOP, PASSES, Head, Sending, Upload, end_to_end

log = logging.getLogger(__name__)

UNKNOWN = "outcome_unknown"
CONNECT_S = 2.0
HEALTH_S = 1.0
"""Between two questions whether the database serves."""

OWN_CONNECTIONS = 32
"""For what the sidecar itself asks, so that it never waits behind applications."""

FAILURES = 2
"""So many of them in a row, and it does not."""

KEEPALIVE_S = 4.0
"""An idle connection is used for so long: less than servers keep theirs, because a request that
meets its end may have been carried out or not."""


_DROPPED = HOP_BY_HOP | {b"x-served-by", b"x-sidecar-from-database"}


class Answer(NamedTuple):
    """An answer read whole. head: what passes on of its headers. length: as it said, also where
    there is no body. encoding: of the body.
    """

    status: int
    reason: str | None
    head: Head
    body: bytes
    length: int | None = None
    encoding: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether the database has done what it was asked."""
        return 200 <= self.status < 300

    @property
    def is_refused(self) -> bool:
        """Whether it has certainly not: 408 and 499 say that it was cut short."""
        return 400 <= self.status < 500 and self.status not in {408, 499}


class Asked(NamedTuple):
    """A request as the database gets it. target: path and query, as they came."""

    method: str
    target: str
    sending: Sending


class NotSent(Unavailable):
    """The request has not reached the database."""


class Dropped(Unavailable):
    """The database has closed the connection without an answer, perhaps before it was asked."""


class Database:
    """The database at `url`. Use as an async context manager; `watch` is to run meanwhile.

    timeout_s: how long it may be silent. token: the bearer key of our own requests, "" for none.
    """

    def __init__(
        self, url: str, *, health_path: str, timeout_s: float, max_connections: int, token: str = ""
    ) -> None:
        self._base, self._prefix = URL(url), URL(url).raw_path.rstrip("/")
        self._health_path, self._timeout_s = health_path, timeout_s
        # For a connection, and for each silence of the database.
        self._patience = aiohttp.ClientTimeout(
            total=None, connect=timeout_s, sock_connect=CONNECT_S, sock_read=timeout_s
        )
        self._endless = aiohttp.ClientTimeout(total=None, connect=timeout_s, sock_connect=CONNECT_S)
        self._max_connections, self._token = max_connections, token
        self._failures = 0
        self.away_because = "it has not been asked yet"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._session = await stack.enter_async_context(_session(self._max_connections))
            self._own = await stack.enter_async_context(_session(OWN_CONNECTIONS))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def sent(self, asked: Asked, *, is_endless: bool = False) -> aiohttp.ClientResponse:
        """The beginning of the answer to a request of an application; close it.

        Raises NotSent, and Unavailable("outcome_unknown") where it may have been carried out.
        """
        timeout = self._endless if is_endless else self._patience
        if isinstance(asked.sending.body, Upload):
            return await self._uploaded(asked, asked.sending.body, timeout)
        return await self._request(self._session, asked, timeout)

    async def _uploaded(
        self, asked: Asked, body: Upload, timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        try:
            # Its limit begins with the first bytes; until then there are those of the connection.
            async with asyncio.timeout(None) as limit:
                body.limit, body.patience_s = limit, self._timeout_s
                return await self._request(self._session, asked, timeout)
        except TimeoutError as error:
            raise _unknown(error) from error
        except Unavailable:
            if body.failed is not None:
                raise body.failed from None
            raise
        finally:
            body.limit = None

    async def _request(
        self, session: aiohttp.ClientSession, asked: Asked, timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        try:
            answer = await session.request(
                asked.method,
                # Query and all, so that nothing of it is read as anything else.
                self._base.with_path(self._prefix + asked.target, encoded=True),
                data=asked.sending,
                allow_redirects=False,
                timeout=timeout,
            )
        except aiohttp.ClientConnectorError as error:
            self._note(f"it cannot be reached: {error}")
            raise _not_sent(f"cannot be reached: {error}") from error
        except aiohttp.ConnectionTimeoutError as error:
            raise _not_sent(
                f"does not take a further connection (database.max_connections is "
                f"{self._max_connections}, and the endless answers are among them)"
            ) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            raise Dropped(UNKNOWN, _unknown(error).message) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _unknown(error) from error
        if answer.status < 200:
            answer.close()
            raise _unknown(ValueError(f"it answers {answer.status}"))
        return answer

    async def answer(self, asked: Asked) -> Answer:
        """The answer to a request of an application, read whole. Raises as `sent`."""
        return await self._answer(self._session, asked)

    async def ask(self, ask: Ask) -> Answer:
        """Ask something of our own. Raises as `sent`."""
        headers: CIMultiDict[str] = CIMultiDict()
        if ask.body:
            headers[hdrs.CONTENT_TYPE] = "application/json"
        if self._token:
            headers[hdrs.AUTHORIZATION] = f"Bearer {self._token}"
        return await self._answer(
            self._own, Asked(ask.method, ask.path, Sending(headers, ask.body or None))
        )

    async def _answer(self, session: aiohttp.ClientSession, asked: Asked) -> Answer:
        async with await self._request(session, asked, self._patience) as answer:
            head, encoding = passing(answer), answer.headers.get(hdrs.CONTENT_ENCODING)
            body = await read(answer)
            return Answer(answer.status, answer.reason, head, body, answer.content_length, encoding)

    async def watch(self) -> None:
        """Ask for ever whether it serves."""
        serves = Asked("GET", self._health_path, Sending(CIMultiDict(), None))
        while True:
            try:
                answer = await self._answer(self._own, serves)
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


def passing(answer: aiohttp.ClientResponse) -> Head:
    """What passes on of its headers: who served it is for the sidecar to say."""
    return end_to_end(answer.raw_headers, _DROPPED)


async def read(answer: aiohttp.ClientResponse) -> bytes:
    """The rest of an answer. Raises Unavailable("outcome_unknown") where it breaks off."""
    try:
        return await answer.read()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise _unknown(error) from error


def _session(connections: int) -> aiohttp.ClientSession:
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=KEEPALIVE_S),
        # What one client is given, another must never send.
        cookie_jar=aiohttp.DummyCookieJar(),
        **PASSES,
    )
    # It would repeat PUT and DELETE on a connection that ends, and those may be writes.
    session._retry_connection = False
    return session


def _not_sent(why: str) -> NotSent:
    return NotSent("database_unavailable", f"the database of this node {why}")


def _unknown(error: BaseException) -> Unavailable:
    return Unavailable(
        UNKNOWN,
        "the database did not answer after the request was sent, so nobody knows whether it was "
        f"carried out: {error or 'silence'}",
    )
