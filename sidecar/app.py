"""One node: everything is built here, opened in order and closed in reverse. Nothing imports it
but the command line.
"""

import asyncio
import gc
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import tenacity
from aiohttp import web

from sidecar import logs
from sidecar.admin.conflicts import ConflictLog
from sidecar.admin.operations import Operations
from sidecar.admin.status import admin_app
from sidecar.agent.collect import collect
from sidecar.agent.digests import Digests
from sidecar.agent.peers import Peers
from sidecar.agent.scrub import Scrub
from sidecar.agent.ship import Retries, Shipping, Target
from sidecar.agent.tail import Tail
from sidecar.agent.trim import Trimming
from sidecar.api.answers import Answers
from sidecar.api.listener import AppListener
from sidecar.api.native import app_listener, native_app
from sidecar.config import Address, Config
from sidecar.core.routing import carried, neighbours
from sidecar.core.sender import Limits
from sidecar.core.session import Party
from sidecar.core.trim import Keep
from sidecar.core.wire import FORMAT
from sidecar.endings import end
from sidecar.errors import Refused, Unavailable, ungrouped
from sidecar.health import Health
from sidecar.metrics import Metrics
from sidecar.peer.calls import PeerCalls
from sidecar.peer.client import Dialler
from sidecar.peer.inspection import Inspection
from sidecar.peer.server import Receiver, peer_app
from sidecar.rules import custom_script, rules_of
from sidecar.store.embedded import EmbeddedValkey
from sidecar.store.redis_store import PARTITIONS, RedisStore

log = logging.getLogger(__name__)

EMBEDDED = "embedded:"


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
    node, topology, replication = config.this_node, config.topology, config.replication
    agent = replication.agent
    timeout_s = float(agent.request_timeout_secs)
    regions = {str(n.id): str(n.region) for n in topology.nodes()}
    custom = custom_script(config)
    rules = rules_of(config, custom)

    loops = await stack.enter_async_context(asyncio.TaskGroup())
    url = await _redis_url(config, stack, loops)
    metrics = Metrics()
    store = await stack.enter_async_context(
        RedisStore(
            url,
            prefix=config.redis.prefix,
            node=node.id,
            rules=rules,
            metrics=metrics,
            now_us=_now_us,
            random_bits=random.SystemRandom().getrandbits,
            has_peers=len(regions) > 1,
            max_clock_skew_ms=replication.max_clock_skew_ms,
            timeout_s=timeout_s,
            custom=custom,
        )
    )
    me = Party(
        node=node.id,
        region=node.region,
        partition=store.keys.partition,
        partitions=PARTITIONS,
        format=FORMAT,
        rules=rules.fingerprint,
    )
    tail = Tail(store, agent.buffer_size)
    dialler = await stack.enter_async_context(Dialler(timeout_s))
    graph = {str(n.id): [str(t.id) for t in topology.targets_of(n.id)] for n in topology.nodes()}
    peers = Peers(
        store,
        node.id,
        regions,
        _monotonic_us,
        neighbours(graph, node.id),
        wall_us=_now_us,
        max_ahead_us=replication.max_clock_skew_ms * 1000,
    )
    shipping = Shipping(
        store,
        tail,
        dialler,
        peers,
        [
            Target(target.id, target.endpoint, carried(graph, node.id, target.id))
            for target in topology.targets_of(node.id)
        ],
        me=me,
        limits=Limits(replication.window, agent.batch_size, int(timeout_s * 1e6)),
        retries=Retries(
            agent.max_retries, agent.retry_delay_ms / 1000, replication.probe_interval_max_s
        ),
        metrics=metrics,
        now_us=_now_us,
    )
    trimming = Trimming(
        store,
        [target.node for target in shipping.targets],
        Keep(replication.feed_retention_s * 1_000_000, replication.feed_max_entries),
        held=shipping.held,
        metrics=metrics,
        now_us=_now_us,
    )
    digests = Digests(store)
    calls = await stack.enter_async_context(PeerCalls(timeout_s))
    scrub = Scrub(
        store,
        digests,
        calls,
        peers,
        shipping.targets,
        me=me,
        interval_s=replication.anti_entropy_interval_s,
        metrics=metrics,
    )
    health = Health(node, store, shipping.targets, scrub.reasons)
    receiver = Receiver(store, peers, me, regions, timeout_s)
    native = native_app(
        store=store, tail=tail, node=node, health=health.check, lost_of=peers.lost_of
    )

    answers = Answers(node)
    operations = Operations(node, store, peers, shipping, answers)
    admin = admin_app(metrics, health, ConflictLog(store, answers), operations)
    inspection = Inspection(digests, me, answers)
    listeners: list[tuple[str, Address, web.AppRunner]] = [
        ("admin", config.admin_address, AppListener(admin, answers)),
        (
            "peer",
            config.peer_address,
            web.AppRunner(
                peer_app(receiver, health, inspection), access_log=None, shutdown_timeout=2.0
            ),
        ),
    ]
    for name, address, runner in listeners:
        await stack.enter_async_context(_listening(name, address, runner))
    parts = (
        *(tail.run(), shipping.run(), trimming.run()),
        *(collect(store, peers, metrics), scrub.run()),
    )
    await stack.enter_async_context(_running(loops, *parts))
    # The last to open and the first to close: what it has accepted is handed over before the rest
    # goes.
    stack.push_async_callback(shipping.hand_over, min(2.0, config.drain_timeout_s))
    runner = app_listener(native, shutdown_timeout=float(config.drain_timeout_s))
    await stack.enter_async_context(_listening("app", config.app_address, runner))

    stopped = asyncio.create_task(stop.wait())
    opened = asyncio.create_task(store.opened())
    await asyncio.wait({stopped, opened}, return_when=asyncio.FIRST_COMPLETED)
    if opened.done():
        # What lives now lives as long as the node: keep the collector from walking it again and
        # again. Under load it otherwise takes a sixth of the processor.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        log.info("node ready", extra={"node": node.id, "region": node.region})
        ready()
    opened.cancel()
    await stopped
    log.info("node stopping", extra={"node": node.id})


