"""The product as users run it: nodes as processes of `sidecar run`, each with its embedded Valkey.

The configuration is that of `sidecar demo`; only a target that was away is looked for again each
second, so that nobody waits for it.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import aiohttp

from bench.children import START_LIMIT_S, ChildFailed, child, free_base_port
from sidecar.commands.demo import PORTS_PER_NODE, DemoNode, config_text, plan
from sidecar.store.embedded import SOCKET_NAME

WRITE_PATH = "/access/v1/relationships/write"
_ENVIRON = {
    "INFERADB__REPLICATION__PROBE_INTERVAL_MAX_S": "1",
    # What the benchmark's own shell may hold.
    "INFERADB__NODE": "",
    "INFERADB__LISTEN__PEER": "",
}
_METRIC = re.compile(rb"^(inferadb_replication_\w+) ([0-9.e+-]+)$", re.MULTILINE)


class Launch(Protocol):
    """How the program of a node is started: plainly, or under a profiler."""

    def command(self, node: DemoNode, config: Path) -> list[str]:
        """The command line of a node that reads this configuration."""


class Plainly:
    """As users do."""

    def command(self, node: DemoNode, config: Path) -> list[str]:
        return node.command(config)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes that know each other, not yet started. Data lie below `folder`."""

    folder: Path
    nodes: tuple[DemoNode, ...]
    config: Path

    def write_url(self, node: int = 0) -> str:
        return self.nodes[node].app_url + WRITE_PATH

    def store_url(self, node: int = 0) -> str:
        return f"unix://{self.nodes[node].folder / SOCKET_NAME}"


def cluster(folder: Path, regions: int, reached_at: Mapping[int, int] | None = None) -> Cluster:
    """A configuration of so many regions with one node each.

    reached_at: index of a node -> the port at which the others look for it, if not its own.
    """
    nodes = plan(regions, free_base_port(PORTS_PER_NODE * regions), folder)
    for node in nodes:
        node.folder.mkdir(parents=True)
    config = folder / "bench.yaml"
    text = config_text(nodes)
    for index, port in (reached_at or {}).items():
        text = text.replace(f"127.0.0.1:{nodes[index].peer_port}", f"127.0.0.1:{port}")
    config.write_text(text)
    return Cluster(folder, nodes, config)


@contextlib.asynccontextmanager
async def running(
    of: Cluster,
    indexes: Sequence[int],
    launch: Launch,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """These nodes of a cluster, up and healthy: the processes of their sidecars.

    settings: more of the environment.
    """
    async with contextlib.AsyncExitStack() as stack:
        started = []
        for index in indexes:
            node = of.nodes[index]
            command = launch.command(node, of.config)
            environ = {**_ENVIRON, **node.environ(), **(settings or {})}
            started.append(await stack.enter_async_context(child(command, node.log, environ)))
        for index, process in zip(indexes, started, strict=True):
            await _until_healthy(of.nodes[index], process)
        yield started


async def until_drained(of: Cluster, node: int = 0) -> None:
    """Wait until every target of this node has everything."""
    url = f"http://127.0.0.1:{of.nodes[node].admin_port}/metrics"
    deadline = time.monotonic() + START_LIMIT_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            async with session.get(url) as response:
                metrics = {n.decode(): float(v) for n, v in _METRIC.findall(await response.read())}
            connected = metrics["inferadb_replication_targets_connected"]
            is_connected = connected == metrics["inferadb_replication_targets_total"]
            if is_connected and metrics["inferadb_replication_lag_milliseconds"] == 0:
                return
            await asyncio.sleep(0.1)
    raise ChildFailed(f"{of.nodes[node].name} does not reach its targets; log: {of.folder}")


async def _until_healthy(node: DemoNode, process: asyncio.subprocess.Process) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
        while process.returncode is None and time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(f"{node.app_url}/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.05)
    said = node.log.read_text(errors="replace")[-2000:]
    raise ChildFailed(f"{node.name} does not start: {said}")
