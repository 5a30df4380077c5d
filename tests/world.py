"""Worlds of real nodes: regions as processes of `sidecar run`, over links that a test can cut.

A `World` owns its folder, its processes and the links between them, and ends all of them. A node is
reached as people reach it: over its listeners, and by the signals an operator or a kernel sends;
its Redis is looked into only where a test counts what is stored.
"""

import contextlib
import http.client
import json
import math
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import redis
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sidecar.core.token import Token
from sidecar.store.embedded import SOCKET_NAME
from sidecar.store.keys import Keys
from sidecar.tether import tethered
from tests.servers import children_of, free_ports, is_alive, wait_until_gone
from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]
HOST = "127.0.0.1"
REGIONS = ("us-west-1", "eu-central-1", "ap-southeast-1")
START_LIMIT_S = 30.0
MAX_CHUNKS_ON_THE_WAY = 64
WRITE, UPDATE, DELETE, LIST, WATCH = (
    f"/access/v1/{name}"
    for name in (
        *("relationships/write", "relationships/update", "relationships/delete"),
        *("relationships/list", "watch"),
    )
)

Triple = tuple[str, str, str]
"""Resource, relation, subject."""
Made = tuple[str, Triple]
"""A change as a watcher is told it: `insert` or `delete`, and of what."""


OPERATOR = {"X-Sidecar-Admin": "1"}
"""What every request shows that changes the state of a node."""


class Answer(NamedTuple):
    """What a listener answered: `body` is JSON where it is JSON, text otherwise."""

    status: int
    headers: Mapping[str, str]
    body: Any


