"""The native API: the calls of the app listener, from request to store to answer.

Owns the paths, what a call does with the store, and the shape of its answer. Knows the store, not
Redis; bodies, headers, cursors and failures have modules of their own.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from aiohttp import hdrs, web

from sidecar.api import bodies, cursors, headers, waits
from sidecar.api.answers import Answers, Route, compact, relationship_json
from sidecar.api.listener import AppListener
from sidecar.api.openapi import app_document
from sidecar.api.served import Partitions, Served
from sidecar.api.watch import Watch, WatchLimits
from sidecar.core.concern import WriteConcern
from sidecar.core.relationship import Change, Relationship
from sidecar.core.router import RequestType
from sidecar.core.topology import Node
from sidecar.errors import Refused, Unavailable
from sidecar.openapi import OPENAPI, Documented
from sidecar.security.app_keys import AppKeys
from sidecar.store.calls import Filter, Page, WriteRequest, Written

Health = Callable[[], tuple[bool, Mapping[str, Any]]]
"""Whether this node serves, and the fields of the health answer (`reasons`: a list, if not)."""

Routed = Callable[[RequestType, Route], Route]
"""A call as it is, or another that lets the right node serve it."""

READ, WRITE = RequestType.READ, RequestType.WRITE
DEFAULT_LIST_LIMIT = 1000
LIST_BUDGET_S = 1.0
"""How long one `list` goes on collecting pages; then it answers with what it has and a cursor."""

WALK_LIMIT_S = 30.0
"""How long one `delete` by filter may search; then it deletes nothing and answers 503."""

LOOKS: Final = frozenset(
    {"/access/v1/relationships/list", "/access/v1/watch", "/access/v1/tenants"}
)
TENANTS: Final = "/access/v1/tenants"

ANSWERS: Final = web.AppKey("answers", Answers)
CALLS: Final = web.AppKey("calls", dict)
"""As other nodes ask for them."""

OF_APPLICATIONS: Final = web.AppKey("calls of applications", dict)


def native_app(
    partitions: Partitions,
    *,
    node: Node,
    health: Health,
    answers: Answers | None = None,
    watch_limits: WatchLimits | None = None,
    probes: Mapping[str, Route] | None = None,
    routed: Routed = lambda _, route: route,
    keys: AppKeys | None = None,
) -> web.Application:
    """The application of the app listener; serve it with `app_listener`.

    answers: those of the whole node. probes: path -> what a GET of it answers. routed: lets another
    node serve a call where this one does not. keys: what applications show; None: nothing.
    """
    answers = answers or Answers(node)
    native = Native(partitions, answers)
    watch = Watch(partitions, answers, watch_limits or WatchLimits(), waits.reach)
    app = web.Application(client_max_size=bodies.MAX_BODY_BYTES)
    app[ANSWERS] = answers
    calls: dict[tuple[str, str], tuple[RequestType | None, Route]] = {
        ("POST", "/access/v1/relationships/write"): (WRITE, native.write_relationships),
        ("POST", "/access/v1/relationships/delete"): (WRITE, native.delete_relationships),
        ("POST", "/access/v1/relationships/update"): (WRITE, native.update_relationships),
        ("POST", "/access/v1/relationships/list"): (READ, native.list_relationships),
        ("POST", "/access/v1/evaluation"): (READ, native.evaluate),
        # Its cursors belong to this node: elsewhere a watcher could not go on.
        ("POST", "/access/v1/watch"): (None, watch.stream),
        # Another node may not tell this one's region all that it has.
        ("GET", "/access/v1/tenants"): (None, native.list_tenants),
    }
    routes: dict[tuple[str, str], Route] = {
        place: answers.guarded(
            _keyed(
                keys,
                place[1],
                native.if_here(routed(request_type, call)) if request_type else call,
            )
        )
        for place, (request_type, call) in calls.items()
    }
    app[OF_APPLICATIONS] = dict(routes)
    routes["GET", "/health"] = _health_route(answers, node, health)
    routes["GET", OPENAPI] = answers.guarded(Documented(app_document(), answers).get)
    routes |= {("GET", path): route for path, route in (probes or {}).items()}
    app[CALLS] = {place: answers.guarded(call) for place, (_, call) in calls.items()}
    expect = _expect_route(answers)
    for (method, path), route in routes.items():
        app.router.add_route(method, path, route, expect_handler=expect)
        # Routes of our own for what aiohttp would answer in plain text; no middleware, which every
        # request would pay for.
        refuse = _refuse_method(answers, method, path)
        app.router.add_route(hdrs.METH_ANY, path, refuse, expect_handler=expect)
    missing = _missing_route(answers, sorted(path for _, path in routes))
    app.router.add_route(hdrs.METH_ANY, "/{path:.*}", missing, expect_handler=expect)
    app.on_shutdown.append(watch.end)
    app.on_shutdown.append(native.end)
    return app


def app_listener(app: web.Application, **options: Any) -> AppListener:
    """The runner that serves an application of `native_app`; options are AppRunner's."""
    return AppListener(app, app[ANSWERS], **options)


