"""The viewers of the dashboard: one asker for all of them, none for nobody, and a limit on each."""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from sidecar.admin.events import QUEUED, Viewers
from sidecar.api.answers import Answers
from sidecar.api.listener import AppListener
from sidecar.core.topology import Node, NodeId, RegionId, ZoneId
from sidecar.endings import end
from sidecar.errors import Unavailable
from tests.servers import free_ports

HERE = Node(NodeId("node1"), RegionId("us-west-1"), ZoneId("us-west-1a"), "127.0.0.1:1")


@dataclass
class Counting:
    """A topic of which each look is news, and counted."""

    name: str = "count"
    period_s: float = 0.01
    size: int = 0
    is_away: bool = False
    looks: "itertools.count[int]" = field(default_factory=itertools.count)
    looked: int = 0
    forgotten: int = 0

    async def news(self) -> str | None:
        self.looked = next(self.looks) + 1
        if self.is_away:
            raise Unavailable("store_unavailable", "away")
        return f'{{"looked":{self.looked},"more":"{"x" * self.size}"}}'

    def forget(self) -> None:
        self.forgotten += 1


@dataclass
class Stage:
    """A listener with nothing but `/events`."""

    url: str
    viewers: Viewers
    topic: Counting
    session: aiohttp.ClientSession
    observing: list[bool]
    runner: web.AppRunner

    @contextlib.asynccontextmanager
    async def looking(self) -> AsyncIterator[aiohttp.ClientResponse]:
        async with self.session.get(self.url) as answer:
            yield answer

    async def until(self, name: str, answer: aiohttp.ClientResponse) -> str:
        """The data of the next event of that name."""
        while True:
            line = (await answer.content.readline()).decode()
            if not line:
                raise EOFError
            if line.rstrip() == f"event: {name}":
                return (await answer.content.readline()).decode().removeprefix("data: ").rstrip()

    async def until_nobody(self) -> None:
        async with asyncio.timeout(10):
            while self.viewers.count or self.observing or not self.topic.forgotten:
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running(
    limit: int = 100, topic: Counting | None = None, idle_s: float = 5.0
) -> AsyncIterator[Stage]:
    observing: list[bool] = []

    async def observe() -> None:
        observing.append(True)
        try:
            await asyncio.Event().wait()
        finally:
            observing.remove(True)

    answers, topic = Answers(HERE), topic or Counting()
    viewers = Viewers(
        answers,
        [topic],
        observe=observe,
        history=lambda: '{"samples":[]}',
        limit=limit,
        idle_s=idle_s,
    )
    app = web.Application()
    viewers.add_to(app)
    runner = AppListener(app, answers, shutdown_timeout=5.0)
    await runner.setup()
    (port,) = free_ports(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    async with asyncio.TaskGroup() as group, aiohttp.ClientSession() as session:
        loop = group.create_task(viewers.run())
        url = f"http://127.0.0.1:{port}/events"
        try:
            yield Stage(url, viewers, topic, session, observing, runner)
        finally:
            await runner.cleanup()
            await end([loop])


async def test_nobody_is_asked_while_nobody_looks() -> None:
    async with running() as stage:
        assert (stage.topic.looked, stage.observing) == (0, [])
        async with stage.looking() as answer:
            await stage.until("count", answer)
            assert stage.observing == [True]
        await stage.until_nobody()
        looked = stage.topic.looked
        assert stage.topic.forgotten == 1
        async with stage.looking() as answer:
            await stage.until("count", answer)
        assert looked > 0
        assert stage.topic.looked > looked


async def test_ten_viewers_cost_one_asker() -> None:
    """All of them are told the same event, made once."""
    async with running() as stage, contextlib.AsyncExitStack() as stack:
        answers = [await stack.enter_async_context(stage.looking()) for _ in range(10)]
        told = [await stage.until("count", answer) for answer in answers]
        last = [await stage.until("count", answer) for answer in answers]
        assert stage.observing == [True]
        assert len(told) == len(last) == stage.viewers.count == 10
        assert stage.topic.looked < 10 * len(told)


async def test_a_newcomer_is_told_at_once_what_the_others_know() -> None:
    slow = Counting(period_s=60.0)
    async with running(topic=slow) as stage, stage.looking() as first:
        assert await stage.until("history", first) == '{"samples":[]}'
        before = await stage.until("count", first)
        async with stage.looking() as second:
            assert await stage.until("count", second) == before
        assert slow.looked == 1


async def test_a_store_that_is_away_ends_nothing() -> None:
    async with running() as stage, stage.looking() as answer:
        await stage.until("count", answer)
        stage.topic.is_away = True
        looked = stage.topic.looked
        async with asyncio.timeout(10):
            while stage.topic.looked < looked + 3:
                await asyncio.sleep(0)
        stage.topic.is_away = False
        await stage.until("count", answer)


async def test_more_viewers_than_the_limit_are_refused_until_one_goes() -> None:
    async with running(limit=2) as stage:
        async with stage.looking(), stage.looking(), stage.looking() as third:
            assert third.status == 503
            refused = await third.json()
            assert refused["error"] == "too_many_viewers"
            assert "at most 2" in refused["message"]
        await stage.until_nobody()
        async with stage.looking() as answer:
            assert answer.status == 200


async def test_a_viewer_that_does_not_read_is_cut_off_and_holds_up_nobody() -> None:
    large = Counting(size=500_000)
    async with running(topic=large) as stage:
        port = int(stage.url.rpartition(":")[2].partition("/")[0])
        with socket.create_connection(("127.0.0.1", port)) as deaf:
            deaf.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(30):
                while not stage.viewers.count:
                    await asyncio.sleep(0)
                async with stage.looking() as reader:
                    while stage.viewers.count != 1:
                        await stage.until("count", reader)
                    await stage.until("count", reader)
        assert large.looked > QUEUED


async def test_a_quiet_stream_has_heartbeats() -> None:
    quiet = Counting(period_s=60.0)
    async with running(topic=quiet, idle_s=0.05) as stage, stage.looking() as answer:
        await stage.until("count", answer)
        while (line := await answer.content.readline()) != b": idle\n":
            assert line, "the stream has ended"


async def test_the_end_of_the_node_ends_the_streams() -> None:
    async with running() as stage, stage.looking() as answer:
        await stage.until("count", answer)
        await stage.runner.cleanup()
        with contextlib.suppress(EOFError):
            while True:
                await stage.until("count", answer)
        assert stage.viewers.count == 0
