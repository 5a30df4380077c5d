"""What an HTTP proxy does with messages that pass through it: targets, headers, bodies, answers.

Nothing here knows where a message goes. What passes is not looked into and not tidied: a target, a
header or a reason reaches the other side with the bytes that it came with.
"""

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from email.utils import formatdate
from typing import Any, Final, NamedTuple

import aiohttp
from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_writer import StreamWriter
from multidict import CIMultiDict

from sidecar.errors import Refused

HOP_BY_HOP: Final = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te"),
        *(b"trailer", b"transfer-encoding", b"upgrade", b"proxy-connection"),
        # Made anew.
        b"content-length",
        # Ours, between nodes: from elsewhere it is nobody's.
        b"x-sidecar-request-id",
    }
)
"""About the link alone (RFC 9110, 7.6.1)."""

ASKED: Final = HOP_BY_HOP | {
    *(b"host", b"expect"),
    # Between an application or a node and this one, and nobody else's business.
    *(b"x-sidecar-key", b"x-sidecar-signature", b"x-sidecar-from-database", b"x-sidecar-admin"),
}
"""The same of a request."""

OWN_AUTHORIZATION: Final = web.RequestKey("authorization is ours", bool)
"""Of a request whose `Authorization` is a key of the sidecar: it is not passed on."""

MAX_LINE_BYTES: Final = 32_768
"""Of a request line and of each header; longer ones are refused. Cookies and filters are long."""

MAX_HEADERS: Final = 256

SMALL_BYTES: Final = 64 * 1024
"""Bodies up to this length are read whole and passed on in one piece."""

HEADS: Final[dict[str, Any]] = {
    "max_line_size": MAX_LINE_BYTES,
    "max_field_size": MAX_LINE_BYTES,
    "max_headers": MAX_HEADERS,
}
"""Options of a client session or of a server that take heads as large as those that pass."""

_NO_DEFAULTS = CIMultiDict({hdrs.CONTENT_TYPE: None})


class Sending(NamedTuple):
    """What a request is made of, as `data` of a session that passes requests (`PASSES`)."""

    headers: CIMultiDict[str]
    body: "Body"


class _Sent(aiohttp.ClientRequest):
    """A request to which no header is added but `Host` and the framing, and none is merged.

    What is there whole leaves at once with its head, without a task of its own.
    """

    _whole = b""

    def update_auto_headers(self, skip_auto_headers: object) -> None:
        self._skip_auto_headers = _NO_DEFAULTS

    def update_body_from_data(self, body: Any, _stacklevel: int = 3) -> None:
        assert isinstance(body, Sending)
        self.headers.extend(body.headers)
        if isinstance(body.body, bytes):
            self._whole = body.body
            self.headers[hdrs.CONTENT_LENGTH] = str(len(body.body))
        else:
            super().update_body_from_data(body.body, _stacklevel + 1)

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        answer = await super().send(conn)
        if self._whole:
            conn.protocol.transport.write(self._whole)
        return answer


PASSES: Final[dict[str, Any]] = {"request_class": _Sent, "auto_decompress": False, **HEADS}
"""Options of a client session that adds nothing and changes nothing."""

RawHeaders = Sequence[tuple[bytes, bytes]]
Head = list[tuple[bytes, bytes]]
"""Headers as bytes, in their order."""

_ABSOLUTE = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
_TAKEN: Final = web.RequestKey("body taken", bool)


def target_of(request: web.Request) -> str:
    """Path and query as they came; of an absolute target without what it begins with.

    Raises Refused.
    """
    target = request.raw_path
    if not target.startswith("/"):
        if (found := _ABSOLUTE.match(target)) is None:
            raise Refused("bad_target", f"{target[:200]!r} is not a path")
        target = target[found.end() :]
        target = target if target.startswith("/") else f"/{target}"
    return target


def end_to_end(raw: RawHeaders, dropped: frozenset[bytes] = HOP_BY_HOP) -> Head:
    """The headers that pass a proxy: with every repetition, and spelled as they came.

    dropped: their names in small letters, `connection` among them.
    """
    kept, named = [], b""
    for pair in raw:
        name = pair[0].lower()
        if name not in dropped:
            kept.append(pair)
        elif name == b"connection":
            named += pair[1].lower() + b","
    if not named:
        return kept
    others = {each.strip() for each in named.split(b",")}
    return [pair for pair in kept if pair[0].lower() not in others]


def sending(request: web.Request, body: "Body") -> Sending:
    """A request as the other side gets it. Raises Refused."""
    dropped = ASKED | {b"authorization"} if request.get(OWN_AUTHORIZATION) else ASKED
    passing = end_to_end(request.raw_headers, dropped)
    try:
        headers = CIMultiDict((name.decode(), value.decode()) for name, value in passing)
    except UnicodeDecodeError:
        # The HTTP client would drop such bytes: better nothing passes than something else.
        raise Refused("not_utf8", "a header has bytes that are no UTF-8") from None
    if isinstance(body, Upload) and (length := request.headers.get(hdrs.CONTENT_LENGTH)):
        headers[hdrs.CONTENT_LENGTH] = length
    return Sending(headers, body)