def serve_looks(
    app: web.Application, native: web.Application, calls: web.AppKey[Any] = CALLS
) -> None:
    """Serve of the calls of `native` those that show what is here and change nothing."""
    for (method, path), call in native[calls].items():
        if path in LOOKS:
            app.router.add_route(method, path, call)


def serve_forwarded(peer: web.Application, native: web.Application) -> None:
    """Serve the calls of `native` to other nodes as well; from here nothing is forwarded again."""
    for (method, path), call in native[CALLS].items():
        peer.router.add_route(method, path, call)


def _keyed(keys: AppKeys | None, path: str, route: Route) -> Route:
    """The route, for who shows a key that opens the tenant; one call concerns all of them."""
    if keys is None:
        return route

    async def answer(request: web.Request) -> web.StreamResponse:
        keys.check(request, None if path == TENANTS else headers.tenant_of(request.headers))
        return await route(request)

    return answer


class Native:
    """The calls that answer once."""

    def __init__(self, partitions: Partitions, answers: Answers) -> None:
        self._partitions = partitions
        self._answers = answers

    def if_here(self, route: Route) -> Route:
        """The call, where its tenant may be in this region: nothing of any other is passed on."""

        async def answer(request: web.Request) -> web.StreamResponse:
            self._partitions.of(headers.tenant_of(request.headers))
            return await route(request)

        return answer

    async def write_relationships(self, request: web.Request) -> web.Response:
        """`relationships/write`: insert all, in one transaction."""
        here, write, raw, concern = await self._begin_write(request)
        body = bodies.parse(bodies.WRITE, raw)
        changes = bodies.inserts(write.tenant, body["relationships"])
        written = await self._commit(here, write, changes, body.get("expected_revision"))
        counts = f'"relationships_written":{written.written},'
        return await self._written(here, written, concern, counts)

    async def delete_relationships(self, request: web.Request) -> web.Response:
        """`relationships/delete`: those named, or those that match a filter."""
        here, write, raw, concern = await self._begin_write(request)
        body = bodies.parse(bodies.DELETE, raw)
        if ("relationships" in body) == ("filter" in body):
            raise Refused("invalid_request", "the body: give either relationships or filter")
        expected = body.get("expected_revision")
        if "relationships" in body:
            if "limit" in body:
                raise Refused("invalid_request", "limit: goes with filter, not with relationships")
            changes = bodies.deletes(write.tenant, body["relationships"])
            written = await self._commit(here, write, changes, expected)
            return await self._deleted(here, written, concern)
        if not body["filter"]:
            raise Refused(
                "invalid_request",
                "filter: name at least one of resource, resource_type, relation, subject",
            )
        wanted = bodies.filter_of(write.tenant, body["filter"], "filter.")
        found, page = await self._matching(here, wanted, body.get("limit"))
        if not found and write.idempotency_key is None:
            nothing = Written(page.revision, 0, 0, page.vector)
            return await self._deleted(here, nothing, headers.NO_CONCERN)
        # With a key also nothing is written: a repeat must find that this request was answered.
        changes = [bodies.deletion(one) for one in found]
        written = await self._commit(here, write, changes, expected)
        return await self._deleted(here, written, concern)

    async def update_relationships(self, request: web.Request) -> web.Response:
        """`relationships/update`: inserts and deletes, in one transaction."""
        here, write, raw, concern = await self._begin_write(request)
        body = bodies.parse(bodies.UPDATE, raw)
        changes = bodies.updates(write.tenant, body["updates"])
        written = await self._commit(here, write, changes, body.get("expected_revision"))
        return await self._written(
            here,
            written,
            concern,
            f'"relationships_written":{written.written},"relationships_deleted":{written.deleted},',
        )

    async def list_relationships(self, request: web.Request) -> web.Response:
        """`relationships/list`: what is visible on this node, a page at a time."""
        headers.check_body_headers(request)
        tenant = headers.tenant_of(request.headers)
        here = self._partitions.of(tenant)
        consistency = headers.consistency_of(request.headers)
        body = bodies.parse(bodies.LIST, await request.read())
        wanted = bodies.filter_of(tenant, body)
        text = body.get("cursor")
        cursor = None if text is None else cursors.unseal(text, here.store.scope, wanted)
        await waits.reach(here, consistency)
        found, first, last = await self._collect(
            here, wanted, body.get("limit", DEFAULT_LIST_LIMIT), cursor
        )
        rest = None
        if last.cursor is not None:
            rest = cursors.seal(last.cursor, here.store.scope, wanted)
        # The revision of the first page guards what all pages showed (`expected_revision`); the
        # vector of the last one covers it.
        token = waits.token_text(here, last.revision, last.vector)
        return self._answers.json(
            f'{{"relationships":[{",".join(map(relationship_json, found))}],'
            f'"cursor":{compact(rest)},"revision":"{first.revision}","token":"{token}"}}',
            headers={"X-Revision-Token": token},
        )

    async def evaluate(self, request: web.Request) -> web.Response:
        """`evaluation`: whether exactly this relationship is there, unconditionally.

        A condition can only be judged by an engine that knows its language, which a bare store
        does not have: a relationship that has one grants nothing here.
        """
        headers.check_body_headers(request)
        tenant = headers.tenant_of(request.headers)
        here = self._partitions.of(tenant)
        consistency = headers.consistency_of(request.headers)
        body = bodies.parse(bodies.EVALUATION, await request.read())
        resource, relation, subject = bodies.question_of(body)
        await waits.reach(here, consistency)
        found = await here.store.find(tenant, resource, relation, subject)
        is_granted = found is not None and found.condition is None
        return self._answers.json('{"decision":true}' if is_granted else '{"decision":false}')

    async def list_tenants(self, request: web.Request) -> web.Response:
        """`tenants`: those that have had relationships on this node."""
        found = [tenant for here in self._partitions for tenant in await here.store.tenants()]
        return self._answers.json(compact({"tenants": sorted(found)}))

    # ---- steps the calls share ----------------------------------------------------------------

    async def _begin_write(
        self, request: web.Request
    ) -> tuple[Served, WriteRequest, bytes, headers.Concern]:
        """Where a write goes, what its headers say, and its body; the changes come later."""
        headers.check_body_headers(request)
        tenant = headers.tenant_of(request.headers)
        here = self._partitions.of(tenant)
        concern = headers.concern_of(request.headers)
        here.concerns.check(concern.level)
        key = headers.idempotency_key_of(request.headers)
        raw = await request.read()
        # Also a deletion that finds nothing to delete is the primary's to answer.
        here.store.check_fence()
        bound = "" if key is None else headers.request_hash(request.path, tenant, raw)
        return here, WriteRequest(tenant, (), None, key, bound), raw, concern

    async def _commit(
        self, here: Served, begun: WriteRequest, changes: list[Change], expected: str | None
    ) -> Written:
        return await here.store.write(
            WriteRequest(
                begun.tenant,
                changes,
                None if expected is None else int(expected),
                begun.idempotency_key,
                begun.request_hash,
            )
        )

    async def _written(
        self, here: Served, written: Written, concern: headers.Concern, counts: str
    ) -> web.Response:
        """The answer to a write, once enough regions have it; 504 when they do not in time."""
        is_held = concern.level is not WriteConcern.LOCAL
        missing = await waits.hold(here, written, concern) if is_held else []
        token = waits.token_text(here, written.revision, written.vector)
        extra = {"X-Revision-Token": token}
        if written.replayed:
            extra["Idempotency-Replayed"] = "true"
        failure = waits.concern_failure(concern, missing) if missing else ""
        return self._answers.json(
            f'{{{failure}"revision":"{written.revision}",{counts}"token":"{token}"}}',
            504 if missing else 200,
            extra,
        )

    async def _deleted(
        self, here: Served, written: Written, concern: headers.Concern
    ) -> web.Response:
        counts = f'"relationships_deleted":{written.deleted},'
        return await self._written(here, written, concern, counts)

    async def end(self, app: web.Application) -> None:
        """This node ends: those that wait for other regions do not hold it up."""
        for here in self._partitions:
            here.concerns.end()

    async def _collect(
        self, here: Served, wanted: Filter, limit: int, cursor: str | None
    ) -> tuple[list[Relationship], Page, Page]:
        """Up to `limit` relationships, and the first and the last page of the store they are of."""
        ends_at = asyncio.get_running_loop().time() + LIST_BUDGET_S
        first = page = await here.store.read_page(wanted, limit, cursor)
        found = _by_identity(page.relationships)
        while page.cursor is not None and len(found) < limit:
            if asyncio.get_running_loop().time() > ends_at:
                break
            page = await here.store.read_page(wanted, limit - len(found), page.cursor)
            found |= _by_identity(page.relationships)
        return list(found.values()), first, page

    async def _matching(
        self, here: Served, wanted: Filter, limit: int | None
    ) -> tuple[list[Relationship], Page]:
        """What a filter matches: all, at most MAX_CHANGES, or the first `limit`."""
        most = bodies.MAX_CHANGES + 1 if limit is None else limit
        ends_at = asyncio.get_running_loop().time() + WALK_LIMIT_S
        found: dict[tuple[str, str, str, str], Relationship] = {}
        cursor = None
        while True:
            page = await here.store.read_page(wanted, most - len(found), cursor)
            found |= _by_identity(page.relationships)
            cursor = page.cursor
            if cursor is None or len(found) >= most:
                break
            if asyncio.get_running_loop().time() > ends_at:
                raise Unavailable(
                    "search_too_long",
                    f"the search for what matches took more than {WALK_LIMIT_S:.0f} s and nothing "
                    "was deleted; name a resource, a subject or a resource type in filter, or "
                    "pass a limit",
                )
        if limit is None and len(found) > bodies.MAX_CHANGES:
            raise Refused(
                "too_many_relationships",
                f"filter: more than {bodies.MAX_CHANGES} relationships match and nothing was "
                "deleted; pass limit (1 to 5000) and repeat until relationships_deleted is 0",
                413,
            )
        # A page may be a few longer than asked for.
        return list(found.values())[:most], page


