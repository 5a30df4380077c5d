"""The app listener in proxy mode: what becomes of each request of an application.

Owns which requests are known, where they are served, and what is passed on unchanged. A request
that another node forwards comes to the peer listener, under a prefix, and is served here alone.
"""

import logging
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import aiohttp
from aiohttp import hdrs, web

from sidecar import request_ids
from sidecar.api import headers, waits
from sidecar.api.answers import Answers, Route
from sidecar.api.listener import AppListener, WhileClientStays
from sidecar.api.native import ANSWERS, OF_APPLICATIONS, serve_looks
from sidecar.api.served import Partitions, Served
from sidecar.core.concern import WriteConcern
from sidecar.core.router import RequestType
from sidecar.dialects.dialect import Call, Dialect, Kind, Request
from sidecar.errors import Refused, Unavailable
from sidecar.hops import (
    HEADS,
    SMALL_BYTES,
    Body,
    Passed,
    Upload,
    body_of,
    relay,
    sending,
    target_of,
)
from sidecar.peer.forward import DATABASE_PREFIX, FROM_DATABASE, NOT_OF_NODE, Forwarder
from sidecar.proxy.database import Answer, Asked, Database, Dropped, NotSent, passing, read
from sidecar.proxy.writes import Behind, Writes
from sidecar.security.app_keys import AppKeys
from sidecar.store.calls import Written

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
"""Of what is looked into."""

MAX_TOKENS: Final = 100_000

TYPES = {Kind.READ: RequestType.READ, Kind.WRITE: RequestType.WRITE}