def ask(
    port: int,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request on a connection of its own. Raises OSError or HTTPException like any client."""
    with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=30)) as client:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {"Content-Type": "application/json", **(headers or {})}
        client.request(method, path, None if body is None else raw, named)
        response = client.getresponse()
        text = response.read().decode()
        is_json = response.headers.get_content_type() == "application/json"
        return Answer(
            response.status, dict(response.headers), json.loads(text) if is_json else text
        )


def sidecar_command(*words: str, module: str = "sidecar") -> list[str]:
    return [sys.executable, "-m", module, *words]


def clean_environ(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without settings of somebody else's sidecar."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("INFERADB__")}
    return kept | dict(changes or {})


def sidecar(
    *words: str, limit_s: float = 120.0, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of the command line to its end."""
    return subprocess.run(
        sidecar_command(*words),
        cwd=ROOT,
        env=clean_environ(environ),
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


@dataclass(frozen=True, slots=True)
class Pace:
    """How bytes travel over a link: a delay each way, and how many bytes pass in a second."""

    there_s: float = 0.0
    back_s: float = 0.0
    bytes_per_s: float = math.inf


class Link:
    """The way to a node's peer listener: a port of its own whose bytes are carried, or not."""

    def __init__(self, port: int, target_port: int) -> None:
        self.port, self._target_port = port, target_port
        self._is_cut = False
        self._pace = Pace()
        self._broken = threading.Event()
        self._flows = threading.Event()
        self._flows.set()
        self._ends: set[socket.socket] = set()
        self._guard = threading.Lock()
        self._recorded: list[bytearray] | None = None
        self._listener = socket.create_server((HOST, port))
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._carriers: list[threading.Thread] = []
        self._acceptor.start()

    def cut(self) -> None:
        """Break what stands; whoever comes is turned away until `heal`."""
        with self._guard:
            self._is_cut = True
            for end in self._ends:
                _shut(end)
        self._broken.set()
        self._flows.set()

    def record(self) -> list[bytearray]:
        """Keep what travels over connections that are made from now on: one way each of a list
        that grows with them.
        """
        self._recorded = []
        return self._recorded

    def freeze(self) -> None:
        """Connections stand, new ones are accepted, and no byte arrives: a silent peer."""
        self._flows.clear()

    def slow(self, pace: Pace) -> None:
        """From now on bytes travel at this pace; what is on its way already arrives as before."""
        self._pace = pace

    def heal(self) -> None:
        with self._guard:
            self._is_cut = False
        self._pace = Pace()
        self._broken.clear()
        self._flows.set()

    def close(self) -> None:
        self.cut()
        _shut(self._listener)
        self._acceptor.join()
        self._listener.close()
        for carrier in self._carriers:
            carrier.join()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            carrier = threading.Thread(target=self._connect, args=(near,), daemon=True)
            self._carriers.append(carrier)
            carrier.start()

    def _connect(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            with self._guard:
                if self._is_cut:
                    return
                self._ends.add(near)
            try:
                with socket.create_connection((HOST, self._target_port)) as far:
                    self._carry_both_ways(near, far)
            finally:
                with self._guard:
                    self._ends.discard(near)

    def _carry_both_ways(self, near: socket.socket, far: socket.socket) -> None:
        with self._guard:
            self._ends.add(far)
        back = threading.Thread(
            target=self._carry, args=(far, near, lambda: self._pace.back_s), daemon=True
        )
        back.start()
        try:
            self._carry(near, far, lambda: self._pace.there_s)
        finally:
            back.join()
            with self._guard:
                self._ends.discard(far)

    def _carry(
        self, source: socket.socket, sink: socket.socket, delay_s: Callable[[], float]
    ) -> None:
        """Read without waiting for the delay, so that many bytes can be on their way at once."""
        record = bytearray()
        if self._recorded is not None:
            self._recorded.append(record)
        # Full means more than a real link would hold: the sender has to wait.
        on_the_way: queue.Queue[tuple[float, bytes]] = queue.Queue(maxsize=MAX_CHUNKS_ON_THE_WAY)
        delivery = threading.Thread(
            target=self._deliver, args=(on_the_way, source, sink), daemon=True
        )
        delivery.start()
        chunk = b"-"
        while chunk:
            try:
                chunk = source.recv(65_536)
            except OSError:
                chunk = b""
            if self._recorded is not None:
                record += chunk
            on_the_way.put((time.monotonic() + delay_s(), chunk))
        delivery.join()

    def _deliver(
        self,
        on_the_way: "queue.Queue[tuple[float, bytes]]",
        source: socket.socket,
        sink: socket.socket,
    ) -> None:
        """Hand over what has come, each chunk when it is due; an empty one is the end."""
        sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        is_open = True
        while True:
            due, chunk = on_the_way.get()
            wait_s = max(due - time.monotonic(), 0.0) + len(chunk) / self._pace.bytes_per_s
            if is_open and wait_s > 0:
                self._broken.wait(wait_s)
            # A frozen link does not even tell that the other end has gone.
            self._flows.wait()
            if not chunk:
                break
            try:
                sink.sendall(chunk)
            except OSError:
                # The reader may be waiting for room here: go on taking, until it has noticed.
                is_open = False
                _shut(source)
        _shut(source)
        _shut(sink)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@dataclass
class Node:
    """One node: where it listens, its folder, and the process that is it at the moment.

    `config` is a file of its own, because each node finds the others over links of its own;
    `environ` is what it gets beside that; `tree` is where the code lies that it runs; `module` is
    what stands in for the command line there. `ask_peer`: how its peer listener is asked.
    """

    name: str
    region: str
    app_port: int
    peer_port: int
    admin_port: int
    folder: Path
    config: Path
    environ: dict[str, str] = field(default_factory=dict)
    tree: Path = ROOT
    module: str = "sidecar"
    ask_peer: Callable[[int, str, str, object], Answer] = ask
    process: subprocess.Popen[bytes] | None = None

    # -- its life

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.app_port}"

    @property
    def log(self) -> str:
        file = self.folder / "sidecar.log"
        return file.read_text(errors="replace") if file.exists() else ""

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} has not been started"
        return self.process.pid

    @property
    def valkey_pid(self) -> int:
        """Its embedded Valkey; 0 when it has none at the moment."""
        return next(iter(children_of(self.pid)), 0)

    def begin(self) -> None:
        """Start the process. Call it on the main thread: it ends with the thread."""
        self.folder.mkdir(parents=True, exist_ok=True)
        words = ("run", "--config", str(self.config), "--node", self.name)
        with (self.folder / "sidecar.log").open("ab") as output:
            self.process = subprocess.Popen(
                tethered(sidecar_command(*words, module=self.module), signal.SIGKILL),
                cwd=self.tree,
                env=clean_environ(self.settings()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def settings(self) -> dict[str, str]:
        return {
            "INFERADB__LISTEN__APP": f"{HOST}:{self.app_port}",
            "INFERADB__LISTEN__PEER": f"{HOST}:{self.peer_port}",
            "INFERADB__LISTEN__ADMIN": f"{HOST}:{self.admin_port}",
            "INFERADB__REDIS__URL": f"embedded:{self.folder}",
            **self.environ,
        }

    def start(self) -> None:
        self.begin()
        self.wait_until_serving()

    def wait_until_serving(self) -> None:
        def serves() -> bool:
            assert self.is_running, f"{self.name} has ended:\n{self.log}"
            return self.is_serving

        wait_until(serves, f"{self.name} serves", START_LIMIT_S)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def is_serving(self) -> bool:
        return self.status == 200

    @property
    def status(self) -> int:
        """What /health answers; 0 when nobody does."""
        try:
            return self.health().status
        except (OSError, http.client.HTTPException):
            return 0

    def kill(self) -> None:
        """kill -9; its embedded Valkey ends with it."""
        family = [self.pid, *children_of(self.pid)]
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        wait_until_gone(family)

    def kill_valkey(self) -> None:
        """kill -9 of the embedded Valkey alone, once there is one."""
        wait_until(lambda: self.valkey_pid, f"{self.name} has a Valkey")
        pid = self.valkey_pid
        os.kill(pid, signal.SIGKILL)
        wait_until_gone([pid])

    def terminate(self) -> None:
        """SIGTERM, as `systemctl stop` sends it; does not wait."""
        assert self.process is not None
        self.process.terminate()

    def stop(self) -> None:
        """End it in whatever way works."""
        if self.process is None:
            return
        family = [self.pid, *children_of(self.pid)]
        if self.is_running:
            self.terminate()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in family[1:]:
            if is_alive(pid):
                os.kill(pid, signal.SIGTERM)
        wait_until_gone(family)

    def forget(self) -> None:
        """Remove its data, as an operator does who sets a node up anew; its log stays."""
        assert not self.is_running
        log = self.log
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        (self.folder / "sidecar.log").write_text(log)

    # -- what applications and operators do

    def post(self, path: str, body: object, **headers: str) -> Answer:
        """Ask the app listener; headers are written `Idempotency_Key="…"`."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return ask(self.app_port, "POST", path, body, named)

    def post_here(self, path: str, body: object) -> Answer:
        """Ask this node and no other: the peer listener serves the same calls and forwards none."""
        return self.ask_peer(self.peer_port, "POST", path, body)

    def insert(self, *triples: Triple) -> dict[str, Any]:
        return _made(self.post(WRITE, {"relationships": _relationships(triples)}))

    def delete(self, *triples: Triple) -> dict[str, Any]:
        return _made(self.post(DELETE, {"relationships": _relationships(triples)}))

    # What a test looks at is what this node has, not what another one says in its place.

    def page(self, limit: int = 5_000, cursor: str | None = None) -> dict[str, Any]:
        asked = {"limit": limit} if cursor is None else {"limit": limit, "cursor": cursor}
        return _made(self.post_here(LIST, asked))

    def relationships(self) -> list[dict[str, Any]]:
        """Everything visible here, as listed."""
        page = self.page()
        found: list[dict[str, Any]] = page["relationships"]
        while page["cursor"] is not None:
            page = self.page(cursor=page["cursor"])
            found += page["relationships"]
        return found

    def triples(self) -> set[Triple]:
        return {triple_of(one) for one in self.relationships()}

    @property
    def vector(self) -> dict[str, int]:
        return dict(Token.decode(self.page(limit=1)["token"]).vector)

    def health(self, port: int | None = None) -> Answer:
        return ask(port or self.app_port, "GET", "/health")

    @property
    def ports(self) -> tuple[int, int, int]:
        """Of its listeners: app, peer, admin."""
        return self.app_port, self.peer_port, self.admin_port

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics; those with labels as `name{label}` of the label's value."""
        text = ask(self.admin_port, "GET", "/metrics").body
        return {
            sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def metric(self, name: str) -> float:
        return self.metrics()[f"inferadb_replication_{name}"]

    @contextlib.contextmanager
    def store(self) -> Iterator[Callable[..., Any]]:
        """Ask the embedded Valkey: a function that runs one command."""
        socket_path = str(self.folder / SOCKET_NAME)
        with redis.Redis(unix_socket_path=socket_path, decode_responses=True) as client:
            yield client.execute_command

    def feed_length(self) -> int:
        """Transactions in its feed, the empty ones that begin each data set included."""
        with self.store() as call:
            return int(call("XLEN", Keys("sidecar").feed))

    def digest(self) -> dict[str, str]:
        """Bucket to sum; buckets in which nothing is visible are left out."""
        with self.store() as call:
            sums = call("HGETALL", Keys("sidecar").meta.replace("meta", "digest"))
        return {bucket: text for bucket, text in sums.items() if text != "0"}

    def export(self) -> list[dict[str, Any]]:
        """What `sidecar export` writes, line by line."""
        done = sidecar("export", "--url", self.url)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


def _made(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer
    return dict(answer.body)


def _relationships(triples: Iterable[Triple]) -> list[dict[str, str]]:
    return [{"resource": r, "relation": n, "subject": s} for r, n, s in triples]


def triple_of(relationship: Mapping[str, Any]) -> Triple:
    return relationship["resource"], relationship["relation"], relationship["subject"]


class Watcher:
    """A reader of `watch` from the beginning of a node's feed, who resumes when he is cut off."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._cursor = "start"
        self._events: list[dict[str, Any]] = []
        self._ending = threading.Event()
        self._connected = threading.Event()
        self._link: socket.socket | None = None
        self.errors: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._connected.wait(10), f"no watch at {node.name}: {self.errors}"

    @property
    def complete(self) -> int:
        """How many transactions have been told to their last change."""
        return sum(event["last"] for event in tuple(self._events))

    @property
    def transactions(self) -> list[tuple[str, list[Made]]]:
        """Origin and changes of each transaction, in order; one that is told in two places, or
        told twice, is there twice.
        """
        found: list[tuple[tuple[str, str], list[Made]]] = []
        for event in tuple(self._events):
            name = (event["transaction"]["origin"], event["transaction"]["timestamp"])
            if not found or found[-1][0] != name:
                found.append((name, []))
            found[-1][1].append((event["operation"], triple_of(event["relationship"])))
        return [(origin, changes) for (origin, _), changes in found]

    def close(self) -> None:
        self._ending.set()
        if self._link is not None:
            _shut(self._link)
        self._reader.join()

    def _read(self) -> None:
        while not self._ending.is_set():
            try:
                self._read_one_stream()
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.errors.append(repr(error))
            self._ending.wait(0.02)

    def _read_one_stream(self) -> None:
        connection = http.client.HTTPConnection(HOST, self._node.app_port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", WATCH, json.dumps({"cursor": self._cursor}))
            self._link = connection.sock
            with connection.getresponse() as response:
                if response.status != 200:
                    self.errors.append(f"{response.status} {response.read()!r}")
                    return
                event: dict[str, str] = {}
                for raw in response:
                    name, _, text = raw.decode().rstrip("\n").partition(": ")
                    if name:
                        event[name] = text
                        continue
                    self._take(event)
                    event = {}

    def _take(self, event: Mapping[str, str]) -> None:
        if event.get("event") == "change":
            self._events.append(json.loads(event["data"]))
        if "id" in event:
            self._cursor = event["id"]
            self._connected.set()


class World:
    """Some nodes, and the links between them. `close` ends everything.

    regions: how many, with a node each; or the region of each node.

    Each node ships to each other one over a link of its own: `link(source, target)` is one of
    `links`. `tree` is where the code lies that the nodes run.
    """

    def __init__(
        self,
        regions: int | Sequence[str] = 2,
        *,
        primary: str | None = None,
        replication: Mapping[str, object] | None = None,
        environ: Mapping[str, str] | None = None,
        tree: Path = ROOT,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sidecar-e2e-"))
        self.is_kept = False
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._remove_folder)
        named = REGIONS[:regions] if isinstance(regions, int) else regions
        count = len(named)
        self._primary = primary
        ports = free_ports(3 * count + count * (count - 1))
        self.nodes = tuple(
            Node(
                name=f"node{i + 1}",
                region=region,
                app_port=ports[3 * i],
                peer_port=ports[3 * i + 1],
                admin_port=ports[3 * i + 2],
                folder=self.folder / f"node{i + 1}",
                config=self.folder / f"node{i + 1}.yaml",
                environ=dict(environ or {}),
                tree=tree,
            )
            for i, region in enumerate(named)
        )
        pairs = [(a, b) for a in self.nodes for b in self.nodes if a is not b]
        self._links = {
            (source.name, target.name): Link(port, target.peer_port)
            for (source, target), port in zip(pairs, ports[3 * count :], strict=True)
        }
        self.links = tuple(self._links.values())
        for link in self.links:
            self._stack.callback(link.close)
        for node in self.nodes:
            seen = [self.seen_by(node, region) for region in dict.fromkeys(named)]
            settings = {"regions": seen, **(replication or {})}
            node.config.write_text(yaml.safe_dump({"replication": settings}, sort_keys=False))
            self._stack.callback(node.stop)

    def seen_by(self, seer: Node, region: str) -> dict[str, object]:
        """A region of the topology, with the places where this node finds the nodes in it."""
        nodes = [
            {"id": node.name, "endpoint": f"{HOST}:{self._port_of(node, seer)}"}
            for node in self.nodes
            if node.region == region
        ]
        role = {"is_primary": True} if region == self._primary else {}
        return {"id": region, **role, "zones": [{"id": f"{region}a", "nodes": nodes}]}

    def _port_of(self, node: Node, seen_by: Node) -> int:
        return node.peer_port if node is seen_by else self.link(seen_by.name, node.name).port

    def _remove_folder(self) -> None:
        if not self.is_kept:
            shutil.rmtree(self.folder, ignore_errors=True)

    def link(self, source: str, target: str) -> Link:
        """The way over which one node ships to another: cut it, and only that direction ends."""
        return self._links[source, target]

    def start(self) -> "World":
        """Start all nodes and wait until each of them serves and ships to all the others."""
        for node in self.nodes:
            node.begin()
        for node in self.nodes:
            node.wait_until_serving()
        wait_until(lambda: all(map(_has_all_targets, self.nodes)), "every session stands")
        return self

    def watch(self, node: Node) -> Watcher:
        watcher = Watcher(node)
        self._stack.callback(watcher.close)
        return watcher

    def cut(self) -> None:
        for link in self.links:
            link.cut()

    def heal(self) -> None:
        for link in self.links:
            link.heal()

    def settle(self, limit_s: float = 30.0) -> float:
        """Wait until all nodes have applied the same; the seconds it took."""
        return wait_until(self.is_settled, "all vectors are equal", limit_s)

    def is_settled(self) -> bool:
        if not all(node.post_here(LIST, {"limit": 1}).status == 200 for node in self.nodes):
            # One that was told late what it lacks catches up once more.
            return False
        first, *others = [node.vector for node in self.nodes]
        return all(node.name in {o.split(".")[0] for o in first} for node in self.nodes) and all(
            vector == first for vector in others
        )

    def close(self) -> None:
        self._stack.close()

    def report(self) -> str:
        """What a person needs when a test fails: the end of every log."""
        return "\n".join(
            f"--- {node.name} ({'runs' if node.is_running else 'has ended'})\n{node.log[-4000:]}"
            for node in self.nodes
        )


def _has_all_targets(node: Node) -> bool:
    found = node.metrics()
    connected = found["inferadb_replication_targets_connected"]
    return connected == found["inferadb_replication_targets_total"]


def documents(numbers: Iterable[int], subject: str = "user:alice") -> Sequence[Triple]:
    """Tuples to play with: the subject views these documents."""
    return [(f"document:{number}", "viewer", subject) for number in numbers]