# -- bodies of requests ----------------------------------------------------------------------------


class Upload:
    """The body of a request, passed on as it comes and therefore once.

    `limit` is moved along while it waits for the other side, and stands still while it waits for
    the client; None: no limit. failed: what went wrong on the client's side.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.limit: asyncio.Timeout | None = None
        self.patience_s = 0.0
        self.failed: BaseException | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._request[_TAKEN] = True
        try:
            async for chunk in self._request.content.iter_any():
                self._wait(self.patience_s)
                yield chunk
                self._wait(None)
        except (web.RequestPayloadError, OSError) as failure:
            self.failed = failure
            raise
        self._wait(self.patience_s)

    def _wait(self, seconds: float | None) -> None:
        if self.limit is not None and not self.limit.expired():
            now = asyncio.get_running_loop().time()
            self.limit.reschedule(None if seconds is None else now + seconds)


Body = bytes | Upload | None


async def body_of(request: web.Request) -> Body:
    """The body of a request: small ones and those that were read before whole, others once."""
    if not request.body_exists:
        return None
    length = request.content_length
    if (length is not None and length <= SMALL_BYTES) or request.content.at_eof():
        return await request.read() or None
    return Upload(request)


def can_go_on(request: web.Request) -> bool:
    """Whether the body of a request can still be passed on: not when it went elsewhere, once."""
    return not request.get(_TAKEN, False)


# -- answers ---------------------------------------------------------------------------------------


class Passed(web.StreamResponse):
    """An answer of another server, whose head is made of the bytes that it came with.

    Only `Date` is added where there is none (RFC 9110, 6.6.1). head: end to end. length: as it
    said, also where there is no body: to HEAD, and with 304. body: all of it, or None where it is
    written bit by bit.
    """

    def __init__(
        self, status: int, reason: str | None, head: Head, length: int | None, body: bytes | None
    ) -> None:
        super().__init__(status=status, reason=reason)
        self.head, self._length, self._whole = head, length, body or b""
        self._send_headers_immediately = body is None

    async def _start(self, request: web.BaseRequest) -> AbstractStreamWriter:
        self._req = request
        writer = self._payload_writer = request._payload_writer
        assert isinstance(writer, StreamWriter)
        version = request.version
        line = f"HTTP/{version[0]}.{version[1]} {self._status} {self._reason}\r\n"
        fields = [*self.head, *self._framing(request, writer)]
        if b"date" not in [name.lower() for name, _ in self.head]:
            fields.append((b"Date", formatdate(usegmt=True).encode()))
        writer._headers_buf = b"%s%s\r\n" % (
            line.encode("utf-8", "surrogateescape"),
            b"".join([b"%s: %s\r\n" % field for field in fields]),
        )
        if self._send_headers_immediately:
            writer.send_headers()
        return writer

    def _framing(self, request: web.BaseRequest, writer: StreamWriter) -> Head:
        is_new = request.version >= aiohttp.HttpVersion11
        keep_alive = request.keep_alive if self._keep_alive is None else self._keep_alive
        fields: Head = []
        if self._length is not None:
            if self.status != 204:
                fields.append((b"Content-Length", b"%d" % self._length))
            writer.length = 0 if self._must_be_empty_body else self._length
        elif not self._must_be_empty_body:
            if is_new:
                writer.enable_chunking()
                fields.append((b"Transfer-Encoding", b"chunked"))
            else:
                keep_alive = False
        if keep_alive is not is_new:
            fields.append((b"Connection", b"keep-alive" if keep_alive else b"close"))
        self._keep_alive = keep_alive
        return fields

    async def write_eof(self, data: bytes = b"") -> None:
        whole, self._whole = self._whole, b""
        await super().write_eof(b"" if self._must_be_empty_body else data or whole)


async def relay(
    request: web.Request,
    answer: aiohttp.ClientResponse,
    head: Head,
    *,
    whose: str,
) -> web.StreamResponse:
    """Pass an answer on as it comes. Raises ConnectionResetError where it breaks off."""
    length = answer.content_length
    response = Passed(answer.status, answer.reason, head, length, None)
    if length is None:
        _be_patient(answer)
    await response.prepare(request)
    try:
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
    except (aiohttp.ClientError, TimeoutError) as error:
        # The client must not take this for the whole answer.
        if length is None and request.version < aiohttp.HttpVersion11:
            _reset(request)
        raise ConnectionResetError(f"the answer of {whose} broke off") from error
    await response.write_eof()
    return response


def _reset(request: web.Request) -> None:
    """End a connection on which an ordinary end would be that of a whole answer."""
    if request.transport is not None:
        at_once = struct.pack("ii", 1, 0)
        end = request.transport.get_extra_info("socket")
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        request.transport.abort()


def _be_patient(answer: aiohttp.ClientResponse) -> None:
    """An answer without a length may go on for ever, and be silent in between."""
    if answer.connection is not None and answer.connection.protocol is not None:
        answer.connection.protocol.read_timeout = None
        answer.connection.protocol.start_timeout()
