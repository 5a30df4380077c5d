"""Emptying a data set: all keys of one node, so that it begins anew.

Nobody may serve it meanwhile. Owns which keys belong to a data set, not whether it is meant.
"""

from dataclasses import dataclass
from typing import Any

from sidecar.errors import Refused, Unavailable
from sidecar.store.keys import Keys
from sidecar.store.link import Link, pool_of

SCAN_COUNT = 1000


@dataclass(frozen=True, slots=True)
class Stored:
    """What there is. node: "" where there is no data set; revision: its newest."""

    node: str
    revision: int
    tuples: int
    transactions: int
    keys: int


class DataSet:
    """All keys of a node in the Redis at `url`, whatever their partition. Close it after use."""

    def __init__(self, url: str, keys: Keys, timeout_s: float) -> None:
        self._keys = keys
        self._link = Link(pool_of(url, timeout_s), timeout_s)

    async def close(self) -> None:
        """Drop the connection."""
        await self._link.close()

    async def stored(self) -> Stored:
        """Count it. Raises Unavailable when Redis does not answer."""
        node, clock = await self._call("HMGET", self._keys.meta, "node", "clock")
        keys = tuples = transactions = 0
        cursor = b"0"
        while True:
            cursor, names = await self._scan(cursor)
            keys += len(names)
            for name in names:
                text = name.decode(errors="replace")
                of_it = self._keys.of(self._keys.partition_in(text))
                if text.startswith(of_it.stored("")):
                    tuples += int(await self._call("HLEN", name))
                elif text == of_it.feed:
                    transactions += int(await self._call("XLEN", name))
            if cursor == b"0":
                break
        return Stored((node or b"").decode(), int(clock or 0), tuples, transactions, keys)

    async def empty(self) -> None:
        """Delete every key. A `meta` goes last: what is left of an interrupted one can be told."""
        cursor = b"0"
        while True:
            cursor, names = await self._scan(cursor)
            rest = [name for name in names if name != self._keys.meta.encode()]
            if rest:
                await self._call("UNLINK", *rest)
            if cursor == b"0":
                break
        await self._call("UNLINK", self._keys.meta)
        left = await self.stored()
        if left.keys:
            raise Refused(
                "store_in_use",
                f"{left.keys} keys came back while they were deleted: a sidecar still runs on this "
                "data; stop it and run reset again",
            )

    async def _scan(self, cursor: bytes) -> tuple[bytes, list[bytes]]:
        wanted = ("MATCH", self._keys.pattern, "COUNT", SCAN_COUNT)
        following, names = await self._call("SCAN", cursor, *wanted)
        return following, names

    async def _call(self, *command: object) -> Any:
        try:
            return await self._link.call(*command)
        except Unavailable as unavailable:
            raise Unavailable("store_unavailable", f"redis.url: {unavailable.message}") from None
