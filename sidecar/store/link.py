"""One connection to Redis for commands that must never be sent twice.

Translates what redis-py and the server raise into our own failures. redis-py's own clients repeat
commands by themselves; here nothing is repeated, and a lost reply is told apart from a command that
was never sent. Knows commands, not what they mean.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio.connection import BlockingConnectionPool, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoScriptError,
    RedisError,
    ResponseError,
)

from sidecar.errors import Broken, Unavailable
from sidecar.store.scripts import Script

# What the server says when it cannot do anything right now; nothing of what was asked was done.
_SERVER_CANNOT = {
    "MISCONF": "Redis cannot persist to its disk and takes no writes",
    "READONLY": "Redis is a read-only replica",
    "LOADING": "Redis is loading its data",
    "BUSY": "Redis is busy with a script",
    "CLUSTERDOWN": "the Redis cluster is down",
    "MASTERDOWN": "Redis has lost its primary",
    "NOAUTH": "Redis asks for a password; put it into redis.url",
    "WRONGPASS": "Redis refuses the password of redis.url",
    "NOPERM": "the Redis user of redis.url may not run this command",
}


FULL_RETRY_S = 5


def store_full(reason: str) -> Unavailable:
    """There is no memory for a write; nothing of it was done."""
    return Unavailable(
        "store_full",
        f"the store is full, nothing was written: {reason}; raise maxmemory of the node's Redis",
        retry_after_s=FULL_RETRY_S,
    )


class ScriptError(Exception):
    """A script answered `CODE text`: the code is the contract between Lua and its caller."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text


def pool_of(url: str, timeout_s: float, connections: int = 64) -> ConnectionPool:
    """Connections for a `redis://`, `rediss://` or `unix://` URL that repeat nothing.

    At the limit a caller waits for a connection to become free. redis-py's own time limits are off:
    they rest on `asyncio.wait_for`, which before Python 3.12 can lose a cancellation.
    """
    return BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=timeout_s,
        socket_timeout=None,
        socket_connect_timeout=None,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        decode_responses=False,
    )


class Link:
    """A connection of its own, one command at a time; others wait their turn."""

    def __init__(
        self,
        pool: ConnectionPool,
        timeout_s: float,
        check: Callable[["Link"], Awaitable[None]] | None = None,
    ) -> None:
        """check: called on each new connection before its first command."""
        self._connection: Any = pool.make_connection()  # type: ignore[no-untyped-call]
        self._timeout_s, self._check = timeout_s, check
        self._turn = asyncio.Lock()

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands, as far as anyone has noticed."""
        return bool(self._connection.is_connected)

    @property
    def is_busy(self) -> bool:
        """Whether a command is under way."""
        return self._turn.locked()

    async def call(self, *command: object) -> Any:
        """The reply to one command, as bytes and lists.

        Raises Unavailable("store_unavailable") when it was not carried out,
        Unavailable("outcome_unknown") when nobody knows, ScriptError for `CODE text` of ours.
        """
        async with self._turn:
            try:
                await self._connect()
                async with asyncio.timeout(self._timeout_s):
                    await self._connection.send_command(*command, check_health=False)
                    return await self._connection.read_response()
            except (ResponseError, BusyLoadingError) as error:
                # An answer: the connection is as good as before.
                raise _translate(error) from error
            except AuthenticationError as error:
                await self.close()
                raise _not_let_in(error) from error
            except (RedisError, OSError, TimeoutError) as error:
                await self.close()
                raise Unavailable(
                    "outcome_unknown",
                    f"no answer from Redis, nobody knows the outcome: {self._spelled(error)}",
                ) from error
            except asyncio.CancelledError:
                # The reply, also one to the greeting, would be taken for that to the next command.
                await self.close()
                raise

    async def _connect(self) -> None:
        if self.is_connected:
            if not self._has_ended():
                return
            # The server has gone, and what is sent now would have an unknown outcome for no reason.
            await self.close()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._connection.connect()
        except AuthenticationError as error:
            await self.close()
            raise _not_let_in(error) from error
        except (RedisError, OSError, TimeoutError) as error:
            await self.close()
            raise Unavailable(
                "store_unavailable", f"Redis does not answer: {self._spelled(error)}"
            ) from error
        if self._check is not None:
            try:
                await self._check(self)
            except Unavailable:
                await self.close()
                raise

    async def first(self, *command: object) -> Any:
        """The reply to a command of the check of a new connection."""
        async with asyncio.timeout(self._timeout_s):
            await self._connection.send_command(*command, check_health=False)
            return await self._connection.read_response()

    def _has_ended(self) -> bool:
        # redis-py tells it by trying to read, with a time limit, which costs more than the command.
        reader: asyncio.StreamReader | None = getattr(self._connection, "_reader", None)
        return reader is not None and reader.at_eof()

    def _spelled(self, error: Exception) -> str:
        return str(error) or f"nothing within {self._timeout_s:.0f} s"

    async def run(self, script: Script, key: str, *args: object) -> Any:
        """The reply of a script whose first key is `key`; loads it where the server lost it."""
        try:
            return await self.call("EVALSHA", script.sha, 1, key, *args)
        except NoScriptError:
            await self.call("SCRIPT", "LOAD", script.text)
            return await self.call("EVALSHA", script.sha, 1, key, *args)
        except ScriptError as error:
            if error.code == "ERR":
                raise Broken(f"lua/{script.name}.lua: {script.explain(error.text)}") from error
            raise

    async def close(self) -> None:
        """Drop the connection; the next call makes a new one."""
        await self._connection.disconnect(nowait=True)


async def info_of(link: Link, section: str, name: str) -> str:
    """A field of INFO; "" where the server has none of that name."""
    info = (await link.call("INFO", section)).decode()
    lines = (line.partition(":") for line in info.splitlines())
    return next((value.strip() for key, _, value in lines if key == name), "")


def _not_let_in(error: AuthenticationError) -> Unavailable:
    is_asked = "required" in str(error)
    return Unavailable("store_unavailable", _SERVER_CANNOT["NOAUTH" if is_asked else "WRONGPASS"])


def _translate(error: RedisError) -> Exception:
    if isinstance(error, NoScriptError):
        return error
    text = str(error)
    # redis-py takes the codes that it knows off the text and keeps them beside it.
    known = getattr(error, "status_code", None)
    code, rest = (known, text) if known else text.split(" ", 1) if " " in text else ("ERR", text)
    if code == "OOM":
        return store_full("Redis has reached its maxmemory")
    if code in _SERVER_CANNOT:
        return Unavailable("store_unavailable", _SERVER_CANNOT[code])
    return ScriptError(code, rest) if code.isupper() else ScriptError("ERR", text)
