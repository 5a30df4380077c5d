"""The demo: several regions on one machine, one node each, every node a process of `sidecar run`.

Owns the ports, folders and settings of its nodes, their start, what is said about them, and their
end. Its nodes are ordinary sidecars: it knows their command line and their `GET /health`, no more.
A node that dies stays dead: seeing the others go on, and starting it again, is what a demo is for.
"""

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import yaml

from sidecar.config import Config
from sidecar.core.topology import ReplicationStrategy
from sidecar.errors import Refused, Unavailable
from sidecar.store.embedded import describe_end
from sidecar.tether import tethered

HOST = "127.0.0.1"
CONFIG_NAME = "demo.yaml"
LOG_NAME = "sidecar.log"
REGIONS = (
    "us-west-1",
    "eu-central-1",
    "ap-southeast-1",
    "us-east-1",
    "eu-west-1",
    "ap-northeast-1",
    "sa-east-1",
    "af-south-1",
)
MAX_REGIONS = 16
LOOK_AGAIN_S = 1.0  # for a node that somebody else starts; nothing tells us
PORTS_PER_NODE = 10
HEALTH_PAUSE_S = 0.1
STILL_WAITING_S = 10.0
# Above drain_timeout_s: the embedded Valkey and the sessions need a moment as well.
STOP_GRACE_S = 20.0
LAST_LINES = 5


@dataclass(frozen=True, slots=True)
class DemoNode:
    """One node of the demo: where it listens, where it keeps its data."""

    name: str
    region: str
    app_port: int
    folder: Path

    @property
    def peer_port(self) -> int:
        return self.app_port + 1

    @property
    def admin_port(self) -> int:
        return self.app_port + 2

    @property
    def app_url(self) -> str:
        return f"http://{HOST}:{self.app_port}"

    @property
    def log(self) -> Path:
        return self.folder / LOG_NAME

    def environ(self) -> dict[str, str]:
        """What distinguishes this node from the others that read the same file."""
        return {
            "INFERADB__LISTEN__APP": f"{HOST}:{self.app_port}",
            "INFERADB__LISTEN__ADMIN": f"{HOST}:{self.admin_port}",
            "INFERADB__REDIS__URL": f"embedded:{self.folder}",
        }

    def command(self, config: Path) -> list[str]:
        return [
            sys.executable,
            "-m",
            "sidecar",
            "run",
            "--config",
            str(config),
            "--node",
            self.name,
        ]

    def pasteable(self, config: Path) -> str:
        """The line that starts this node in any shell, from any folder."""
        environ = self.environ()
        if "PYTHONPATH" in os.environ:
            environ = {"PYTHONPATH": os.environ["PYTHONPATH"], **environ}
        return shlex.join(
            ["env", *(f"{name}={text}" for name, text in environ.items()), *self.command(config)]
        )


def plan(regions: int, base_port: int, folder: Path) -> tuple[DemoNode, ...]:
    """The nodes of a demo: node i (from 0) has app port base+10·i, peer +1, admin +2."""
    if not 1 <= regions <= MAX_REGIONS:
        raise Refused("bad_option", f"--regions {regions} should be 1 to {MAX_REGIONS}")
    highest = base_port + PORTS_PER_NODE * (regions - 1) + 2
    if base_port < 1 or highest > 65_535:
        allowed = 65_535 - (highest - base_port)
        raise Refused("bad_option", f"--base-port {base_port} should be 1 to {allowed}")
    names = [*REGIONS, *(f"region-{number}" for number in range(len(REGIONS) + 1, regions + 1))]
    return tuple(
        DemoNode(f"node{i + 1}", names[i], base_port + PORTS_PER_NODE * i, folder / f"node{i + 1}")
        for i in range(regions)
    )