async def _redis_url(config: Config, stack: AsyncExitStack, loops: asyncio.TaskGroup) -> str:
    url = config.redis.url
    if not url.startswith(EMBEDDED):
        return url
    valkey = await stack.enter_async_context(EmbeddedValkey(Path(url.removeprefix(EMBEDDED))))
    await stack.enter_async_context(_running(loops, _keep_alive(valkey)))
    return valkey.url


async def _keep_alive(valkey: EmbeddedValkey) -> None:
    """Start the embedded server again whenever it ends; its data is in its folder."""
    restarting = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(Unavailable),
        wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5.0, jitter=0.1),
        before_sleep=lambda attempt: log.error(
            "embedded Valkey does not start",
            extra={"reason": str(attempt.outcome and attempt.outcome.exception())},
        ),
    )
    while True:
        code = await valkey.wait()
        log.error("embedded Valkey ended, starting it again", extra={"exit_code": code})
        await restarting(valkey.restart)


@asynccontextmanager
async def _running(
    loops: asyncio.TaskGroup, *parts: Coroutine[None, None, None]
) -> AsyncIterator[None]:
    """Loops of this node; the first that fails ends the node with its reason."""
    tasks = [loops.create_task(part) for part in parts]
    try:
        yield
    finally:
        await end(tasks)


@asynccontextmanager
async def _listening(name: str, address: Address, runner: web.AppRunner) -> AsyncIterator[None]:
    host, port = address
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise Refused(
                "cannot_listen",
                f"listen.{name}: cannot listen on {address}: {error.strerror}; end what uses it "
                "or choose another address",
            ) from error
        if name != "app" and not _is_loopback(host):
            log.warning(
                "listener without authentication is open to the network; protect it with a "
                "network policy",
                extra={"listener": name, "address": str(address)},
            )
        yield
    finally:
        with suppress(asyncio.CancelledError):
            await runner.cleanup()


def _is_loopback(host: str) -> bool:
    return host in {"localhost", "::1"} or host.startswith("127.")


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000


def _now_us() -> int:
    return time.time_ns() // 1000
