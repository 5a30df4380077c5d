"""The floors of the store: a bare loop gives a script prepared bytes and waits for each answer.

`write`: groups of writes for so many seconds. `merge`: the feed of another store, in batches.
uvloop, redis-py's connection and hiredis, as in the product; nothing else of the product but the
scripts and the way a tuple is spelled for them. Prints JSON.
"""

import argparse
import json
import sys
import time
from itertools import cycle
from typing import Any

import uvloop
from redis.asyncio.connection import UnixDomainSocketConnection

from bench.texts import TENANT, insertion, triples
from sidecar.core.conflict import ConflictResolutionStrategy, Rules
from sidecar.core.wire import encode_body
from sidecar.store import scripts
from sidecar.store.keys import Keys

PREFIX = "sidecar"
NODE = "node2"
SKEW_US = 60_000_000
READ_COUNT = 1000


class Bare:
    """One connection, and scripts by their hash."""

    def __init__(self, url: str) -> None:
        path = url.removeprefix("unix://")
        self._connection: Any = UnixDomainSocketConnection(path=path, protocol=2)
        self.keys = Keys(PREFIX)

    async def call(self, *command: object) -> Any:
        await self._connection.send_command(*command, check_health=False)
        return await self._connection.read_response(timeout=None)

    async def open(self) -> None:
        """Connect, load the scripts, and make the data set of a node."""
        await self._connection.connect()
        for name in scripts.names():
            await self.call("SCRIPT", "LOAD", scripts.script(name).text)
        rules = Rules.of(ConflictResolutionStrategy.LAST_WRITE_WINS).fingerprint
        opening = scripts.script("open").sha
        named = (NODE, "abcdefgh0123", 1, 1, rules, "any-server", "1")
        await self.call("EVALSHA", opening, 1, self.keys.meta, time.time_ns() // 1000, 0, *named)

    async def connect(self) -> None:
        await self._connection.connect()

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)


async def write(args: argparse.Namespace) -> dict[str, float]:
    """Groups of writes with `per_request` relationships each."""
    tuples = [insertion(one) for one in triples(args.series, args.bodies * args.per_request)]
    step = args.per_request
    texts = [
        encode_body(TENANT, tuples[i : i + step]).encode() for i in range(0, len(tuples), step)
    ]
    pairs = [part for text in texts for part in (text, b"")]
    step = 2 * args.group
    groups = cycle([pairs[i : i + step] for i in range(0, len(pairs), step)])
    bare = Bare(args.url)
    await bare.open()
    head = ("EVALSHA", scripts.script("write").sha, 1, bare.keys.meta)
    done, began, before = 0, 0.0, 0
    warm_until = time.perf_counter() + args.warm_up
    until = warm_until + args.measured
    while (now := time.perf_counter()) < until:
        if not began and now >= warm_until:
            began, before = now, done
        await bare.call(*head, time.time_ns() // 1000, 0, *next(groups))
        done += args.group
    seconds = time.perf_counter() - began
    await bare.close()
    return {"rate": (done - before) / seconds}


async def merge(args: argparse.Namespace) -> dict[str, float]:
    """Everything in the feed of another store, in order."""
    source = Bare(args.source)
    await source.connect()
    texts: list[bytes] = []
    start = "-"
    while found := await source.call("XRANGE", source.keys.feed, start, "+", "COUNT", READ_COUNT):
        texts += [fields[7] for _, fields in found]
        start = f"({found[-1][0].decode()}"
    await source.close()
    batches = [b"\n".join(texts[i : i + args.batch]) for i in range(0, len(texts), args.batch)]
    rules = Rules.of(ConflictResolutionStrategy.LAST_WRITE_WINS).to_json()
    bare = Bare(args.url)
    await bare.open()
    head = ("EVALSHA", scripts.script("merge").sha, 1, bare.keys.meta)
    began = time.perf_counter()
    for batch in batches:
        reply = await bare.call(*head, time.time_ns() // 1000, 0, SKEW_US, rules, batch)
        if reply[0] != b"applied":
            raise RuntimeError(reply)
    seconds = time.perf_counter() - began
    await bare.close()
    return {"rate": len(texts) / seconds}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    verbs = options.add_subparsers(required=True)
    writing = verbs.add_parser("write")
    writing.set_defaults(run=write)
    writing.add_argument("--series", required=True)
    writing.add_argument("--per-request", type=int, required=True, help="relationships")
    writing.add_argument("--bodies", type=int, required=True, help="different ones; then again")
    writing.add_argument("--group", type=int, required=True, help="writes in one call")
    writing.add_argument("--warm-up", type=float, required=True, help="seconds")
    writing.add_argument("--measured", type=float, required=True, help="seconds")
    merging = verbs.add_parser("merge")
    merging.set_defaults(run=merge)
    merging.add_argument("--source", required=True, help="unix:// of the store to read")
    merging.add_argument("--batch", type=int, required=True, help="transactions in one call")
    for each in (writing, merging):
        each.add_argument("--url", required=True, help="unix:// of an empty store")
    args = options.parse_args()
    print(json.dumps(uvloop.run(args.run(args))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
