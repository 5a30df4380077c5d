"""What a node stands on: its loops, its listeners, and the embedded server where it has one.

Owns how each is opened and closed. What runs in the loops and what the listeners answer is told by
whoever builds the node.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import tenacity
from aiohttp import web

from sidecar.config import Address, Config
from sidecar.endings import end
from sidecar.errors import Refused, Unavailable
from sidecar.security.admin import is_loopback
from sidecar.security.guard import Door
from sidecar.store.embedded import EmbeddedValkey

log = logging.getLogger(__name__)

EMBEDDED = "embedded:"


async def redis_url(config: Config, stack: AsyncExitStack, loops: asyncio.TaskGroup) -> str:
    """Where the Redis of a node is; an embedded one is started, and again whenever it ends."""
    url = config.redis.url
    if not url.startswith(EMBEDDED):
        return url
    valkey = await stack.enter_async_context(EmbeddedValkey(Path(url.removeprefix(EMBEDDED))))
    await stack.enter_async_context(running(loops, _keep_alive(valkey)))
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
async def running(
    loops: asyncio.TaskGroup, *parts: Coroutine[None, None, None]
) -> AsyncIterator[None]:
    """Loops of this node; the first that fails ends the node with its reason."""
    tasks = [loops.create_task(part) for part in parts]
    try:
        yield
    finally:
        await end(tasks)


@asynccontextmanager
async def listening(
    name: str, address: Address, runner: web.AppRunner, door: Door | None = None
) -> AsyncIterator[None]:
    """door: how who comes is let in; None: openly. Raises Refused("cannot_listen")."""
    host, port = address
    await runner.setup()
    door = door or Door()
    try:
        try:
            await door.site(runner, host, port).start()
        except OSError as error:
            raise Refused(
                "cannot_listen",
                f"listen.{name}: cannot listen on {address}: {error.strerror}; end what uses it "
                "or choose another address",
            ) from error
        if name != "app" and not door.proves and not is_loopback(host):
            log.warning(
                "listener without authentication is open to the network; set security.%s, and "
                "protect it with a network policy",
                name,
                extra={"listener": name, "address": str(address)},
            )
        yield
    finally:
        with suppress(asyncio.CancelledError):
            await runner.cleanup()
