"""The paced load: writes at a steady pace, and how long each takes to be seen in another region.

One process holds all ends, so one clock times them: connections that write in region one, a `watch`
of region two, and connections that post nothing to the peer listener of region two. That POST is
answered with 405 by the listener itself: the shortest way to that process and back. The pace does
not wait for answers: a pause of the machine meets as many requests as are due in it.

First the round trips alone, then together with the writes. Prints JSON, times in microseconds:
{"rate": writes answered per second, "lag": p99 from the answer of a write to its change event,
"trip": p99 of the round trips meanwhile, "trip_at_rest": p99 of those before}.
"""

import argparse
import asyncio
import contextlib
import json
import math
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import cast
from urllib.parse import urlsplit

import uvloop

from bench.load import LENGTH, post
from bench.texts import write_bodies

TRIPS_PER_S = 200
TRIP_CONNECTIONS = 8
LAST_CHANGE_LIMIT_S = 20.0

_REVISION = re.compile(rb'"revision":"(\d+)"')
_TIMESTAMP = re.compile(rb'"transaction":\{"origin":"[^"]*","timestamp":"(\d+)"\}')
_CHECKPOINT = b"event: checkpoint\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """sent, came: seconds of `time.perf_counter`."""

    sent: float
    came: float
    text: bytes


class Pacer:
    """Sends requests when they are due; while all connections are busy they wait for one.

    status: what begins every good answer; any other ends the run.
    """

    def __init__(self, requests: Iterator[bytes], per_s: float, status: bytes) -> None:
        self._requests, self._per_s, self._status = requests, per_s, status
        self._idle: list[_Connection] = []
        self._owed = 0
        self._is_over = False
        self.answers: list[Answer] = []
        # Never done, but with the reason why it cannot go on.
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, seconds: float) -> None:
        """Keep the pace for so long."""
        began, due = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - began) < seconds:
            newly_due = int(elapsed * self._per_s) - due
            due += newly_due
            self._owed += newly_due
            self._send()
            next_s = began + (due + 1) / self._per_s - time.perf_counter()
            await asyncio.wait({self.failed}, timeout=max(next_s, 0.0))
            if self.failed.done():
                self.failed.result()
        self._owed = 0

    def is_free(self, connection: "_Connection") -> None:
        self._idle.append(connection)
        self._send()

    def take(self, answer: Answer) -> None:
        if answer.text.startswith(self._status):
            self.answers.append(answer)
        else:
            self.fail(answer.text[:500].decode(errors="replace"))

    def fail(self, reason: str) -> None:
        if not self._is_over and not self.failed.done():
            self.failed.set_exception(RuntimeError(reason))

    def end(self) -> None:
        """From now on a lost connection is no failure."""
        self._is_over = True

    def _send(self) -> None:
        while self._owed and self._idle:
            self._owed -= 1
            self._idle.pop().send(next(self._requests))


class _Connection(asyncio.Protocol):
    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._received = b""
        self._sent = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._pacer.is_free(self)

    def send(self, request: bytes) -> None:
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        came = time.perf_counter()
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        length = LENGTH.search(self._received, 0, head + 2) if head >= 0 else None
        if length is None or len(self._received) < head + 4 + int(length[1]):
            return
        answer, self._received = Answer(self._sent, came, self._received), b""
        self._pacer.take(answer)
        self._pacer.is_free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pacer.fail(f"the server ended a connection: {exc}")


@dataclass(slots=True)
class Seen(asyncio.Protocol):
    """A watch: when the change of each timestamp came, in seconds of `time.perf_counter`."""

    request: bytes
    came: dict[bytes, float] = field(default_factory=dict)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    received: bytes = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self.request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self.received += data
        if not self.begun.is_set():
            if _CHECKPOINT in self.received:
                self.begun.set()
            return
        end = 0
        for found in _TIMESTAMP.finditer(self.received):
            self.came[found[1]] = now
            end = found.end()
        self.received = self.received[end:]


async def measure(args: argparse.Namespace) -> dict[str, float]:
    """The round trips at rest; then writes, and round trips beside them."""
    seen = Seen(post(args.watch_url, b"{}"))
    async with _connected(args.watch_url, 1, lambda: seen):
        async with asyncio.timeout(LAST_CHANGE_LIMIT_S):
            await seen.begun.wait()
        at_rest, trips = _trips(args.trip_url), _trips(args.trip_url)
        async with connected_to(at_rest, args.trip_url, TRIP_CONNECTIONS):
            await at_rest.run(args.measured)
        bodies = write_bodies(args.series, math.ceil(args.rate * args.measured) + 1, 1)
        requests = [post(args.write_url, body) for body in bodies]
        writes = Pacer(iter(requests), args.rate, b"HTTP/1.1 200 ")
        async with (
            connected_to(writes, args.write_url, args.connections),
            connected_to(trips, args.trip_url, TRIP_CONNECTIONS),
            asyncio.TaskGroup() as group,
        ):
            group.create_task(writes.run(args.measured))
            group.create_task(trips.run(args.measured))
        lags = await _lags(writes.answers, seen)
    return {
        "rate": len(writes.answers) / args.measured,
        "lag": p99_us(lags),
        "trip": p99_us([one.came - one.sent for one in trips.answers]),
        "trip_at_rest": p99_us([one.came - one.sent for one in at_rest.answers]),
    }


def p99_us(seconds: Sequence[float]) -> float:
    """The 99th percentile in microseconds: a hundredth of them is above it, at most."""
    return percentile_us(seconds, 0.99)


def percentile_us(seconds: Sequence[float], part: float) -> float:
    """What so large a part of them does not exceed, in microseconds."""
    if not seconds:
        raise RuntimeError("nothing was answered")
    return sorted(seconds)[math.ceil(part * len(seconds)) - 1] * 1e6


async def _lags(answers: Sequence[Answer], seen: Seen) -> list[float]:
    """Seconds from each answer to its change; waits for the last of them."""
    # The revision of a write is the timestamp of its transaction, in every region.
    answered = {_revision(one.text): one.came for one in answers}
    deadline = time.monotonic() + LAST_CHANGE_LIMIT_S
    while missing := answered.keys() - seen.came.keys():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(missing)} of {len(answered)} changes never came")
        await asyncio.sleep(0.01)
    return [seen.came[revision] - came for revision, came in answered.items()]


def _revision(answer: bytes) -> bytes:
    found = _REVISION.search(answer)
    if found is None:
        raise RuntimeError(f"a write without a revision: {answer[:500]!r}")
    return found[1]


def _trips(url: str) -> Pacer:
    return Pacer(repeat(post(url, b"")), TRIPS_PER_S, b"HTTP/1.1 405 ")


@contextlib.asynccontextmanager
async def connected_to(pacer: Pacer, url: str, connections: int) -> AsyncIterator[None]:
    """So many connections for a pacer, until the context ends."""
    async with _connected(url, connections, lambda: _Connection(pacer)):
        try:
            yield
        finally:
            pacer.end()


@contextlib.asynccontextmanager
async def _connected(
    url: str, connections: int, protocol: Callable[[], asyncio.Protocol]
) -> AsyncIterator[None]:
    place = urlsplit(url)
    loop = asyncio.get_running_loop()
    transports = []
    try:
        for _ in range(connections):
            transport, _ = await loop.create_connection(
                protocol, str(place.hostname), int(place.port or 80)
            )
            transports.append(transport)
        yield
    finally:
        for transport in transports:
            transport.close()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--write-url", required=True, help="region one")
    options.add_argument("--watch-url", required=True, help="region two")
    options.add_argument("--trip-url", required=True, help="peer listener of region two")
    options.add_argument("--series", required=True, help="names of the tuples that are written")
    options.add_argument("--connections", type=int, required=True)
    options.add_argument("--rate", type=float, required=True, help="writes per second")
    options.add_argument("--measured", type=float, required=True, help="seconds")
    print(json.dumps(uvloop.run(measure(options.parse_args()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
