"""One node: everything is built here, opened in order and closed in reverse. Nothing imports it
but the command line.
"""

import asyncio
import gc
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

from aiohttp import web

from sidecar import logs
from sidecar.admin.conflicts import ConflictLog
from sidecar.admin.database import DatabaseCalls
from sidecar.admin.operations import Operations
from sidecar.admin.status import admin_app
from sidecar.agent.probe import Probes
from sidecar.api.answers import Answers
from sidecar.api.listener import AppListener
from sidecar.api.native import app_listener, native_app, serve_forwarded
from sidecar.config import Address, Config
from sidecar.core.router import NodeHealth, Router
from sidecar.core.topology import Node
from sidecar.errors import ungrouped
from sidecar.health import Health
from sidecar.hops import HEADS
from sidecar.metrics import Metrics
from sidecar.partition import Partition
from sidecar.partitions import Partitions
from sidecar.peer.calls import PeerCalls
from sidecar.peer.client import Dialler
from sidecar.peer.forward import Forwarder
from sidecar.peer.inspection import Inspection
from sidecar.peer.promoting import Promoting
from sidecar.peer.server import Reception, peer_app
from sidecar.proxy.assembly import Proxy, ProxyParts
from sidecar.proxy.front import proxy_listener
from sidecar.security.guard import Door, Guard
from sidecar.serving import listening, redis_url, running

log = logging.getLogger(__name__)


async def run_node(
    config: Config, *, stop: asyncio.Event, ready: Callable[[], None] | None = None
) -> None:
    """Serve `config.this_node` until `stop` is set; `ready` is called once it serves.

    Raises Refused for what the configuration or the stored data forbid, Unavailable when the
    embedded server cannot be started. A Redis that does not answer is waited for.
    """
    logs.configure(config.log.level, config.log.format)
    for remark in config.remarks():
        log.warning("setting without effect", extra={"setting": remark})
    with ungrouped():
        async with AsyncExitStack() as stack:
            await _serve(config, stack, stop, ready or (lambda: None))


async def _serve(
    config: Config, stack: AsyncExitStack, stop: asyncio.Event, ready: Callable[[], None]
) -> None:
    node = config.this_node
    timeout_s = float(config.replication.agent.request_timeout_secs)
    loops = await stack.enter_async_context(asyncio.TaskGroup())
    answers = Answers(node)
    guard = Guard(config, answers)
    url = await redis_url(config, stack, loops)
    metrics = Metrics()
    dialler = await stack.enter_async_context(Dialler(timeout_s, guard.links))
    calls = await stack.enter_async_context(PeerCalls(timeout_s, guard.links))
    others = [other for other in config.topology.nodes() if other.id != node.id]

    def own_health() -> NodeHealth:
        return health.seen_by_router()

    # Sessions let nodes be asked, and this node's own health is that of its sessions' stores.
    probes = Probes(others, calls, own_health, metrics)
    partitions = await stack.enter_async_context(
        Partitions(config, url, metrics, dialler, calls, session_ended=probes.ask_now)
    )
    health = _health(node, partitions)
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
    proxy = None
    if config.database is not None:
        parts = ProxyParts(config, partitions, forwarder, answers, metrics, guard.app_keys)
        proxy = await stack.enter_async_context(Proxy(config.database, parts))
        health.behind_stands(proxy)
    promoting = Promoting(partitions.everywhere.promotion, answers)
    database = DatabaseCalls(proxy, answers)
    operations = Operations(
        node,
        partitions,
        answers,
        primacy=partitions.everywhere.primacy,
        promote=promoting.promote,
        probes=probes,
        database=database.status,
    )
    admin = admin_app(
        metrics,
        health,
        ConflictLog([one.store for one in partitions], answers),
        operations,
        database,
        guards=guard.of_admin,
    )
    peer = peer_app(
        Reception({one.name: one.receiver for one in partitions}, timeout_s, guard.links),
        health,
        Inspection(partitions, answers),
        promoting,
        *guard.of_peers,
    )
    options = {"shutdown_timeout": float(config.drain_timeout_s)}
    native = native_app(
        partitions,
        node=node,
        health=health.check,
        routed=forwarder.routed,
        keys=guard.app_keys,
    )
    if proxy is None:
        serve_forwarded(peer, native)
        app = app_listener(native, **options)
    else:
        app = proxy_listener(peer, proxy.front, native, health.answer, **options)
    listeners: list[tuple[str, Address, web.AppRunner, Door]] = [
        ("admin", config.admin_address, AppListener(admin, answers), guard.admin_door),
        (
            "peer",
            config.peer_address,
            _peer_listener(peer, answers, is_proxy=proxy is not None),
            guard.peer_door,
        ),
    ]
    for name, address, runner, door in listeners:
        await stack.enter_async_context(listening(name, address, runner, door))
    behind = proxy.loops() if proxy else ()
    await stack.enter_async_context(running(loops, *partitions.loops(), probes.run(), *behind))
    # The last to open and the first to close: what it has accepted is handed over before the rest
    # goes.
    stack.push_async_callback(partitions.hand_over, min(2.0, config.drain_timeout_s))
    await stack.enter_async_context(listening("app", config.app_address, app, guard.app_door))

    stopped = asyncio.create_task(stop.wait())
    opened = asyncio.create_task(partitions.opened())
    await asyncio.wait({stopped, opened}, return_when=asyncio.FIRST_COMPLETED)
    if opened.done():
        _spare_the_collector()
        log.info("node ready", extra={"node": node.id, "region": node.region})
        ready()
    opened.cancel()
    await stopped
    log.info("node stopping", extra={"node": node.id})


def _peer_listener(peer: web.Application, answers: Answers, *, is_proxy: bool) -> web.AppRunner:
    if is_proxy:
        # What is forwarded to a database is as it came.
        return AppListener(peer, answers, shutdown_timeout=2.0, auto_decompress=False, **HEADS)
    return web.AppRunner(peer, access_log=None, shutdown_timeout=2.0)


def _spare_the_collector() -> None:
    """What lives now lives as long as the node: keep the collector from walking it again and again.

    Under load it otherwise takes a sixth of the processor.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _health(node: Node, partitions: Partitions) -> Health:
    def alone(one: Partition) -> Health:
        return Health(node, one.store, one.shipping.targets, one.scrub.reasons)

    first = partitions.everywhere
    restricted = {", ".join(one.regions): alone(one) for one in partitions if one.regions}
    return Health(node, first.store, first.shipping.targets, first.scrub.reasons, restricted)
