"""docs/library.md is a program: it runs as it stands there, as a node beside another one."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar import (
    Change,
    ChangeFeed,
    ConflictResolutionStrategy,
    ConflictResolver,
    NodeId,
    Operation,
    Refused,
    RegionId,
    Relationship,
    ReplicationAgent,
    ReplicationStrategy,
    SidecarError,
    Topology,
    TopologyBuilder,
    ZoneId,
    open_store,
)
from sidecar.library.changes import StoreFeed
from sidecar.store.redis_store import RedisStore
from tests.servers import free_ports

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "library.md"
LIMIT_S = 20.0
LWW = ConflictResolver(ConflictResolutionStrategy.LAST_WRITE_WINS)
DELETE_WINS = ConflictResolver(ConflictResolutionStrategy.DELETE_WINS)
VIEWER = Relationship("default", "document:readme", "viewer", "user:alice")
WEST, EU = RegionId("us-west-1"), RegionId("eu-central-1")


def program(ports: list[int]) -> str:
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


class Beside:
    """A node of this test: store, feed and agent."""

    def __init__(self, shape: Topology, store: RedisStore, feed: StoreFeed) -> None:
        self.store, self.feed = store, feed
        self.agent = ReplicationAgent(shape, feed, store, DELETE_WINS)


@asynccontextmanager
async def beside(shape: Topology, url: str) -> AsyncIterator[Beside]:
    """A node of the local region, on the shared server, with `delete_wins`."""
    async with (
        open_store(url, shape, DELETE_WINS, prefix=shape.local_region) as store,
        ChangeFeed.of(store) as feed,
    ):
        node = Beside(shape, store, feed)
        await store.opened()
        await node.agent.start()
        try:
            yield node
        finally:
            await node.agent.stop()


async def test_the_docs_run_and_what_they_publish_reaches_the_other_region(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ports = free_ports(2)
    shape = topology(EU, ports)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(compile(program(ports), str(DOCS), "exec"), namespace)
    async with asyncio.timeout(LIMIT_S), open_store(valkey_url, shape, LWW) as store:
        async with ChangeFeed.of(store) as feed:
            stream = await feed.subscribe_filtered("document")
            agent = ReplicationAgent(shape, feed, store, LWW)
            await agent.start()
            try:
                await namespace["main"]()
                arrived = await stream.recv()
            finally:
                await agent.stop()
    assert arrived is not None
    assert (arrived.operation, arrived.relationship) == (Operation.INSERT, VIEWER)
    assert arrived.origin.startswith("node1.")
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [
        "Change: insert document:readme at 1",
        "Change: insert folder:plans at 2",
        "Document: insert document:readme",
    ]
    assert said[3:5] == ["Changes replicated: 1", "Failures: 0"]


def test_the_docs_pass_the_strict_type_checker(tmp_path: Path) -> None:
    file = tmp_path / "documented.py"
    file.write_text(program([50051, 50052]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