def config_text(
    nodes: tuple[DemoNode, ...],
    strategy: ReplicationStrategy = ReplicationStrategy.ACTIVE_ACTIVE,
) -> str:
    """The one file that all nodes read; where there is a primary, it is the first region."""
    has_primary = strategy is ReplicationStrategy.PRIMARY_REPLICA
    replication = {
        "strategy": strategy.value,
        "conflict_resolution": "lww",
        "regions": [
            {
                "id": node.region,
                **({"is_primary": node is nodes[0]} if has_primary else {}),
                "zones": [
                    {
                        "id": f"{node.region}a",
                        "nodes": [{"id": node.name, "endpoint": f"{HOST}:{node.peer_port}"}],
                    }
                ],
            }
            for node in nodes
        ],
    }
    head = (
        "# Written by `sidecar demo` at each start. All nodes read it; what differs between them\n"
        "# (listen, redis.url) comes from the environment, the name of the node from --node.\n"
    )
    return head + yaml.safe_dump({"replication": replication}, sort_keys=False)


def refuse_ports_in_use(nodes: tuple[DemoNode, ...]) -> None:
    """Raise Unavailable for the first port that something listens on."""
    for node in nodes:
        ports = {"app": node.app_port, "peer": node.peer_port, "admin": node.admin_port}
        for listener, port in ports.items():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((HOST, port))
                except OSError as error:
                    raise Unavailable(
                        "port_in_use",
                        f"port {port} ({listener} listener of {node.name}) cannot be used: "
                        f"{error.strerror}; free it or choose another --base-port",
                    ) from None


def greeting(nodes: tuple[DemoNode, ...], farewell: str) -> str:
    """The addresses, and two lines that can be pasted: a write here, a read there."""
    first, last = nodes[0], nodes[-1]
    width = max(len(node.region) for node in nodes)
    head = f"  {'node':8}{'region':{width + 2}}{'app':26}{'peer':18}{'admin':26}log"
    rows = [
        f"  {node.name:8}{node.region:{width + 2}}{node.app_url:26}"
        f"{f'{HOST}:{node.peer_port}':18}{f'http://{HOST}:{node.admin_port}':26}{node.log}"
        for node in nodes
    ]
    relationship = '{"resource":"document:readme","relation":"viewer","subject":"user:alice"}'
    write = _curl(first, "write", f'{{"relationships":[{relationship}]}}')
    read = _curl(last, "list", '{"resource":"document:readme"}')
    lines = ["", head, *rows, "", f"Write in {first.region}:", write]
    return "\n".join([*lines, f"Read in {last.region}:", read, "", farewell])


def _curl(node: DemoNode, call: str, body: str) -> str:
    url = f"{node.app_url}/access/v1/relationships/{call}"
    return f"  curl -sS {url} -H 'Content-Type: application/json' -d '{body}'"


@contextlib.contextmanager
def data_folder(named: Path, *, ephemeral: bool) -> Iterator[Path]:
    """Where the nodes keep their data: as named, or a temporary folder that goes at the end."""
    if ephemeral:
        with tempfile.TemporaryDirectory(
            prefix="sidecar-demo-", ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder)
        return
    yield named.absolute()


async def run_demo(
    nodes: tuple[DemoNode, ...],
    folder: Path,
    *,
    stop: asyncio.Event,
    say: Callable[[str], None],
    environ: Mapping[str, str],
    farewell: str = "keeps their data",
    strategy: ReplicationStrategy = ReplicationStrategy.ACTIVE_ACTIVE,
) -> None:
    """Start the nodes, say where they are, and keep them until `stop` is set.

    Raises Unavailable when a node does not come up; then all of them have been ended.
    """
    refuse_ports_in_use(nodes)
    config = _write_config(nodes, folder, strategy)
    say(f"starting {len(nodes)} regions, data in {folder}")
    async with contextlib.AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(_running(node, config, environ)) for node in nodes
        ]
        # Entered last, left first: all nodes are asked to end before the first is waited for.
        stack.callback(_ask_to_end, running)
        if not await _all_ready(running, stop, say):
            return
        say(greeting(nodes, f"Ctrl-C ends all nodes and {farewell}."))
        async with asyncio.TaskGroup() as group:
            watches = [group.create_task(_watch(each, config, say)) for each in running]
            await stop.wait()
            for watch in watches:
                watch.cancel()
        say("ending all nodes")


@dataclass(frozen=True, slots=True)
class _Running:
    node: DemoNode
    child: asyncio.subprocess.Process


