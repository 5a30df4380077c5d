"""Forwarding: what this node does not serve itself is handed to a node that does, once.

A request goes to the peer listener of the other node, where the same calls are served and nothing
is forwarded again. Owns what is passed on and what a failure on the way means; which node it is has
been decided by `core/router.py`.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any, Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from sidecar import logs, request_ids
from sidecar.api.answers import Route
from sidecar.api.headers import DEFAULT_TENANT
from sidecar.core.router import RequestType, Router
from sidecar.core.token import Token
from sidecar.core.topology import Node, NodeId, Topology
from sidecar.errors import Refused, SidecarError, Unavailable
from sidecar.hops import (
    HOP_BY_HOP,
    PASSES,
    Body,
    Passed,
    Upload,
    body_of,
    can_go_on,
    end_to_end,
    relay,
    sending,
    target_of,
)
from sidecar.peer.connections import Connections, why_not
from sidecar.security.links import Links

PASSED: Final = (
    *("X-Tenant", "X-Revision-Token", "X-Consistency", "X-Consistency-Timeout-Ms"),
    *("X-Write-Concern", "X-Write-Concern-Timeout-Ms", "Idempotency-Key", "Last-Event-ID"),
    *("traceparent", "tracestate", "Content-Type", "Accept"),
)
"""What is passed on of a request."""

NOT_SERVED: Final = frozenset(
    {
        *("store_unavailable", "starting", "catching_up", "node_removed", "database_unavailable"),
        # It does not know this node, or not any more.
        "peer_unauthenticated",
    }
)
"""Refusals of a node that does not serve: nothing has happened there."""

DATABASE_PREFIX: Final = "/database"
"""Before the path of a request for the database behind another node."""

FROM_DATABASE: Final = b"X-Sidecar-From-Database"
"""Between nodes: a 401 or 503 is the database's own, whatever its body says."""

NOT_OF_NODE: Final = frozenset({401, 503})
"""Statuses by which a node itself says that it has not served a request."""

CONNECT_S = 2.0
SEARCH_S = 30.0
"""For so long a delete by filter may search before it answers; a read does not take that long."""

WAITS = {"X-Consistency-Timeout-Ms": 2_000, "X-Write-Concern-Timeout-Ms": 5_000}
"""What lets a node wait before it answers, and for how long without the header."""

SMALL_BYTES = 256 * 1024

_OF_NODE: Final = HOP_BY_HOP | {FROM_DATABASE.lower()}
_OWN: Final = HOP_BY_HOP | {b"date", b"server"}
_ENDLESS: Final = web.RequestKey("endless", bool)


