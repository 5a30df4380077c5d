"""The load generator: a process that posts prepared bodies over kept connections.

Each connection has one request under way. Both the product and the floor are driven by it. It does
as little as it can, because it runs on the machine that it measures: a raw protocol under uvloop
that looks for the end of each answer.
Several addresses take turns, so that what slows the machine down meets all of them. Prints JSON:
{"rates": answers per second of each}.
"""

import argparse
import asyncio
import contextlib
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator
from itertools import cycle
from typing import cast
from urllib.parse import urlsplit

import uvloop

from bench.texts import check_bodies, write_bodies

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Load:
    """What all connections share: the requests, and how many answers have come."""

    def __init__(self, requests: Iterator[bytes], wanted: int | None = None) -> None:
        self._requests, self._wanted = requests, wanted
        self.answers = 0
        self.is_over = False
        # Done when all wanted answers are in, or with the reason why they cannot be.
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def next_request(self) -> bytes | None:
        return None if self.is_over else next(self._requests, None)

    def count(self) -> None:
        self.answers += 1
        if self.answers == self._wanted:
            self.is_over = True
            self.ended.set_result(None)

    def fail(self, reason: str) -> None:
        if not self.is_over and not self.ended.done():
            self.ended.set_exception(RuntimeError(reason))


class Connection(asyncio.Protocol):
    """One kept connection: the next request goes out when the answer to the last one is in."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return
        length = LENGTH.search(self._received, 0, head + 2)
        if not self._received.startswith(b"HTTP/1.1 200 ") or length is None:
            self._load.fail(self._received[:500].decode(errors="replace"))
            return
        if len(self._received) < head + 4 + int(length[1]):
            return
        self._received = b""
        self._load.count()
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.fail(f"the server ended a connection: {exc}")

    def _ask(self) -> None:
        request = self._load.next_request()
        if request is not None:
            self._transport.write(request)


async def rates(args: argparse.Namespace) -> dict[str, list[float]]:
    """Each address in turn."""
    if args.per_request:
        bodies = list(write_bodies(args.series, args.bodies, args.per_request))
    else:
        bodies = list(check_bodies(args.series, args.bodies))
    found = [
        await rate(url, bodies, args.connections, args.warm_up, args.measured) for url in args.urls
    ]
    return {"rates": found}


async def rate(
    url: str, bodies: list[bytes], connections: int, warm_up_s: float, measured_s: float
) -> float:
    """Keep so many connections busy; answers per second after the warm-up."""
    load = Load(cycle([post(url, body) for body in bodies]))
    async with _connected(url, load, connections):
        await asyncio.wait({load.ended}, timeout=warm_up_s)
        began, before = time.perf_counter(), load.answers
        await asyncio.wait({load.ended}, timeout=measured_s)
        seconds, answers = time.perf_counter() - began, load.answers - before
    if load.ended.done():
        load.ended.result()
    if not answers:
        raise RuntimeError(f"{url} answers nothing")
    return answers / seconds


async def post_all(url: str, bodies: list[bytes], connections: int) -> None:
    """Post each body once."""
    load = Load((post(url, body) for body in bodies), wanted=len(bodies))
    async with _connected(url, load, connections):
        await load.ended


@contextlib.asynccontextmanager
async def _connected(url: str, load: Load, connections: int) -> AsyncIterator[None]:
    place = urlsplit(url)
    host, port = str(place.hostname), int(place.port or 80)
    loop = asyncio.get_running_loop()
    transports = []
    try:
        for _ in range(connections):
            transport, _ = await loop.create_connection(lambda: Connection(load), host, port)
            transports.append(transport)
        yield
    finally:
        load.is_over = True
        for transport in transports:
            transport.close()


def post(url: str, body: bytes) -> bytes:
    """The bytes of a request."""
    place = urlsplit(url)
    head = (
        f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("urls", nargs="+", metavar="url")
    options.add_argument("--series", required=True, help="names of the tuples that are written")
    options.add_argument("--connections", type=int, required=True)
    options.add_argument("--per-request", type=int, required=True, help="relationships; 0: checks")
    options.add_argument("--bodies", type=int, required=True, help="different ones; then again")
    options.add_argument("--warm-up", type=float, required=True, help="seconds")
    options.add_argument("--measured", type=float, required=True, help="seconds")
    print(json.dumps(uvloop.run(rates(options.parse_args()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
