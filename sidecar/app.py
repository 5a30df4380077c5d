"""One node: everything is built here, opened in order and closed in reverse. Nothing imports it
but the command line.
"""

import asyncio
import gc
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from aiohttp import web

from sidecar import logs
from sidecar.admin.conflicts import ConflictLog
from sidecar.admin.database import DatabaseCalls
from sidecar.admin.deployment import Deployment
from sidecar.admin.operations import Operations
from sidecar.admin.status import admin_app
from sidecar.admin.steering import Steering
from sidecar.agent.probe import Probes
from sidecar.api.answers import Answers
from sidecar.api.listener import AppListener, BadHttp
from sidecar.api.native import app_listener, native_app, serve_forwarded
from sidecar.config import Address, Config
from sidecar.core.router import NodeHealth, Router
from sidecar.core.topology import Node
from sidecar.draining import Draining
from sidecar.errors import ungrouped
from sidecar.health import Health
from sidecar.hops import HEADS
from sidecar.metrics import Metrics
from sidecar.node_status import NodeStatus
from sidecar.partition import Partition, now_us
from sidecar.partitions import Partitions
from sidecar.peer.calls import PeerCalls
from sidecar.peer.client import Dialler
from sidecar.peer.doubts import Doubts
from sidecar.peer.forward import Forwarder
from sidecar.peer.inspection import Inspection
from sidecar.peer.promoting import Promoting
from sidecar.peer.server import Reception, peer_app
from sidecar.peer.telling import Telling
from sidecar.proxy.assembly import Proxy, ProxyParts
from sidecar.proxy.front import proxy_listener
from sidecar.readiness import Readiness
from sidecar.reload import Adapt, Reading, Reloads, primary_moved
from sidecar.request_ids import FROM_NODE
from sidecar.security.guard import Door, Guard
from sidecar.security.links import Links
from sidecar.serving import listening, redis_url, running

log = logging.getLogger(__name__)


async def run_node(
    config: Config,
    *,
    stop: asyncio.Event,
    ready: Callable[[], None] | None = None,
    reading: Reading | None = None,
) -> None:
    """Serve `config.this_node` until `stop` is set; `ready` is called once it serves.

    reading: where the settings come from, for a topology that changes meanwhile.
    Raises Refused for what the configuration or the stored data forbid, Unavailable when the
    embedded server cannot be started. A Redis that does not answer is waited for.
    """
    logs.configure(config.log.level, config.log.format, config.log.file)
    for remark in config.remarks():
        log.warning("setting without effect", extra={"setting": remark})
    with ungrouped():
        async with AsyncExitStack() as stack:
            reading = reading or Reading(lambda: config, asyncio.Event())
            await _serve(config, stack, stop, ready or (lambda: None), reading)


