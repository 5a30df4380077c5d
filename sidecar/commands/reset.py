"""`sidecar reset`: empties the data set of a stopped node.

It says what it is about to delete, and deletes only when that was asked for. A node whose data is
embedded is known to be stopped, because its folder is locked while it runs; with a Redis of its own
the operator vouches for it.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from sidecar.config import Config
from sidecar.errors import Refused
from sidecar.store.embedded import EmbeddedValkey
from sidecar.store.keys import Keys
from sidecar.store.reset import DataSet, Stored

EMBEDDED = "embedded:"
LOCK_WAIT_S = 1.0


async def reset_node(config: Config, *, is_sure: bool, say: Callable[[str], None]) -> None:
    """Delete all that `config.this_node` has stored.

    Raises Refused without `is_sure`, for the data of another node, and where there is none;
    Unavailable while a sidecar uses the folder, or when Redis does not answer.
    """
    node = str(config.this_node.id)
    where = config.redis.safe_url
    async with _server(config.redis.url) as url:
        timeout_s = float(config.replication.agent.request_timeout_secs)
        data = DataSet(url, Keys(config.redis.prefix), timeout_s)
        try:
            stored = await data.stored()
            _check(stored, node, where)
            say(
                f"{where} holds the data of {node}: {stored.tuples:,} tuples (with those "
                f"remembered as deleted), {stored.transactions:,} transactions in the feed, "
                f"{stored.keys:,} keys"
            )
            if not is_sure:
                raise Refused(
                    "not_confirmed",
                    "nothing was deleted; run it again with --yes, while no sidecar runs on this "
                    f"data, to delete all of it. What no other node has of {node} is then lost",
                )
            await data.empty()
        finally:
            await data.close()
    say(f"deleted; when {node} starts it is a new incarnation and gets everything from the others")


def _check(stored: Stored, node: str, where: str) -> None:
    if not stored.keys:
        raise Refused(
            "nothing_stored", f"{where} holds no data of {node}: there is nothing to reset"
        )
    if stored.node not in ("", node):
        raise Refused(
            "wrong_store",
            f"{where} holds the data of {stored.node}, not of {node}: check --node and redis.url",
        )


@asynccontextmanager
async def _server(url: str) -> AsyncIterator[str]:
    """The URL of a server that runs; that of an embedded one runs only here."""
    if not url.startswith(EMBEDDED):
        yield url
        return
    async with EmbeddedValkey(_folder(url), lock_wait_s=LOCK_WAIT_S) as valkey:
        yield valkey.url


def _folder(url: str) -> Path:
    folder = Path(url.removeprefix(EMBEDDED))
    if not (folder / "appendonlydir").is_dir():
        raise Refused("nothing_stored", f"{folder} holds no data: there is nothing to reset")
    return folder
