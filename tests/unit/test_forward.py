"""Forwarding between real listeners: what is passed on, and what a failure on the way means."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web

from sidecar.api.answers import Answers, Route
from sidecar.core.router import NodeHealth, RequestType, Router
from sidecar.core.tenants import Place, Tenants
from sidecar.core.token import Token
from sidecar.core.topology import NodeId, RegionId, ReplicationStrategy, TopologyBuilder, ZoneId
from sidecar.errors import Refused, Unavailable
from sidecar.peer.forward import Forwarder
from tests.servers import free_ports

HOST = "127.0.0.1"
READ, WRITE = RequestType.READ, RequestType.WRITE
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Deployment:
    """Node n1 here, n2 and n3 elsewhere: each a region, n2 preferred. What n1 itself does is
    `here` (without, it refuses), what the others do is in `there`; a node without a listener
    refuses connections.
    """

    url: str
    session: aiohttp.ClientSession
    health: dict[str, NodeHealth] = field(default_factory=dict)
    here: Route | None = None
    there: dict[str, Handler] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    doubted: list[str] = field(default_factory=list)
    forwarded: list[str] = field(default_factory=list)
    begin: Callable[[str], Awaitable[None]] | None = None

    async def let_serve(self, **handlers: Handler) -> None:
        """Begin to listen at these nodes, and do this there."""
        assert self.begin is not None
        self.there.update(handlers)
        for node in handlers:
            await self.begin(node)

    async def ask(
        self, path: str, headers: Mapping[str, str] = {}, body: bytes = b"{}"
    ) -> tuple[int, str, bytes]:
        """Status, `X-Served-By` and body."""
        async with self.session.post(self.url + path, data=body, headers=headers) as answer:
            return answer.status, answer.headers.get("X-Served-By", ""), await answer.read()

    async def code(self, path: str, headers: Mapping[str, str] = {}) -> str:
        """The code of the refusal that is the answer."""
        status, _, body = await self.ask(path, headers)
        assert status >= 400, body
        return str(json.loads(body)["error"])

    @property
    def nodes_asked(self) -> list[str]:
        return [node for node, _, _ in self.asked]


@pytest.fixture
async def made(request: pytest.FixtureRequest) -> AsyncIterator[Deployment]:
    """The parameter, if any, is the strategy; n2 is the primary."""
    strategy = ReplicationStrategy(getattr(request, "param", "active_active"))
    ports = dict(zip(("n1", "n2", "n3"), free_ports(3), strict=True))
    builder = TopologyBuilder(strategy, RegionId("r1"))
    for node, port in ports.items():
        region, zone = RegionId(f"r{node[1]}"), ZoneId("a")
        builder.add_region(region, node, node == "n2").add_zone(region, zone, "a")
        builder.add_node(region, zone, NodeId(node), f"{HOST}:{port}")
    topology = builder.build()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        deployment = Deployment(f"http://{HOST}:{ports['n1']}", session)

        async def local(request: web.Request) -> web.StreamResponse:
            return await (deployment.here or refuses)(request)

        def health_of(node: NodeId) -> NodeHealth:
            return deployment.health.get(node, NodeHealth.HEALTHY)

        bound = Place(None, frozenset({RegionId("r1"), RegionId("r2")}))
        tenants = Tenants({"bound": bound})
        router = Router(topology, NodeId("n1"), health_of, tenants=tenants)
        forwarder = Forwarder(
            router,
            topology,
            NodeId("n1"),
            timeout_s=0.5,
            doubt=deployment.doubted.append,
            forwarded=deployment.forwarded.append,
        )
        await stack.enter_async_context(forwarder)
        answers = Answers(topology.node("n1"))
        app = web.Application()
        for path, kind in (("/read", READ), ("/write", WRITE)):
            app.router.add_post(path, answers.guarded(forwarder.routed(kind, local)))
        await _serve(stack, app, ports["n1"])

        def other(node: str) -> web.Application:
            async def handle(request: web.Request) -> web.StreamResponse:
                headers = {name.lower(): text for name, text in request.headers.items()}
                deployment.asked.append((node, headers, await request.read()))
                return await deployment.there[node](request)

            one = web.Application()
            one.router.add_post("/{path}", handle)
            return one

        async def begin(node: str) -> None:
            await _serve(stack, other(node), ports[node])

        deployment.begin = begin
        yield deployment


async def _serve(stack: AsyncExitStack, app: web.Application, port: int) -> None:
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, HOST, port).start()


def says(text: str, status: int = 200, **headers: str) -> Handler:
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def handle(request: web.Request) -> web.Response:
        return web.Response(text=text, status=status, headers=named)

    return handle


def fails(code: str, status: int = 503) -> Handler:
    return says(json.dumps({"error": code, "message": "so it is"}), status)


async def breaks_off(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def refuses(request: web.Request) -> web.StreamResponse:
    raise Unavailable("store_unavailable", "Redis is away")


async def test_what_this_node_serves_is_not_forwarded(made: Deployment) -> None:
    made.here = says("mine", X_Served_By="r1/n1")
    await made.let_serve(n2=says("theirs"))
    assert await made.ask("/read") == (200, "r1/n1", b"mine")
    assert made.asked == []


async def test_the_request_and_the_answer_are_passed_on(made: Deployment) -> None:
    made.health["n1"] = NodeHealth.UNREACHABLE
    await made.let_serve(n2=says("theirs", 409, X_Served_By="r2/n2", X_Revision_Token="1abc"))
    sent = {
        "X-Tenant": "acme",
        "X-Revision-Token": "1xyz",
        "X-Consistency-Timeout-Ms": "7",
        "X-Write-Concern": "all",
        "traceparent": "00-1-2-01",
        "X-Other": "stays here",
    }
    answer = await made.ask("/write", sent, b'{"a": 1}')
    assert answer == (409, "r2/n2", b"theirs")
    ((node, headers, body),) = made.asked
    assert (node, body) == ("n2", b'{"a": 1}')
    passed = {name.lower(): text for name, text in sent.items()}
    del passed["x-other"]
    assert passed.items() <= headers.items()
    assert "x-other" not in headers


async def test_a_store_that_goes_away_meanwhile_lets_others_serve(made: Deployment) -> None:
    made.here = refuses
    await made.let_serve(n2=says("theirs", X_Served_By="r2/n2"))
    assert await made.ask("/write") == (200, "r2/n2", b"theirs")


async def test_another_refusal_of_this_node_is_its_answer(made: Deployment) -> None:
    async def full(request: web.Request) -> web.StreamResponse:
        raise Unavailable("store_full", "no room")

    made.here = full
    await made.let_serve(n2=says("theirs"))
    assert await made.code("/write") == "store_full"
    assert made.asked == []


@pytest.mark.parametrize("path", ["/read", "/write"])
async def test_who_cannot_be_reached_is_passed_over(made: Deployment, path: str) -> None:
    made.health["n1"] = NodeHealth.UNREACHABLE
    await made.let_serve(n3=says("theirs", X_Served_By="r3/n3"))
    assert await made.ask(path) == (200, "r3/n3", b"theirs")
    assert made.doubted == ["n2"]
    assert made.forwarded == ["n2", "n3"]


@pytest.mark.parametrize("code", ["store_unavailable", "starting", "catching_up"])
async def test_who_does_not_serve_is_passed_over(made: Deployment, code: str) -> None:
    made.health["n1"] = NodeHealth.UNREACHABLE
    await made.let_serve(n2=fails(code), n3=says("theirs", X_Served_By="r3/n3"))
    assert await made.ask("/write") == (200, "r3/n3", b"theirs")
    assert made.nodes_asked == ["n2", "n3"]


async def test_a_full_store_elsewhere_is_the_answer(made: Deployment) -> None:
    made.health["n1"] = NodeHealth.UNREACHABLE
    await made.let_serve(n2=fails("store_full"), n3=says("theirs"))
    assert await made.code("/write") == "store_full"
    assert made.nodes_asked == ["n2"]


async def test_a_write_that_breaks_off_is_not_tried_elsewhere(made: Deployment) -> None:
    made.health["n1"] = NodeHealth.UNREACHABLE
    await made.let_serve(n2=breaks_off, n3=says("theirs"))
    assert await made.code("/write") == "outcome_unknown"
    assert made.nodes_asked == ["n2"]


async def test_a_read_that_breaks_off_is_asked_elsewhere(made: Deployment) -> None:
    made.health["n1"] = NodeHealth.UNREACHABLE
    await made.let_serve(n2=breaks_off, n3=says("theirs", X_Served_By="r3/n3"))
    assert await made.ask("/read") == (200, "r3/n3", b"theirs")


async def test_a_node_that_hangs_is_not_waited_for_much_longer_than_asked(
    made: Deployment,
) -> None:
    async def hangs(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    made.health["n1"] = NodeHealth.UNREACHABLE
    await made.let_serve(n2=hangs, n3=says("theirs", X_Served_By="r3/n3"))
    waits = {"X-Consistency-Timeout-Ms": "0", "X-Write-Concern-Timeout-Ms": "0"}
    async with asyncio.timeout(10):
        assert await made.ask("/read", waits) == (200, "r3/n3", b"theirs")


@pytest.mark.parametrize("own", list(NodeHealth))
async def test_when_nobody_serves_the_reason_of_this_node_is_told(
    made: Deployment, own: NodeHealth
) -> None:
    made.here = refuses
    made.health = {"n1": own, "n3": NodeHealth.UNREACHABLE}
    await made.let_serve(n2=fails("starting"))
    for path in ("/read", "/write"):
        assert await made.code(path) == "store_unavailable"


async def test_a_write_with_an_idempotency_key_stays_at_its_node(made: Deployment) -> None:
    made.here = refuses
    await made.let_serve(n2=says("theirs"))
    key = {"Idempotency-Key": "k"}
    assert await made.code("/write", key) == "store_unavailable"
    assert made.asked == []
    assert (await made.ask("/read", key))[2] == b"theirs"


GUARDED = b'{"expected_revision": "7"}'


async def test_a_revision_guards_only_on_the_node_that_gave_it(made: Deployment) -> None:
    """Elsewhere a change that the client has not seen may have come before it."""
    made.here = refuses
    await made.let_serve(n2=says("theirs"), n3=says("theirs", X_Served_By="r3/n3"))
    status, _, body = await made.ask("/write", {}, GUARDED)
    assert (status, json.loads(body)["error"]) == (503, "store_unavailable")
    assert made.asked == []
    token = {"X-Revision-Token": Token("n3", 7, {"n3.abc": 7}).encode()}
    assert await made.ask("/write", token, GUARDED) == (200, "r3/n3", b"theirs")
    assert (await made.ask("/write", {}, b'{"expected_revision": null}'))[0] == 200


@pytest.mark.parametrize("made", ["primary_replica"], indirect=True)
async def test_a_revision_of_this_node_guards_nothing_on_the_primary(made: Deployment) -> None:
    await made.let_serve(n2=says("theirs", X_Served_By="r2/n2"))
    status, _, body = await made.ask("/write", {}, GUARDED)
    assert (status, json.loads(body)["error"]) == (409, "revision_elsewhere")
    third = {"X-Revision-Token": Token("n3", 7, {"n3.abc": 7}).encode()}
    assert (await made.ask("/write", third, GUARDED))[0] == 409
    token = {"X-Revision-Token": Token("n2", 7, {"n2.abc": 7}).encode()}
    assert await made.ask("/write", token, GUARDED) == (200, "r2/n2", b"theirs")


async def test_a_token_that_is_not_reached_here_is_asked_of_its_node(made: Deployment) -> None:
    async def lags(request: web.Request) -> web.StreamResponse:
        raise Refused("token_not_reached", "not yet", 409)

    made.here = lags
    await made.let_serve(n3=says("theirs", X_Served_By="r3/n3"))
    token = {"X-Revision-Token": Token("n3", 7, {"n3.abc": 7}).encode()}
    origin = {"X-Consistency": "origin"}
    assert await made.ask("/read", token | origin) == (200, "r3/n3", b"theirs")
    assert await made.code("/read", token) == "token_not_reached"
    for other in ("n1", "removed"):
        token = {"X-Revision-Token": Token(other, 7, {f"{other}.abc": 7}).encode()}
        assert await made.code("/read", token | origin) == "token_not_reached"


async def test_a_bound_tenant_is_not_passed_on_to_where_it_may_not_be(made: Deployment) -> None:
    """Not where all others are away, and not where a token leads, which anyone can make."""
    failure: list[Refused | Unavailable] = [Unavailable("catching_up", "it catches up")]

    async def fails(request: web.Request) -> web.Response:
        raise failure[0]

    made.here = fails
    made.health["n2"] = NodeHealth.UNREACHABLE
    await made.let_serve(n3=says("from outside"))
    assert await made.code("/read", {"X-Tenant": "bound"}) == "catching_up"
    failure[0] = Refused("token_not_reached", "not yet", 409)
    token = Token("n3", 5, {"n3.abc": 5}).encode()
    forged = {"X-Tenant": "bound", "X-Consistency": "origin", "X-Revision-Token": token}
    assert await made.code("/read", forged) == "token_not_reached"
    assert made.asked == []
    assert (await made.ask("/read", {**forged, "X-Tenant": "other"}))[2] == b"from outside"


async def test_a_long_answer_streams(made: Deployment) -> None:
    may_go_on = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"X-Served-By": "r2/n2"})
        await response.prepare(request)
        await response.write(b"first")
        await may_go_on.wait()
        await response.write(b"x" * 1_000_000)
        return response

    made.health["n1"] = NodeHealth.UNREACHABLE
    await made.let_serve(n2=slow)
    async with made.session.post(made.url + "/read", data=b"{}") as answer:
        assert await answer.content.readexactly(5) == b"first"
        may_go_on.set()
        assert await answer.read() == b"x" * 1_000_000


async def test_a_long_answer_that_breaks_off_is_not_taken_for_whole(made: Deployment) -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        return await breaks_off(request)

    made.health["n1"] = NodeHealth.UNREACHABLE
    await made.let_serve(n2=broken)
    with pytest.raises(aiohttp.ClientError):
        await made.ask("/read")