async def _serve(
    config: Config,
    stack: AsyncExitStack,
    stop: asyncio.Event,
    ready: Callable[[], None],
    reading: Reading,
) -> None:
    node = config.this_node
    timeout_s = float(config.replication.agent.request_timeout_secs)
    loops = await stack.enter_async_context(asyncio.TaskGroup())
    answers = Answers(node)
    guard = Guard(config, answers)
    url, metrics = await redis_url(config, stack, loops), Metrics()
    dialler = await stack.enter_async_context(Dialler(timeout_s, guard.links))
    calls = await stack.enter_async_context(PeerCalls(timeout_s, guard.links))

    def own_health() -> NodeHealth:
        return health.seen_by_router()

    # Sessions let nodes be asked, and this node's own health is that of its sessions' stores.
    probes = Probes(_others(config), calls, own_health, metrics)
    partitions = await stack.enter_async_context(
        Partitions(config, url, metrics, dialler, calls, session_ended=probes.ask_now)
    )
    health = _health(node, partitions, metrics)
    router = Router(
        config.topology,
        node.id,
        probes.health_of,
        primary=lambda: partitions.everywhere.primacy.region,
        tenants=config.tenants,
    )
    forwarder = await stack.enter_async_context(
        Forwarder(
            router,
            config.topology,
            node.id,
            timeout_s=timeout_s,
            doubt=probes.doubt,
            forwarded=metrics.forwarded,
            is_proxy=config.database is not None,
            links=guard.links,
        )
    )
    readiness = Readiness(health, partitions, answers, now_us)
    draining = Draining(
        node,
        lambda: _others(reloads.config),
        calls,
        health=health,
        askers=readiness.askers,
        answers=answers,
        limit_s=float(config.drain_timeout_s),
        grace_s=config.drain_grace_s,
    )
    proxy = None
    if config.database is not None:
        parts = ProxyParts(config, partitions, forwarder, answers, metrics, guard.app_keys)
        proxy = await stack.enter_async_context(Proxy(config.database, parts))
        health.behind_stands(proxy)
    promoting = Promoting(partitions.everywhere.promotion, answers)
    database = DatabaseCalls(proxy, answers)
    status = NodeStatus(
        node,
        partitions,
        health=health,
        metrics=metrics,
        probes=probes,
        database=database.status,
        feed_limit=config.replication.feed_max_entries,
    )
    operations = Operations(node, partitions, answers, status=status, promote=promoting.promote)
    deployment = Deployment(
        node,
        lambda: reloads.config.topology,
        calls,
        answers,
        status=status,
        everywhere=partitions.everywhere,
        probes=probes,
    )
    reloads: Reloads = Reloads(
        config, reading, _adapting(partitions, probes, router, forwarder, guard.links)
    )
    steering = Steering(node, list(partitions), reloads, answers)
    admin = admin_app(
        metrics,
        health,
        ConflictLog([one.store for one in partitions], answers),
        *(operations, steering, deployment, database),
        guards=guard.of_admin,
    )
    peer = peer_app(
        Reception({one.name: one.receiver for one in partitions}, timeout_s, guard.links),
        health,
        *(Inspection(partitions, answers), promoting, Telling(status, answers)),
        guards=guard.of_peers,
    )
    readiness.add_to(admin, peer)
    Doubts(probes, answers).add_to(peer)
    own = readiness.routes()
    native = native_app(
        partitions,
        node=node,
        health=health.check,
        probes=own,
        routed=forwarder.routed,
        keys=guard.app_keys,
    )
    if proxy is None:
        serve_forwarded(peer, native)
        app = app_listener(native)
    else:
        own = {"/health": health.answer, **own}
        app = proxy_listener(peer, proxy.front, native, own)
    listeners: list[tuple[str, Address, web.AppRunner, Door]] = [
        ("admin", config.admin_address, AppListener(admin, answers), guard.admin_door),
        (
            "peer",
            config.peer_address,
            _peer_listener(peer, answers, guard.bad_http, is_proxy=proxy is not None),
            guard.peer_door,
        ),
    ]
    for name, address, runner, door in listeners:
        await stack.enter_async_context(listening(name, address, runner, door))
    behind = proxy.loops() if proxy else ()
    await stack.enter_async_context(
        running(loops, *partitions.loops(), probes.run(), reloads.run(), *behind)
    )
    # The last to open and the first to close: what it has accepted is handed over before the rest
    # goes.
    stack.push_async_callback(_hand_over, partitions, draining)
    await stack.enter_async_context(listening("app", config.app_address, app, guard.app_door))

    await _until_stopped(stop, node, partitions, ready)
    await draining.say_so()
    app.end_within(draining.for_requests_s)


async def _until_stopped(
    stop: asyncio.Event, node: Node, partitions: Partitions, ready: Callable[[], None]
) -> None:
    stopped = asyncio.create_task(stop.wait())
    opened = asyncio.create_task(partitions.opened())
    await asyncio.wait({stopped, opened}, return_when=asyncio.FIRST_COMPLETED)
    if opened.done():
        _spare_the_collector()
        log.info("node ready", extra={"node": node.id, "region": node.region})
        ready()
    opened.cancel()
    await stopped


async def _hand_over(partitions: Partitions, draining: Draining) -> None:
    await partitions.hand_over(draining.for_hand_over_s)


def _adapting(
    partitions: Partitions, probes: Probes, router: Router, forwarder: Forwarder, links: Links
) -> Adapt:
    """What takes up another topology, everywhere in a node that runs."""

    async def adapt(config: Config) -> None:
        if partitions.everywhere.primacy.is_changed_by(config.topology):
            raise primary_moved()
        # No request goes any more to a node that goes.
        probes.adapt(_others(config))
        router.adapt(config.topology)
        forwarder.adapt(config.topology)
        links.know(config.topology.nodes())
        await partitions.adapt(config)

    return adapt


def _others(config: Config) -> list[Node]:
    return [other for other in config.topology.nodes() if other.id != config.node]


def _peer_listener(
    peer: web.Application, answers: Answers, bad_http: BadHttp, *, is_proxy: bool
) -> web.AppRunner:
    # What is forwarded to a database is as it came.
    options: dict[str, Any] = {"auto_decompress": False, **HEADS} if is_proxy else {}
    options |= {"shutdown_timeout": 2.0, "id_header": FROM_NODE, "bad_http": bad_http}
    return AppListener(peer, answers, **options)


def _spare_the_collector() -> None:
    """What lives now lives as long as the node: keep the collector from walking it again and again.

    Under load it otherwise takes a sixth of the processor.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _health(node: Node, partitions: Partitions, metrics: Metrics) -> Health:
    def alone(one: Partition) -> Health:
        return Health(node, one.store, one.shipping.targets, one.scrub.reasons)

    first = partitions.everywhere
    restricted = {", ".join(one.regions): alone(one) for one in partitions if one.regions}
    health = Health(node, first.store, first.shipping.targets, first.scrub.reasons, restricted)
    metrics.is_ready_when(lambda: health.check()[0])
    return health