class Issued:
    """The consistency tokens that this database has given lately; others are taken for foreign."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, token: str) -> bool:
        return token in self._tokens

    def add(self, token: str) -> None:
        self._tokens[token] = None
        self._tokens.move_to_end(token)
        if len(self._tokens) > MAX_TOKENS:
            self._tokens.popitem(last=False)


class _Came(NamedTuple):
    """A request as it came. target: path and query, byte for byte; tenant: "" for control."""

    request: web.Request
    target: str
    call: Call
    tenant: str
    asked: Request


class Front:
    """Serves the API of the database."""

    def __init__(
        self,
        partitions: Partitions,
        dialect: Dialect,
        database: Database,
        forwarder: Forwarder,
        answers: Answers,
        *,
        behind: Callable[[Served], Behind | None],
        writes: Writes | None,
        passes_unknown: bool,
        keys: AppKeys | None = None,
    ) -> None:
        """behind: what stands between a partition and the database. writes: None where nothing is
        replicated. passes_unknown: what the dialect does not know goes to the database, too.
        keys: what applications show; None: nothing.
        """
        self._partitions, self._dialect, self._database = partitions, dialect, database
        self._forwarder, self._answers, self._behind = forwarder, answers, behind
        self._writes, self._passes_unknown = writes, passes_unknown
        self._served_by = (b"X-Served-By", answers.served_by.encode())
        self._issued = Issued()
        self._keys = keys
        self.misunderstood = 0

    # -- where it is served -----------------------------------------------------------------------

    async def from_application(self, request: web.Request) -> web.StreamResponse:
        """A request of an application."""
        came = self._came(request, target_of(request))
        if self._keys is not None:
            self._keys.check(request, came.tenant or None)

        async def here(_: web.Request) -> web.StreamResponse:
            return await self._here(came)

        call = came.call
        if call.kind is Kind.CONTROL:
            with WhileClientStays(request):
                return await self._stream(came)
        self._partitions.of(came.tenant)
        if _must_end(call):
            return await self._forwarder.serve(request, RequestType.WRITE, came.tenant, here)
        with WhileClientStays(request):
            return await self._forwarder.serve(
                request, TYPES[call.kind], came.tenant, here, is_endless=call.is_endless
            )

    async def from_node(self, request: web.Request) -> web.StreamResponse:
        """The same, forwarded by another node."""
        came = self._came(request, target_of(request).removeprefix(DATABASE_PREFIX))
        if _must_end(came.call):
            answer = await self._here(came)
        else:
            with WhileClientStays(request):
                answer = await self._here(came)
        if answer.status in NOT_OF_NODE and isinstance(answer, Passed):
            # It may have been carried out all the same.
            answer.head.append((FROM_DATABASE, b"yes"))
        return answer

    def _came(self, request: web.Request, target: str) -> _Came:
        path, _, query = target.partition("?")
        call = self._call_of(request.method, path)
        tenant = self._dialect.tenant_of(path) if call.kind is not Kind.CONTROL else ""
        return _Came(request, target, call, tenant, Request(request.method, path, query))

    def _call_of(self, method: str, path: str) -> Call:
        call = self._dialect.call_of(method, path)
        if call is not None:
            return call
        if self._passes_unknown:
            return Call("unknown", Kind.CONTROL)
        raise Refused(
            "not_replicated",
            f"{method} {path[:200]}: the dialect {self._dialect.name} does not know this call, and "
            "a write that passes unseen would let the regions drift apart (database.on_unknown: "
            "pass sends it to this region's database alone)",
            501,
        )

    # -- how it is served here --------------------------------------------------------------------

    async def _here(self, came: _Came) -> web.StreamResponse:
        if came.call.kind is Kind.CONTROL:
            return await self._stream(came)
        here = self._partitions.of(came.tenant)
        if came.call.kind is Kind.READ:
            await self._reach(came.request, here)
            return await self._stream(came)
        return await self._write(came, here)

    async def _reach(self, request: web.Request, here: Served) -> None:
        """Wait until the database has what a token names."""
        consistency = headers.consistency_of(request.headers)
        if consistency is None:
            return
        await waits.reach(here, consistency)
        behind = self._behind(here)
        if behind is None:
            return
        if not await behind.applier.wait_applied(here.store.revision, consistency.timeout_s):
            raise Refused(
                "token_not_reached",
                f"the database of node {here.store.node} has not been told everything that "
                f"X-Revision-Token names within {consistency.timeout_s * 1000:.0f} ms; try again, "
                "or wait longer (X-Consistency-Timeout-Ms)",
                409,
            )

    async def _stream(self, came: _Came) -> web.StreamResponse:
        """Passed on both ways as it comes."""
        if came.call.looks_inside:
            _, asked = await self._looked_into(came)
        else:
            local = self._dialect.localized(came.call, came.asked, self._issued.__contains__)
            asked = _asked(came, local, await body_of(came.request))
        try:
            async with await self._sent(came.call, asked) as answer:
                return await self._pass_back(came.request, came.call, answer)
        except NotSent:
            raise
        except Unavailable as unavailable:
            if came.call.kind is not Kind.READ:
                raise
            raise Unavailable("database_unavailable", unavailable.message) from unavailable

    async def _sent(self, call: Call, asked: Asked) -> aiohttp.ClientResponse:
        try:
            return await self._database.sent(asked, is_endless=call.is_endless)
        except Dropped:
            if call.kind is not Kind.READ or isinstance(asked.sending.body, Upload):
                raise
            # It was closed while it was idle, mostly; a read may be done again.
            return await self._database.sent(asked, is_endless=call.is_endless)

    async def _looked_into(self, came: _Came) -> tuple[Request, Asked]:
        """The request for this region's database: decompressed, and as it goes on."""
        body = await came.request.read()
        inside = _inside(came.request, body)
        asked = came.asked._replace(body=inside)
        local = self._dialect.localized(came.call, asked, self._issued.__contains__)
        if local.body == inside:
            return local, _asked(came, local, body or None)
        rewritten = _asked(came, local, local.body)
        rewritten.sending.headers.popall(hdrs.CONTENT_ENCODING, None)
        return local, rewritten

    async def _pass_back(
        self, request: web.Request, call: Call, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        head = passing(answer)
        head.append(self._served_by)
        length = answer.content_length
        if length is None or length > SMALL_BYTES:
            request_ids.add_to(head)
            return await relay(request, answer, head, whose="the database")
        body = await read(answer)
        if call.looks_inside:
            encoding = answer.headers.get(hdrs.CONTENT_ENCODING)
            self._note_tokens(call, answer.status, encoding, body)
        return Passed(answer.status, answer.reason, head, length, body)

    def _note_tokens(self, call: Call, status: int, encoding: str | None, body: bytes) -> None:
        if status == 200 and encoding is None:
            for token in self._dialect.tokens_of(call, body):
                self._issued.add(token)

    # -- writes -----------------------------------------------------------------------------------

    async def _write(self, came: _Came, here: Served) -> web.StreamResponse:
        concern = headers.concern_of(came.request.headers)
        here.concerns.check(concern.level)
        here.store.check_fence()
        if not came.call.looks_inside:
            return await self._stream(came)
        local, asked = await self._looked_into(came)

        async def send() -> Answer:
            return await self._database.answer(asked)

        behind = self._behind(here)
        write = self._dialect.write_of(came.call, local)
        if write is None or self._writes is None or behind is None:
            answer, written = await send(), None
            if behind is not None and answer.is_done:
                self._note_misunderstood(came.call)
        else:
            answer, written = await self._writes.carry_out(behind, write, send)
        self._note_tokens(came.call, answer.status, answer.encoding, answer.body)
        answer.head.append(self._served_by)
        if written is not None:
            return await self._written(here, answer, written, concern)
        return _response(answer)

    async def _written(
        self, here: Served, answer: Answer, written: Written, concern: headers.Concern
    ) -> web.StreamResponse:
        token = waits.token_text(here, written.revision, written.vector)
        answer.head.append((b"X-Revision-Token", token.encode()))
        if concern.level is not WriteConcern.LOCAL:
            missing = await waits.hold(here, written, concern)
            if missing:
                failure = waits.concern_failure(concern, missing)
                text = f'{{{failure}"token":"{token}"}}'
                return self._answers.json(text, 504, {"X-Revision-Token": token})
        return _response(answer)

    def _note_misunderstood(self, call: Call) -> None:
        self.misunderstood += 1
        log.error(
            "the database has taken a write that the dialect does not understand: it is not "
            "replicated; `sidecar adopt` finds what it changed",
            extra={"call": call.name},
        )


def proxy_listener(
    peer: web.Application,
    front: Front,
    native: web.Application,
    probes: Mapping[str, Route],
    **options: Any,
) -> AppListener:
    """The runner that serves applications; GET of the paths of `probes` is this node's own.

    native: its calls that look at what is here, the feed among it, are served as well.

    peer: serves what other nodes forward; from there nothing is forwarded again. options: of
    AppRunner.
    """
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    answers = native[ANSWERS]
    for path, probe in probes.items():
        app.router.add_get(path, probe, allow_head=True)
    serve_looks(app, native, OF_APPLICATIONS)
    serve_looks(peer, native)
    app.on_shutdown.extend(native.on_shutdown)
    own = {resource.canonical for resource in app.router.resources()}
    to_database = answers.guarded(front.from_application)
    app.router.add_route(hdrs.METH_ANY, "/{path:.*}", to_database)

    def shortcut(request: web.Request) -> Route | None:
        # Looking for a route would take a tenth of the time of a read.
        path = request.raw_path.partition("?")[0]
        is_plain = path.startswith("/") and path not in own and hdrs.EXPECT not in request.headers
        return to_database if is_plain else None

    route = answers.guarded(front.from_node)
    peer.router.add_route(hdrs.METH_ANY, DATABASE_PREFIX + "/{path:.*}", route)
    return AppListener(app, answers, shortcut=shortcut, auto_decompress=False, **HEADS, **options)


def _must_end(call: Call) -> bool:
    """Whether it goes on when nobody waits for it any more: a write that is replicated."""
    return call.kind is Kind.WRITE and call.looks_inside


def _asked(came: _Came, local: Request, body: Body) -> Asked:
    """The request for the database: what has not changed goes on as it came."""
    is_same = (local.path, local.query) == (came.asked.path, came.asked.query)
    target = came.target if is_same else _line(local)
    return Asked(came.request.method, target, sending(came.request, body))


def _line(local: Request) -> str:
    return f"{local.path}?{local.query}" if local.query else local.path


def _response(answer: Answer) -> Passed:
    return Passed(answer.status, answer.reason, answer.head, answer.length, answer.body)


def _inside(request: web.Request, body: bytes) -> bytes:
    """The body as it was before it was compressed. Raises Refused."""
    encoding = request.headers.get(hdrs.CONTENT_ENCODING)
    if encoding is None or not body or (encoding := encoding.lower()) == "identity":
        return body
    if encoding not in {"gzip", "deflate"}:
        raise Refused(
            "unsupported_encoding",
            f"Content-Encoding {encoding[:80]!r}: this call must be looked into, and only gzip and "
            "deflate are undone",
            415,
        )
    packed = zlib.decompressobj(zlib.MAX_WBITS | (16 if encoding == "gzip" else 0))
    try:
        plain = packed.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise Refused("bad_body", f"the body cannot be decompressed: {error}") from None
    if len(plain) > MAX_BODY_BYTES:
        raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, len(plain))
    return plain
