"""A link with a delay: a TCP proxy that hands on what it takes so much later, in both directions.

It takes whatever comes and holds it in memory: unlimited bandwidth. What is under way is bounded by
the window of the session that runs over it.
"""

import argparse
import asyncio
import signal
import sys
from collections import deque
from typing import Self, cast

import uvloop


class End(asyncio.Protocol):
    """One of the two connections of a link; what it takes leaves at the other one."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._loop = asyncio.get_running_loop()
        self._late: deque[tuple[float, bytes | None]] = deque()
        self._other: Self | None = None
        self._transport: asyncio.Transport | None = None

    def join(self, other: Self) -> None:
        """`other` is connected: what was taken so far leaves there."""
        self._other = other
        self._hand_on()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        # None: the end arrives as late as everything else.
        self._take(None)

    def leave(self, data: bytes | None) -> None:
        """Send this, or end."""
        if self._transport is None or self._transport.is_closing():
            return
        if data is None:
            self._transport.close()
        else:
            self._transport.write(data)

    def _take(self, data: bytes | None) -> None:
        self._late.append((self._loop.time() + self._delay_s, data))
        if len(self._late) == 1:
            self._loop.call_later(self._delay_s, self._hand_on)

    def _hand_on(self) -> None:
        if self._other is None:
            return
        # A millisecond is what the timers of uvloop can tell apart.
        now = self._loop.time() + 0.001
        while self._late and self._late[0][0] <= now:
            self._other.leave(self._late.popleft()[1])
        if self._late:
            self._loop.call_later(self._late[0][0] - self._loop.time(), self._hand_on)


async def serve(args: argparse.Namespace) -> None:
    """Until SIGTERM."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    joining: set[asyncio.Task[None]] = set()

    async def join(near: End) -> None:
        far = End(args.delay_ms / 1000)
        try:
            await loop.create_connection(lambda: far, "127.0.0.1", args.to)
        except OSError:
            near.leave(None)  # nobody there yet: the sender comes again
            return
        far.join(near)
        near.join(far)

    def accept() -> End:
        near = End(args.delay_ms / 1000)
        task = loop.create_task(join(near))
        joining.add(task)
        task.add_done_callback(joining.discard)
        return near

    server = await loop.create_server(accept, "127.0.0.1", args.port)
    await stop.wait()
    server.close()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, required=True, help="to listen on")
    options.add_argument("--to", type=int, required=True, help="port at the other end")
    options.add_argument("--delay-ms", type=float, required=True, help="each way")
    uvloop.run(serve(options.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
