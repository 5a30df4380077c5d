"""How nodes are believed to be: patient with failures, quick with good news."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from sidecar.agent.probe import Probes
from sidecar.core.router import NodeHealth
from sidecar.core.topology import Node, NodeId, RegionId, ZoneId
from sidecar.endings import end
from sidecar.errors import Unavailable
from sidecar.metrics import Metrics

HEALTHY, DEGRADED, UNREACHABLE = NodeHealth
OTHER = Node(NodeId("n2"), RegionId("eu"), ZoneId("eua"), "n2.test:1")
OWN = NodeId("n1")


class Script:
    """Answers each probe with the next word, `away` with a failure, and then waits for ever."""

    def __init__(self, words: str) -> None:
        self._words = words.split()
        self.is_over = asyncio.Event()

    async def get(self, endpoint: str, path: str) -> dict[str, Any]:
        assert (endpoint, path) == ("n2.test:1", "/health")
        if not self._words:
            self.is_over.set()
            await asyncio.Event().wait()
        word = self._words.pop(0)
        if word == "away":
            raise Unavailable("unreachable", "no route")
        return {"status": word}


def probes_of(script: Script) -> Probes:
    calls: Any = script
    return Probes([OTHER], calls, lambda: DEGRADED, Metrics(), interval_s=0.0)


@pytest.mark.parametrize(
    ("words", "health"),
    [
        ("", HEALTHY),
        ("healthy", HEALTHY),
        ("degraded", DEGRADED),
        ("away", UNREACHABLE),
        ("healthy away", HEALTHY),
        ("degraded away", DEGRADED),
        ("healthy away away", UNREACHABLE),
        ("healthy away healthy away", HEALTHY),
        ("healthy away away healthy", HEALTHY),
        ("away healthy away", HEALTHY),
    ],
)
async def test_one_failure_is_not_believed_and_one_success_is(
    words: str, health: NodeHealth
) -> None:
    script = Script(words)
    probes = probes_of(script)
    assert probes.health_of(OTHER.id) is HEALTHY
    running = asyncio.create_task(probes.run())
    try:
        async with asyncio.timeout(5):
            await script.is_over.wait()
        assert probes.health_of(OTHER.id) is health
        assert probes.seen() == {"n2": health.value}
    finally:
        await end([running])


async def test_a_request_that_did_not_arrive_counts_as_a_probe() -> None:
    script = Script("healthy away")
    probes = probes_of(script)
    running = asyncio.create_task(probes.run())
    try:
        async with asyncio.timeout(5):
            await script.is_over.wait()
        probes.doubt(OTHER.id)
        assert probes.health_of(OTHER.id) is UNREACHABLE
    finally:
        await end([running])


async def test_a_session_that_ended_lets_a_node_be_asked_before_its_turn() -> None:
    script = Script("healthy away")
    calls: Any = script
    probes = Probes([OTHER], calls, lambda: HEALTHY, Metrics(), interval_s=3_600)
    running = asyncio.create_task(probes.run())
    try:
        async with asyncio.timeout(5):
            while not script.is_over.is_set():
                probes.ask_now(OTHER.id)
                await asyncio.sleep(0)
        assert probes.health_of(OTHER.id) is HEALTHY
    finally:
        await end([running])


async def test_a_node_that_serves_again_is_told_of_once() -> None:
    """Whoever waits to try again may try now."""
    script: Any = Script("healthy away away healthy degraded healthy")
    told: list[str] = []
    probes = Probes(
        [OTHER], script, lambda: HEALTHY, Metrics(), interval_s=0.0, serves_again=told.append
    )
    running = asyncio.create_task(probes.run())
    await script.is_over.wait()
    await end([running])
    assert told == ["n2"]


def test_this_node_is_asked_directly_and_can_not_be_doubted() -> None:
    probes = probes_of(Script(""))
    probes.doubt(OWN)
    assert probes.health_of(OWN) is DEGRADED


async def test_nodes_come_and_go_while_the_others_are_asked_on() -> None:
    """A new one serves when it has said so, and one that goes is asked no more."""
    new = Node(NodeId("n3"), OTHER.region, OTHER.zone, "n3.test:1")
    calls = Everywhere()
    asked: Any = calls
    metrics = Metrics()
    probes = Probes([OTHER], asked, lambda: DEGRADED, metrics, interval_s=0.0)
    running = asyncio.create_task(probes.run())
    try:
        async with asyncio.timeout(5):
            await calls.are_asked("n2.test:1")
            calls.healthy.add("n2.test:1")
            probes.adapt([OTHER, new])
            assert probes.health_of(new.id) is UNREACHABLE
            await calls.are_asked("n2.test:1", "n3.test:1")
            assert probes.seen() == {"n2": "healthy", "n3": "unreachable"}
            calls.healthy.add("n3.test:1")
            while probes.health_of(new.id) is not HEALTHY:
                await asyncio.sleep(0)
            waiting = asyncio.create_task(probes.ask(OTHER.id))
            await asyncio.sleep(0)
            probes.adapt([new])
            await waiting  # nobody waits for a node that is asked no more
            assert probes.seen() == {"n3": "healthy"}
            assert 'target="n2"' not in metrics.render().decode()
            probes.adapt([])
            calls.count.clear()
            for _ in range(20):
                await asyncio.sleep(0)
            assert not calls.count
    finally:
        await end([running])


class Everywhere:
    """Nodes of which some are healthy and the others away; counts who is asked."""

    def __init__(self) -> None:
        self.healthy: set[str] = set()
        self.count: Counter[str] = Counter()

    async def get(self, endpoint: str, path: str) -> dict[str, Any]:
        self.count[endpoint] += 1
        await asyncio.sleep(0)
        if endpoint not in self.healthy:
            raise Unavailable("unreachable", "no route")
        return {"status": "healthy"}

    async def are_asked(self, *endpoints: str) -> None:
        """Each of them three times more."""
        self.count.clear()
        while min(self.count[endpoint] for endpoint in endpoints) < 3:
            await asyncio.sleep(0)
