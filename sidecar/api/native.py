"""The native API: the calls of the app listener, from request to store to answer.

Owns the paths, what a call does with the store, and the shape of its answer. Knows the store, not
Redis; bodies, headers, cursors and failures have modules of their own.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from aiohttp import hdrs, web

from sidecar.agent.concern import Concerns
from sidecar.agent.tail import Tail
from sidecar.api import bodies, cursors, headers
from sidecar.api.answers import Answers, Route, compact, relationship_json
from sidecar.api.listener import AppListener
from sidecar.api.watch import Watch, WatchLimits
from sidecar.core.concern import WriteConcern
from sidecar.core.relationship import Change, Relationship
from sidecar.core.router import RequestType
from sidecar.core.token import Token
from sidecar.core.topology import Node
from sidecar.core.vector import Vector, covers, newest_origins, node_of
from sidecar.errors import Refused, Unavailable
from sidecar.store.calls import Filter, Page, WriteRequest, Written
from sidecar.store.redis_store import RedisStore

Health = Callable[[], tuple[bool, Mapping[str, Any]]]
"""Whether this node serves, and the fields of the health answer (`reasons`: a list, if not)."""

Routed = Callable[[RequestType, Route], Route]
"""A call as it is, or another that lets the right node serve it."""

LostOf = Callable[[Vector], str | None]
"""An origin of which a vector names writes that no node has any more."""

StrangerAmong = Callable[[Collection[str]], str | None]
"""One of these nodes that belongs to no deployment this node knows of."""

READ, WRITE = RequestType.READ, RequestType.WRITE
DEFAULT_LIST_LIMIT = 1000
LIST_BUDGET_S = 1.0
"""How long one `list` goes on collecting pages; then it answers with what it has and a cursor."""

WALK_LIMIT_S = 30.0
"""How long one `delete` by filter may search; then it deletes nothing and answers 503."""

ANSWERS: Final = web.AppKey("answers", Answers)
CALLS: Final = web.AppKey("calls", dict)


def native_app(
    *,
    store: RedisStore,
    tail: Tail,
    node: Node,
    health: Health,
    watch_limits: WatchLimits | None = None,
    concerns: Concerns | None = None,
    lost_of: LostOf = lambda vector: None,
    stranger_among: StrangerAmong = lambda nodes: None,
    routed: Routed = lambda _, route: route,
) -> web.Application:
    """The application of the app listener; serve it with `app_listener`.

    concerns: None is a node without others. routed: lets another node serve a call where this one
    does not.
    """
    answers = Answers(node)
    concerns = concerns or Concerns(store, {node.id: node.region})
    native = Native(store, answers, concerns, lost_of, stranger_among)
    watch = Watch(store, tail, answers, watch_limits or WatchLimits(), native.reach)
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
        ("GET", "/access/v1/tenants"): (READ, native.list_tenants),
    }
    routes: dict[tuple[str, str], Route] = {
        place: answers.guarded(routed(request_type, call) if request_type else call)
        for place, (request_type, call) in calls.items()
    }
    routes["GET", "/health"] = _health_route(answers, node, health)
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


def serve_forwarded(peer: web.Application, native: web.Application) -> None:
    """Serve the calls of `native` to other nodes as well; from here nothing is forwarded again."""
    for (method, path), call in native[CALLS].items():
        peer.router.add_route(method, path, call)


class Native:
    """The calls that answer once."""

    def __init__(
        self,
        store: RedisStore,
        answers: Answers,
        concerns: Concerns,
        lost_of: LostOf,
        stranger_among: StrangerAmong,
    ) -> None:
        self._store = store
        self._answers = answers
        self._concerns = concerns
        self._lost_of = lost_of
        self._stranger_among = stranger_among

    async def write_relationships(self, request: web.Request) -> web.Response:
        """`relationships/write`: insert all, in one transaction."""
        write, raw, concern = await self._begin_write(request)
        body = bodies.parse(bodies.WRITE, raw)
        changes = bodies.inserts(write.tenant, body["relationships"])
        written = await self._commit(write, changes, body.get("expected_revision"))
        return await self._written(written, concern, f'"relationships_written":{written.written},')

    async def delete_relationships(self, request: web.Request) -> web.Response:
        """`relationships/delete`: those named, or those that match a filter."""
        write, raw, concern = await self._begin_write(request)
        body = bodies.parse(bodies.DELETE, raw)
        if ("relationships" in body) == ("filter" in body):
            raise Refused("invalid_request", "the body: give either relationships or filter")
        expected = body.get("expected_revision")
        if "relationships" in body:
            if "limit" in body:
                raise Refused("invalid_request", "limit: goes with filter, not with relationships")
            changes = bodies.deletes(write.tenant, body["relationships"])
            return await self._deleted(await self._commit(write, changes, expected), concern)
        if not body["filter"]:
            raise Refused(
                "invalid_request",
                "filter: name at least one of resource, resource_type, relation, subject",
            )
        wanted = bodies.filter_of(write.tenant, body["filter"], "filter.")
        found, page = await self._matching(wanted, body.get("limit"))
        if not found and write.idempotency_key is None:
            nothing = Written(page.revision, 0, 0, page.vector)
            return await self._deleted(nothing, headers.NO_CONCERN)
        # With a key also nothing is written: a repeat must find that this request was answered.
        changes = [bodies.deletion(one) for one in found]
        return await self._deleted(await self._commit(write, changes, expected), concern)

    async def update_relationships(self, request: web.Request) -> web.Response:
        """`relationships/update`: inserts and deletes, in one transaction."""
        write, raw, concern = await self._begin_write(request)
        body = bodies.parse(bodies.UPDATE, raw)
        changes = bodies.updates(write.tenant, body["updates"])
        written = await self._commit(write, changes, body.get("expected_revision"))
        return await self._written(
            written,
            concern,
            f'"relationships_written":{written.written},"relationships_deleted":{written.deleted},',
        )

    async def list_relationships(self, request: web.Request) -> web.Response:
        """`relationships/list`: what is visible on this node, a page at a time."""
        headers.check_body_headers(request)
        tenant = headers.tenant_of(request.headers)
        consistency = headers.consistency_of(request.headers)
        body = bodies.parse(bodies.LIST, await request.read())
        wanted = bodies.filter_of(tenant, body)
        text = body.get("cursor")
        cursor = None if text is None else cursors.unseal(text, self._store.node, wanted)
        await self.reach(consistency)
        found, first, last = await self._collect(
            wanted, body.get("limit", DEFAULT_LIST_LIMIT), cursor
        )
        rest = None
        if last.cursor is not None:
            rest = cursors.seal(last.cursor, self._store.node, wanted)
        # The revision of the first page guards what all pages showed (`expected_revision`); the
        # vector of the last one covers it.
        token = Token(self._store.node, last.revision, last.vector).encode()
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
        consistency = headers.consistency_of(request.headers)
        body = bodies.parse(bodies.EVALUATION, await request.read())
        resource, relation, subject = bodies.question_of(body)
        await self.reach(consistency)
        found = await self._store.find(tenant, resource, relation, subject)
        is_granted = found is not None and found.condition is None
        return self._answers.json('{"decision":true}' if is_granted else '{"decision":false}')

    async def list_tenants(self, request: web.Request) -> web.Response:
        """`tenants`: those that have had relationships on this node."""
        return self._answers.json(compact({"tenants": sorted(await self._store.tenants())}))

    # ---- steps the calls share ----------------------------------------------------------------

    async def _begin_write(
        self, request: web.Request
    ) -> tuple[WriteRequest, bytes, headers.Concern]:
        """What the headers say about a write, and its body; the changes come later."""
        headers.check_body_headers(request)
        concern = headers.concern_of(request.headers)
        self._concerns.check(concern.level)
        tenant = headers.tenant_of(request.headers)
        key = headers.idempotency_key_of(request.headers)
        raw = await request.read()
        # Also a deletion that finds nothing to delete is the primary's to answer.
        self._store.check_fence()
        bound = "" if key is None else headers.request_hash(request.path, tenant, raw)
        return WriteRequest(tenant, (), None, key, bound), raw, concern

    async def _commit(
        self, begun: WriteRequest, changes: list[Change], expected: str | None
    ) -> Written:
        return await self._store.write(
            WriteRequest(
                begun.tenant,
                changes,
                None if expected is None else int(expected),
                begun.idempotency_key,
                begun.request_hash,
            )
        )

    async def _written(
        self, written: Written, concern: headers.Concern, counts: str
    ) -> web.Response:
        """The answer to a write, once enough regions have it; 504 when they do not in time."""
        missing = [] if concern.level is WriteConcern.LOCAL else await self._hold(written, concern)
        token = Token(self._store.node, written.revision, written.vector).encode()
        extra = {"X-Revision-Token": token}
        if written.replayed:
            extra["Idempotency-Replayed"] = "true"
        failure = _concern_failure(concern, missing) if missing else ""
        return self._answers.json(
            f'{{{failure}"revision":"{written.revision}",{counts}"token":"{token}"}}',
            504 if missing else 200,
            extra,
        )

    async def _deleted(self, written: Written, concern: headers.Concern) -> web.Response:
        return await self._written(written, concern, f'"relationships_deleted":{written.deleted},')

    async def _hold(self, written: Written, concern: headers.Concern) -> list[str]:
        """Wait until enough regions have a write; returns those that have not acknowledged it."""
        origin = newest_origins(written.vector)[self._store.node]
        self._refuse_lost_write(origin, written.revision)
        version = (written.revision, origin)
        missing = await self._concerns.wait(version, concern.level, concern.timeout_s)
        if missing:
            # This node may have lost it meanwhile: then it does not go on replicating from here.
            self._refuse_lost_write(origin, written.revision)
            if not covers(self._store.vector, version):
                raise Unavailable(
                    "outcome_unknown",
                    "this node has lost the write before it knew that another region has it, and "
                    "takes it back if one has; with a new Idempotency-Key it may be repeated",
                )
        return missing

    async def reach(self, consistency: headers.Consistency | None) -> None:
        """Wait until this node has what a token names. Raises Refused when it never will, or not
        in time.
        """
        if consistency is None:
            return
        token = consistency.token
        stranger = self._stranger_among({token.node, *map(node_of, token.vector)})
        if stranger is not None:
            raise Refused(
                "invalid_token",
                f"X-Revision-Token names node {stranger}, which this deployment does not have and "
                "never had; tokens are good only where they were given",
            )
        self._refuse_lost(token)
        if not await self._store.wait_covered(token.vector, consistency.timeout_s):
            # What was lost may have come to light meanwhile.
            self._refuse_lost(token)
            raise Refused(
                "token_not_reached",
                f"node {self._store.node} has not received everything that X-Revision-Token names "
                f"within {consistency.timeout_s * 1000:.0f} ms; try again, wait longer "
                f"(X-Consistency-Timeout-Ms), or ask node {token.node}",
                409,
            )

    async def end(self, app: web.Application) -> None:
        """This node ends: those that wait for other regions do not hold it up."""
        self._concerns.end()

    def _refuse_lost(self, token: Token) -> None:
        origin = self._lost_of(token.vector)
        if origin is not None:
            raise Refused(
                "write_lost",
                f"X-Revision-Token names a write of {origin} that was lost before any other node "
                "had it, and no node will ever show it; drop the token, read what there is and "
                "write again",
                410,
            )

    def _refuse_lost_write(self, origin: str, revision: int) -> None:
        if self._lost_of({origin: revision}) is not None:
            raise Refused(
                "write_lost",
                f"write {revision} of {origin} was lost before any other node had it, and no node "
                "will ever show it; write again, with a new Idempotency-Key",
                410,
            )

    async def _collect(
        self, wanted: Filter, limit: int, cursor: str | None
    ) -> tuple[list[Relationship], Page, Page]:
        """Up to `limit` relationships, and the first and the last page of the store they are of."""
        ends_at = asyncio.get_running_loop().time() + LIST_BUDGET_S
        first = page = await self._store.read_page(wanted, limit, cursor)
        found = _by_identity(page.relationships)
        while page.cursor is not None and len(found) < limit:
            if asyncio.get_running_loop().time() > ends_at:
                break
            page = await self._store.read_page(wanted, limit - len(found), page.cursor)
            found |= _by_identity(page.relationships)
        return list(found.values()), first, page

    async def _matching(self, wanted: Filter, limit: int | None) -> tuple[list[Relationship], Page]:
        """What a filter matches: all, at most MAX_CHANGES, or the first `limit`."""
        most = bodies.MAX_CHANGES + 1 if limit is None else limit
        ends_at = asyncio.get_running_loop().time() + WALK_LIMIT_S
        found: dict[tuple[str, str, str, str], Relationship] = {}
        cursor = None
        while True:
            page = await self._store.read_page(wanted, most - len(found), cursor)
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


def _concern_failure(concern: headers.Concern, missing: list[str]) -> str:
    """The fields with which the answer to an accepted write begins that too few regions have."""
    message = (
        f"the write is accepted on this node and goes on replicating, but X-Write-Concern: "
        f"{concern.level} was not met within {concern.timeout_s * 1000:.0f} ms: no node of "
        f"{', '.join(missing)} has acknowledged it; do not write it again, the token is good"
    )
    return f'"error":"write_concern_timeout","message":{compact(message)},'


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