@contextlib.asynccontextmanager
async def _running(
    node: DemoNode, config: Path, environ: Mapping[str, str]
) -> AsyncIterator[_Running]:
    """One node as a child that cannot outlive us, ended within bounded time."""
    kept = {name: text for name, text in environ.items() if name.upper() not in _OURS}
    with node.log.open("ab") as log:
        child = await asyncio.create_subprocess_exec(
            # SIGKILL: whatever state the node is in, it ends. It is made to lose nothing by that.
            *tethered(node.command(config), signal.SIGKILL),
            env={**kept, **node.environ()},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C in the terminal is for the demo, which ends its nodes in order.
            start_new_session=True,
        )
    try:
        yield _Running(node, child)
    finally:
        await _end(child)


# What decides where a node listens and what it is; a variable of the demo's shell must not.
_OURS = frozenset(
    {
        "INFERADB__NODE",
        "INFERADB__LISTEN__PEER",
        "INFERADB__LISTEN__APP",
        "INFERADB__LISTEN__ADMIN",
        "INFERADB__REDIS__URL",
        "INFERADB__REPLICATION__LOCAL_REGION",
        "INFERADB__REPLICATION__REGIONS",
        "INFERADB__REPLICATION__REPLICATION_TARGETS",
    }
)


def _ask_to_end(running: list[_Running]) -> None:
    for each in running:
        if each.child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                each.child.terminate()


async def _end(child: asyncio.subprocess.Process) -> None:
    limit_s = Config().drain_timeout_s + STOP_GRACE_S
    try:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await child.wait()
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await asyncio.shield(child.wait())


async def _all_ready(
    running: list[_Running], stop: asyncio.Event, say: Callable[[str], None]
) -> bool:
    """Wait until every node answers; False when the person has had enough first."""
    ready = asyncio.ensure_future(_each_ready(running, say))
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
        return ready.done()
    finally:
        for task in (ready, stopped):
            task.cancel()
        await asyncio.gather(ready, stopped, return_exceptions=True)


async def _each_ready(running: list[_Running], say: Callable[[str], None]) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
        for each in running:
            said = time.monotonic()
            while not await _is_healthy(session, each.node):
                if each.child.returncode is not None:
                    raise Unavailable("node_failed", _failure(each))
                if time.monotonic() - said > STILL_WAITING_S:
                    said = time.monotonic()
                    say(f"still waiting for {each.node.name}; its log: {each.node.log}")
                await asyncio.sleep(HEALTH_PAUSE_S)


async def _is_healthy(session: aiohttp.ClientSession, node: DemoNode) -> bool:
    try:
        async with session.get(f"{node.app_url}/health") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _watch(each: _Running, config: Path, say: Callable[[str], None]) -> None:
    """Say that a node has died and how to start it again; then, that somebody did."""
    code = await each.child.wait()
    node = each.node
    say(
        f"\n{node.name} ({node.region}) has ended: {describe_end(code)}; the others go on. "
        f"Its log: {node.log}\nStart it again, in another shell, with:\n  {node.pasteable(config)}"
    )
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
        while not await _is_healthy(session, node):  # noqa: ASYNC110 (it is another process)
            await asyncio.sleep(LOOK_AGAIN_S)
    say(f"{node.name} ({node.region}) answers again; it is yours now, the demo will not end it")


def _write_config(nodes: tuple[DemoNode, ...], folder: Path, strategy: ReplicationStrategy) -> Path:
    config = folder / CONFIG_NAME
    try:
        for node in nodes:
            node.folder.mkdir(parents=True, exist_ok=True)
        config.write_text(config_text(nodes, strategy))
    except OSError as error:
        raise Refused(
            "folder_not_usable",
            f"cannot keep data in {folder}: {error.strerror}; choose another --data-dir",
        ) from None
    return config


def _failure(each: _Running) -> str:
    """Why a node did not come up, in one line: the last that it said, without decoration."""
    try:
        lines = each.node.log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
    except OSError:
        lines = []
    said = " | ".join(line.strip() for line in lines) or "it said nothing"
    return (
        f"{each.node.name} did not start ({describe_end(each.child.returncode or 0)}): {said}; "
        f"its log: {each.node.log}"
    )
