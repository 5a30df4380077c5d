"""docs/library.md is a program: it runs as it stands there, as a node beside another one."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sidecar import (
    Change,
    ChangeFeed,
    ConflictResolutionStrategy,
    ConflictResolver,
    NodeHealth,
    NodeId,
    Operation,
    Refused,
    RegionId,
    Relationship,
    ReplicationAgent,
    ReplicationConfig,
    ReplicationStrategy,
    RequestType,
    Router,
    Side,
    Topology,
    TopologyBuilder,
    Why,
    ZoneId,
    open_store,
)
from sidecar.store.calls import Filter
from sidecar.store.redis_store import RedisStore
from tests.servers import free_ports

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "library.md"
LIMIT_S = 20.0
LWW = ConflictResolver(ConflictResolutionStrategy.LAST_WRITE_WINS)
DELETE_WINS = ConflictResolver(ConflictResolutionStrategy.DELETE_WINS)
VIEWER = Relationship("default", "document:readme", "viewer", "user:alice")
WEST, EU = RegionId("us-west-1"), RegionId("eu-central-1")


def documented(ports: list[int]) -> str:
    """The blocks of the docs as `main`, each on the line it has there, with free ports."""
    lines, is_code = ["async def main() -> None:"], False
    for line in DOCS.read_text(encoding="utf-8").splitlines()[1:]:
        is_fence = line.startswith("```")
        is_code = line == "```python" if is_fence else is_code
        lines.append(f"    {line}" if is_code and not is_fence and line else "")
    text = "\n".join(lines) + "\n"
    for documented, port in zip(("50051", "50052"), ports, strict=True):
        assert f"localhost:{documented}" in text
        text = text.replace(f"localhost:{documented}", f"localhost:{port}")
    return text


def topology(local_region: RegionId, ports: list[int]) -> Topology:
    builder = TopologyBuilder(ReplicationStrategy.ACTIVE_ACTIVE, local_region)
    for region, node, port in ((WEST, "node1", ports[0]), (EU, "node2", ports[1])):
        zone = ZoneId(f"{region}a")
        builder.add_region(region, region).add_zone(region, zone, "Zone A")
        builder.add_node(region, zone, NodeId(node), f"localhost:{port}")
    return builder.build()


class Program:
    """A program that is the node of a region: its store, feed and agent."""

    def __init__(self, shape: Topology, store: RedisStore, resolver: ConflictResolver) -> None:
        self.store, self.feed = store, ChangeFeed.of(store)
        config = ReplicationConfig(max_retries=1)
        self.agent = ReplicationAgent(shape, self.feed, store, resolver, config)

    async def listed(self) -> list[Relationship]:
        return (await self.store.read_page(Filter("default"), 100)).relationships


@asynccontextmanager
async def running_program(
    region: RegionId, ports: list[int], url: str, resolver: ConflictResolver = DELETE_WINS
) -> AsyncIterator[Program]:
    """A program on the shared server; its agent is started by the test and stopped here."""
    shape = topology(region, ports)
    async with open_store(url, shape, resolver, prefix=region) as store:
        program = Program(shape, store, resolver)
        try:
            yield program
        finally:
            program.feed.close()
            await program.agent.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Other nodes of this process need the loop to get on."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_docs_run_and_what_they_publish_reaches_the_other_region(
    valkey_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ports = free_ports(2)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(compile(documented(ports), str(DOCS), "exec"), namespace)
    async with asyncio.timeout(LIMIT_S), running_program(EU, ports, valkey_url, LWW) as eu:
        stream = await eu.feed.subscribe_filtered("document")
        await eu.agent.start()
        await namespace["main"]()
        said = capsys.readouterr().out.splitlines()
        # A second time, on the data of the first.
        await namespace["main"]()
        arrived = await stream.recv()
    assert arrived is not None
    assert (arrived.operation, arrived.relationship) == (Operation.INSERT, VIEWER)
    assert arrived.origin.startswith("node1.")
    assert said[:3] == [
        "Change: insert document:readme at 1",
        "Change: insert folder:plans at 2",
        "Document: insert document:readme",
    ]
    assert said[3:] == [
        "Changes replicated: 1",
        "Failures: 0",
        f"Route to: node1 at localhost:{ports[0]}",
        "Region is healthy",
    ]


def test_the_docs_pass_the_strict_type_checker(tmp_path: Path) -> None:
    file = tmp_path / "documented.py"
    file.write_text(documented([50051, 50052]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def test_two_programs_agree_about_a_conflict_and_so_does_the_resolver(
    valkey_url: str,
) -> None:
    """Both write before they can talk: the delete wins, although the insert is later."""
    ports = free_ports(2)
    async with (
        running_program(WEST, ports, valkey_url) as west,
        running_program(EU, ports, valkey_url) as eu,
    ):
        deleted = await west.feed.publish(Change.delete(0, VIEWER))
        inserted = await eu.feed.publish(Change.insert(0, VIEWER))
        heard = await eu.feed.subscribe()
        await west.agent.start()
        await eu.agent.start()
        arrived = await heard.recv()
        assert arrived == replace(deleted, revision=eu.store.revision)
        resolution = DELETE_WINS.resolve(local=inserted, remote=deleted)
        assert (resolution.winner, resolution.why) == (Side.REMOTE, Why.OPERATION)
        await until(lambda: west.agent.stats().conflicts_resolved_local == 1)
        await until(lambda: west.agent.stats().lag_ms == eu.agent.stats().lag_ms == 0)
        assert await west.listed() == await eu.listed() == []
        stats = eu.agent.stats()
        assert (stats.conflicts_detected, stats.conflicts_resolved_remote) == (1, 1)
        assert (stats.targets_connected, stats.targets_total) == (1, 1)
        assert stats.changes_replicated == 1


async def test_a_router_goes_by_the_sessions_of_the_agent(valkey_url: str) -> None:
    ports = free_ports(2)
    shape = topology(WEST, ports)
    async with running_program(WEST, ports, valkey_url) as west:
        router = Router(shape, NodeId("node1"), west.agent.health_of)
        await west.agent.start()
        async with running_program(EU, ports, valkey_url) as eu:
            await eu.agent.start()
            await until(lambda: west.agent.health_of(NodeId("node2")) is NodeHealth.HEALTHY)
            assert router.route(RequestType.WRITE).node_id == "node1"
            assert router.get_available_regions() == [WEST, EU]
        await until(lambda: not router.is_region_available(EU))
        assert west.agent.stats().replication_failures >= 2
        assert router.get_available_regions() == [WEST]


async def test_an_agent_that_cannot_work_says_why(valkey_url: str) -> None:
    ports = free_ports(2)
    shape = topology(WEST, ports)
    custom = ConflictResolver(ConflictResolutionStrategy.CUSTOM, resolve=lambda c: c.local)
    async with running_program(WEST, ports, valkey_url) as west:
        for feed, resolver, complaint in (
            (ChangeFeed(), DELETE_WINS, r"give it ChangeFeed.of\(store\)"),
            (west.feed, custom, "a node takes no function"),
            (west.feed, LWW, "the store was opened with delete_wins:.*lww:"),
        ):
            with pytest.raises(Refused, match=complaint):
                ReplicationAgent(shape, feed, west.store, resolver)
        elsewhere = topology(EU, ports)
        with pytest.raises(Refused, match="node1 in us-west-1"):
            ReplicationAgent(elsewhere, west.feed, west.store, DELETE_WINS)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", ports[0]))
            taken.listen()
            with pytest.raises(Refused, match=r"cannot listen on 127\.0\.0\.1"):
                await west.agent.start()
        await west.agent.start()
        assert west.agent.is_running
        with pytest.raises(Refused, match="stop it first"):
            await west.agent.start()
        await west.agent.stop()
        await west.agent.start()
        assert west.agent.is_running


async def test_what_a_caller_raises_comes_out_of_the_store_as_it_is(valkey_url: str) -> None:
    ports = free_ports(2)
    with pytest.raises(KeyError):
        async with open_store(valkey_url, topology(WEST, ports), LWW):
            raise KeyError("the caller's own")


@pytest.mark.parametrize(
    ("url", "config", "complaint"),
    [
        ("http://127.0.0.1", ReplicationConfig(), "redis.url: should be one of embedded:DIR"),
        ("embedded:./data", ReplicationConfig(batch_size=0), "batch_size: should be at least 1"),
    ],
)
async def test_a_store_that_cannot_be_is_refused(
    url: str, config: ReplicationConfig, complaint: str
) -> None:
    with pytest.raises(Refused, match=complaint):
        async with open_store(url, topology(WEST, free_ports(2)), LWW, config=config):
            pass
