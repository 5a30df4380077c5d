"""One node: everything is built here, opened in order and closed in reverse. Nothing imports it
but the command line.
"""

import asyncio
import gc
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

from sidecar import logs
from sidecar.config import Config
from sidecar.core.topology import Node
from sidecar.draining import Draining
from sidecar.errors import ungrouped
from sidecar.listeners import Listeners
from sidecar.partition import now_us
from sidecar.partitions import Partitions
from sidecar.parts import built
from sidecar.readiness import Readiness
from sidecar.reload import Reading
from sidecar.serving import listening, running

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
    loops = await stack.enter_async_context(asyncio.TaskGroup())
    parts = await built(config, reading, stack, loops)
    partitions = parts.partitions
    readiness = Readiness(parts.health, partitions, parts.answers, now_us)
    draining = Draining(
        parts.node,
        parts.others,
        parts.calls,
        health=parts.health,
        askers=readiness.askers,
        answers=parts.answers,
        limit_s=float(config.drain_timeout_s),
        grace_s=config.drain_grace_s,
    )
    listeners = Listeners(parts, readiness)
    for one in listeners.inner:
        await stack.enter_async_context(listening(*one))
    behind = parts.proxy.loops() if parts.proxy else ()
    of_this_node = (parts.probes.run(), parts.reloads.run(), *listeners.loops(), *behind)
    await stack.enter_async_context(running(loops, *partitions.loops(), *of_this_node))
    # The last to open and the first to close: what it has accepted is handed over before the rest
    # goes.
    stack.push_async_callback(_hand_over, partitions, draining)
    await stack.enter_async_context(listening(*listeners.outer))

    await _until_stopped(stop, parts.node, partitions, ready)
    await draining.say_so()
    listeners.app.end_within(draining.for_requests_s)


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


def _spare_the_collector() -> None:
    """What lives now lives as long as the node: keep the collector from walking it again and again.

    Under load it otherwise takes a sixth of the processor.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
