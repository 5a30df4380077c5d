"""Targets without a store: the other end of sessions, in one process, on a port for each.

Each acknowledges what has come when nothing more waits, up to the bytes that a node merges at once.
A node needs a Valkey and most of a core beside it; of these, five leave a small machine to the
sender. Ends when every one has everything, and prints {"batches": acknowledged ones}.
"""

import argparse
import asyncio
import json
import sys

import uvloop
from aiohttp import WSMsgType, web

from sidecar.config import Config
from sidecar.core.conflict import ConflictResolutionStrategy, Rules
from sidecar.core.session import AckOutcome, Party, acknowledge, greet, heartbeat, welcome
from sidecar.core.wire import FORMAT, MAX_FRAME_BYTES, decode_frame, encode_vector
from sidecar.peer.client import PATH
from sidecar.peer.server import MAX_MERGE_BYTES, READ_AHEAD
from sidecar.store.keys import Keys
from sidecar.store.redis_store import PARTITIONS

Frame = tuple[dict[str, object], bytes]


class Receiver:
    """One target: has so many transactions of the one node that ships to it."""

    def __init__(self, node: str, region: str, sources: dict[str, str], wanted: int) -> None:
        self._sources, self._wanted = sources, wanted
        self._me = Party(
            node=node,
            region=region,
            partition=Keys(Config().redis.prefix).partition,
            partitions=PARTITIONS,
            format=FORMAT,
            rules=Rules.of(ConflictResolutionStrategy.LAST_WRITE_WINS).fingerprint,
        )
        self._vector: dict[str, int] = {}
        self._received = 0
        self.batches = 0
        self.has_all = asyncio.Event()

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """A session, until the sender ends it."""
        socket = web.WebSocketResponse(max_msg_size=MAX_FRAME_BYTES, compress=False)
        await socket.prepare(request)
        hello, _ = decode_frame((await socket.receive()).data)
        _, protocol = greet(hello, self._me, self._sources)
        origin = f"{self._me.node}.receiver0000"
        await _send(socket, welcome(self._me, origin, protocol, self._facts()))
        frames: asyncio.Queue[Frame] = asyncio.Queue(maxsize=READ_AHEAD)
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(self._answer(socket, frames, str(hello["origin"])))
            while (message := await socket.receive()).type in (WSMsgType.TEXT, WSMsgType.BINARY):
                await frames.put(decode_frame(message.data))
            answering.cancel()
        return socket

    def _facts(self) -> dict[str, object]:
        return {"vector": encode_vector(self._vector)}

    async def _answer(
        self, socket: web.WebSocketResponse, frames: asyncio.Queue[Frame], origin: str
    ) -> None:
        size = 0
        while True:
            head, lines = await frames.get()
            if head["type"] == "heartbeat":
                await _send(socket, heartbeat(self._facts()))
                continue
            size += len(lines)
            self.batches += 1
            self._received += lines.count(b"\n") + 1
            last = json.loads(lines[lines.rfind(b"\n") + 1 :])
            self._vector[origin] = int(last["timestamp"])
            if frames.empty() or size > MAX_MERGE_BYTES:
                size = 0
                ack = acknowledge(head["batch"], AckOutcome.APPLIED, self._vector, self._vector)
                await _send(socket, ack)
                if self._received >= self._wanted:
                    self.has_all.set()


async def receive(args: argparse.Namespace) -> dict[str, int]:
    """Serve all targets until each has everything."""
    receivers = []
    runners = []
    source_node, source_region = args.source.split(":")
    try:
        for target in args.targets:
            node, region, port = target.split(":")
            receiver = Receiver(node, region, {source_node: source_region}, args.wanted)
            app = web.Application()
            app.router.add_get(PATH, receiver.serve)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            runners.append(runner)
            receivers.append(receiver)
            await web.TCPSite(runner, "127.0.0.1", int(port)).start()
        for receiver in receivers:
            await receiver.has_all.wait()
    finally:
        for runner in runners:
            await runner.cleanup()
    return {"batches": sum(receiver.batches for receiver in receivers)}


async def _send(socket: web.WebSocketResponse, frame: str | bytes) -> None:
    if isinstance(frame, str):
        await socket.send_str(frame)
    else:
        await socket.send_bytes(frame)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("targets", nargs="+", metavar="node:region:port")
    options.add_argument("--source", required=True, metavar="node:region", help="who ships")
    options.add_argument("--wanted", type=int, required=True, help="transactions for each")
    print(json.dumps(uvloop.run(receive(options.parse_args()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
