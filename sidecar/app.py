"""One node: everything is built here, opened in order and closed in reverse. Nothing imports it
but the command line.
"""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import tenacity
from aiohttp import web

from sidecar import logs
from sidecar.admin.conflicts import ConflictLog
from sidecar.admin.operations import Operations
from sidecar.admin.status import admin_app
from sidecar.api.answers import Answers
from sidecar.api.listener import AppListener
from sidecar.api.native import app_listener, native_app
from sidecar.config import Address, Config
from sidecar.endings import end
from sidecar.errors import Refused, Unavailable, ungrouped
from sidecar.health import Health
from sidecar.metrics import Metrics
from sidecar.partition import Partition
from sidecar.peer.calls import PeerCalls
from sidecar.peer.client import Dialler
from sidecar.peer.inspection import Inspection
from sidecar.peer.promoting import Promoting
from sidecar.peer.server import peer_app
from sidecar.store.embedded import EmbeddedValkey

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
    node = config.this_node
    timeout_s = float(config.replication.agent.request_timeout_secs)
    loops = await stack.enter_async_context(asyncio.TaskGroup())
    url = await _redis_url(config, stack, loops)
    metrics = Metrics()
    dialler = await stack.enter_async_context(Dialler(timeout_s))
    calls = await stack.enter_async_context(PeerCalls(timeout_s))
    partition = await stack.enter_async_context(Partition(config, url, metrics, dialler, calls))
    store, peers, shipping = partition.store, partition.peers, partition.shipping
    health = Health(node, store, shipping.targets, partition.scrub.reasons)
    native = native_app(
        store=store, tail=partition.tail, node=node, health=health.check, lost_of=peers.lost_of
    )

    answers = Answers(node)
    promoting = Promoting(partition.promotion, answers)
    operations = Operations(
        node, store, peers, shipping, answers, primacy=partition.primacy, promote=promoting.promote
    )
    admin = admin_app(metrics, health, ConflictLog(store, answers), operations)
    inspection = Inspection(partition.digests, partition.me, answers)
    listeners: list[tuple[str, Address, web.AppRunner]] = [
        ("admin", config.admin_address, AppListener(admin, answers)),
        (
            "peer",
            config.peer_address,
            web.AppRunner(
                peer_app(partition.receiver, health, inspection, promoting),
                access_log=None,
                shutdown_timeout=2.0,
            ),
        ),
    ]
    for name, address, runner in listeners:
        await stack.enter_async_context(_listening(name, address, runner))
    await stack.enter_async_context(_running(loops, *partition.loops()))
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
