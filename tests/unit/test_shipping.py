"""What an operator stops and starts, and the sessions that end and begin by it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Never

from sidecar import logs
from sidecar.agent.ship import Shipping
from sidecar.config import checked
from sidecar.endings import end
from sidecar.metrics import Metrics
from sidecar.partition import Partition
from sidecar.peer.calls import PeerCalls
from sidecar.peer.client import Dialler


class SlowLinks(Dialler):
    """Links over which nothing comes, to a node that takes its time to let one end."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.requests: list[str] = []
        self.begun, self.is_ending = asyncio.Semaphore(0), asyncio.Semaphore(0)
        self.may_end = asyncio.Event()

    @asynccontextmanager
    async def dial(self, target: str, endpoint: str) -> AsyncIterator[Never]:
        self.requests.append(logs.request_id())
        self.begun.release()
        try:
            await asyncio.Event().wait()
            yield  # type: ignore[misc]
        finally:
            self.is_ending.release()
            await self.may_end.wait()


@asynccontextmanager
async def shipping_by(links: SlowLinks, url: str) -> AsyncIterator[Shipping]:
    """That of node n1, whose only target is n2."""
    regions = [
        {"id": one, "zones": [{"id": f"{one}a", "nodes": [{"id": node, "endpoint": place}]}]}
        for one, node, place in (("us", "n1", "127.0.0.1:1"), ("eu", "n2", "127.0.0.1:2"))
    ]
    config = checked({"node": "n1", "replication": {"local_region": "us", "regions": regions}})
    async with Partition(config, url, Metrics(), links, PeerCalls(1.0)) as partition:
        running = asyncio.create_task(partition.shipping.run())
        try:
            yield partition.shipping
        finally:
            links.may_end.set()
            await end([running])


async def test_a_session_begins_when_the_one_before_has_ended(valkey_url: str) -> None:
    """Of two, the one that ends would say of the other that it does not stand: nothing would keep
    the feed that it needs, and nobody would wait for it at the end of the node.
    """
    links = SlowLinks()
    async with shipping_by(links, valkey_url) as shipping, asyncio.timeout(10):
        await links.begun.acquire()
        for stop in (shipping.pause, shipping.resync):
            links.may_end.clear()
            ending = asyncio.create_task(stop("n2"))
            await links.is_ending.acquire()
            shipping.resume("n2")
            assert sessions() == 1
            links.may_end.set()
            await ending
            await links.begun.acquire()
            assert sessions() == 1


def sessions() -> int:
    return sum(task.get_name() == "ship to n2" for task in asyncio.all_tasks())


async def test_what_a_session_logs_is_not_about_the_request_that_began_it(valkey_url: str) -> None:
    links = SlowLinks()
    links.may_end.set()
    async with shipping_by(links, valkey_url) as shipping, asyncio.timeout(10):
        await links.begun.acquire()

        async def request() -> None:
            logs.speak_of_request("order-17")
            await shipping.pause()
            shipping.resume()
            await links.begun.acquire()
            await shipping.resync("n2")
            await links.begun.acquire()

        await asyncio.create_task(request())
        assert links.requests == ["", "", ""]