class Forwarder(Connections):
    """Serves requests here or elsewhere. Use as an async context manager.

    timeout_s: how long a node may be silent, beyond what the request itself lets it wait.
    doubt: told of a node that could not be reached. forwarded: told of a node that was asked.
    is_proxy: requests are for the database behind a node, and go on with all their headers.
    """

    def __init__(
        self,
        router: Router,
        topology: Topology,
        here: NodeId,
        *,
        timeout_s: float,
        doubt: Callable[[NodeId], None],
        forwarded: Callable[[NodeId], None],
        is_proxy: bool = False,
        links: Links | None = None,
    ) -> None:
        super().__init__(links, **(PASSES if is_proxy else {"auto_decompress": False}))
        self._router, self._topology, self._here = router, topology, here
        self._timeout_s, self._doubt, self._forwarded = timeout_s, doubt, forwarded
        self._is_proxy = is_proxy

    def adapt(self, topology: Topology) -> None:
        """From here on the nodes of this topology are the ones that a token may name."""
        self._topology = topology

    def routed(self, request_type: RequestType, route: Route) -> Route:
        """The call, served where it belongs."""

        async def answer(request: web.Request) -> web.StreamResponse:
            tenant = request.headers.get("X-Tenant", DEFAULT_TENANT)
            return await self.serve(request, request_type, tenant, route)

        return answer

    async def serve(
        self,
        request: web.Request,
        request_type: RequestType,
        tenant: str,
        route: Route,
        *,
        is_endless: bool = False,
    ) -> web.StreamResponse:
        """The answer to a request of this tenant: that of `route`, or of another node.

        is_endless: the answer may begin late, and is never waited for too long.
        """
        if is_endless:
            request[_ENDLESS] = True
        # A write that this node cannot serve is refused at once, and goes elsewhere below; a
        # read with a token would wait first.
        is_write = request_type is RequestType.WRITE
        is_asked = self._router.may_be_here if is_write else self._router.is_here
        if not is_asked(request_type, tenant):
            served = await self._elsewhere(request, request_type, tenant)
            if served is not None:
                return served
            if not self._router.may_be_here(request_type, tenant):
                raise self._router.nobody(request_type, tenant)
            # Nobody can: what is amiss with this node is the answer.
        try:
            return await route(request)
        except SidecarError as failure:
            if request.writer.output_size > 0 or not can_go_on(request):
                raise
            if failure.code in NOT_SERVED:
                served = await self._elsewhere(request, request_type, tenant)
                if served is not None:
                    return served
            origin = self._origin_of(request, tenant, failure)
            if origin is None:
                raise
            return await self._to(origin, request, request_type)

    def _origin_of(self, request: web.Request, tenant: str, failure: SidecarError) -> Node | None:
        """The node of a token that was not reached here, if it is to be asked instead."""
        is_wanted = request.headers.get("X-Consistency") == "origin"
        if failure.code != "token_not_reached" or not is_wanted:
            return None
        name = Token.decode(request.headers["X-Revision-Token"]).node
        # It may have been removed. And anyone can make a token: it must not lead a bound tenant out
        # of its regions.
        others = (node for node in self._topology.nodes() if node.id == name != self._here)
        return next((n for n in others if self._router.may_be_in(n.region, tenant)), None)

    async def _elsewhere(
        self, request: web.Request, request_type: RequestType, tenant: str
    ) -> web.StreamResponse | None:
        """The answer of the first other node that serves it; None: none does.

        Raises Refused("revision_elsewhere").
        """
        giver, is_elsewhere = None, False
        is_write = request_type is RequestType.WRITE
        if is_write and not self._is_proxy and await _is_guarded(request):
            # A revision guards on the node that gave it; elsewhere it would let pass what it must
            # not. Without a token it is one of this node.
            giver = _node_of_token(request) or self._here
        for node in self._candidates(request, request_type, tenant):
            if node.id == self._here:
                continue
            if giver not in {None, node.id}:
                is_elsewhere = True
                continue
            try:
                return await self._to(node, request, request_type)
            except Unavailable as unavailable:
                if unavailable.code not in NOT_SERVED | {"unreachable"}:
                    raise
                self._doubt(node.id)
                if not can_go_on(request):
                    raise
        if is_elsewhere and not self._router.may_be_here(request_type, tenant):
            raise Refused(
                "revision_elsewhere",
                f"expected_revision: a revision of node {giver} says nothing on the node that takes"
                " this write; nothing was written. Send one from an answer of that node, with the "
                "token of that answer as X-Revision-Token",
                409,
            )
        return None

    def _candidates(
        self, request: web.Request, request_type: RequestType, tenant: str
    ) -> Iterable[Node]:
        key = request.headers.get("Idempotency-Key")
        if key is None or request_type is RequestType.READ or self._is_proxy:
            return self._router.candidates(request_type, tenant)
        return [self._router.only_node(tenant, key)]

    async def _to(
        self, node: Node, request: web.Request, request_type: RequestType
    ) -> web.StreamResponse:
        """The answer of a node. Raises Unavailable where the node has not served the request."""
        url, what = await self._passed(node, request)
        self._forwarded(node.id)
        try:
            answer = await self._session.request(
                request.method,
                url,
                allow_redirects=False,
                timeout=self._patience(request, request_type),
                **self._links.options(node.endpoint),
                **what,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _unreachable(node, error) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if request_type is RequestType.READ:
                raise _unreachable(node, error) from error
            self._doubt(node.id)
            raise Unavailable(
                "outcome_unknown",
                f"node {node.id} did not answer after the request was sent, so nobody knows "
                f"whether it was carried out: {error or 'silence'}",
            ) from error
        async with answer:
            return await self._relay(node, request, request_type, answer)

    async def _passed(self, node: Node, request: web.Request) -> tuple[URL, dict[str, Any]]:
        """Where a request goes on to, and what of it."""
        if self._is_proxy:
            # Query and all, so that nothing of it is read as anything else.
            target = DATABASE_PREFIX + target_of(request)
            url = URL(f"{self._links.scheme}://{node.endpoint}").with_path(target, encoded=True)
            passing = sending(request, await body_of(request))
            passing.headers[request_ids.FROM_NODE] = logs.request_id()
            passing.headers.update(self._signed(node, request, target, passing.body))
            return url, {"data": passing}
        known = ((name, request.headers.get(name)) for name in PASSED)
        headers = CIMultiDict((name, value) for name, value in known if value is not None)
        headers[request_ids.FROM_NODE] = logs.request_id()
        url = URL(f"{self._links.scheme}://{node.endpoint}{request.path_qs}", encoded=True)
        body = await request.read()
        headers.update(self._signed(node, request, url.raw_path_qs, body))
        return url, {"data": body, "headers": headers}

    def _signed(self, node: Node, request: web.Request, target: str, body: Body) -> dict[str, str]:
        is_streamed = isinstance(body, Upload)
        known = body if isinstance(body, bytes) else None
        return self._links.signed(
            node.endpoint, request.method, target, known, is_streamed=is_streamed
        )

    def _patience(self, request: web.Request, request_type: RequestType) -> aiohttp.ClientTimeout:
        silence_s = self._timeout_s + (SEARCH_S if request_type is RequestType.WRITE else 0.0)
        for name, default_ms in WAITS.items():
            text = request.headers.get(name, "")
            # What is no number is refused where the request is served.
            silence_s += (int(text) if text.isdecimal() else default_ms) / 1000
        is_endless = request.get(_ENDLESS, False)
        return aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_S, sock_read=None if is_endless else silence_s
        )

    async def _relay(
        self,
        node: Node,
        request: web.Request,
        request_type: RequestType,
        answer: aiohttp.ClientResponse,
    ) -> web.StreamResponse:
        # Those of a database are its own.
        head = end_to_end(answer.raw_headers, _OF_NODE if self._is_proxy else _OWN)
        length = answer.content_length
        if length is not None and length <= SMALL_BYTES:
            try:
                body = await answer.read()
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                if request_type is RequestType.READ:
                    raise _unreachable(node, error) from error
                raise Unavailable(
                    "outcome_unknown", f"the answer of node {node.id} broke off: {error}"
                ) from error
            if answer.status in NOT_OF_NODE and FROM_DATABASE.decode() not in answer.headers:
                _raise_if_not_served(body)
            return Passed(answer.status, answer.reason, head, length, body)
        request_ids.add_to(head)
        return await relay(request, answer, head, whose=f"node {node.id}")


async def _is_guarded(request: web.Request) -> bool:
    """Whether the body has an `expected_revision`. No JSON is refused where it is served."""
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        return False
    return isinstance(body, dict) and body.get("expected_revision") is not None


def _node_of_token(request: web.Request) -> str | None:
    text = request.headers.get("X-Revision-Token")
    return None if text is None else Token.decode(text).node


def _raise_if_not_served(body: bytes) -> None:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return
    if not isinstance(said, dict):
        return
    code, message = said.get("error"), said.get("message")
    if code in NOT_SERVED:
        raise Unavailable(str(code), str(message))


def _unreachable(node: Node, error: BaseException) -> Unavailable:
    return Unavailable(
        "unreachable", f"node {node.id} cannot be reached: {why_not(error) or 'silence'}"
    )