def _by_identity(found: list[Relationship]) -> dict[tuple[str, str, str, str], Relationship]:
    # A walk over a large collection may meet a relationship twice.
    return {one.identity: one for one in found}


# ---- routes that need no store ----------------------------------------------------------------


def _health_route(answers: Answers, node: Node, health: Health) -> Any:
    async def route(request: web.Request) -> web.Response:
        is_healthy, fields = health()
        shown = {"node": str(node.id), "region": str(node.region), **fields}
        if is_healthy:
            return answers.json(compact({"status": "healthy", **shown}))
        reasons = [str(reason) for reason in fields.get("reasons", ())]
        failure = {
            "error": "unhealthy",
            "message": "; ".join(reasons) or "this node does not serve",
        }
        return answers.json(
            compact({"status": "unhealthy", **failure, **shown}), 503, {"Retry-After": "1"}
        )

    return route


def _refuse_method(answers: Answers, method: str, path: str) -> Any:
    allowed = "GET, HEAD" if method == "GET" else method

    async def route(request: web.Request) -> web.Response:
        message = f"{path} takes {allowed}, not {request.method}"
        return answers.http(405, message, {"Allow": allowed})

    return route


def _missing_route(answers: Answers, paths: list[str]) -> Any:
    known = ", ".join(paths)

    async def route(request: web.Request) -> web.Response:
        return answers.http(404, f"there is no {request.path[:120]}; the paths are {known}")

    return route


def _expect_route(answers: Answers) -> Any:
    async def route(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
            return answers.http(417)
        if (request.content_length or 0) > bodies.MAX_BODY_BYTES:
            refused = answers.too_large(bodies.MAX_BODY_BYTES)
            refused.force_close()
            return refused
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun
        return None

    return route
