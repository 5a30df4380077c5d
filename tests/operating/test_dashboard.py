"""The dashboard as a browser gets it: its files and headers, and what it is told while it looks."""

import contextlib
import http.client
import json
import os
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.admin.page import FOLDER, INDEX
from tests.e2e.conftest import MakeWorld
from tests.waiting import wait_until
from tests.world import HOST, Node, World, ask, documents

HOSTILE = "<img src=x onerror=alert(1)>"


class Viewer:
    """Somebody who looks: keeps the newest event of each name, until closed."""

    def __init__(self, node: Node) -> None:
        self.newest: dict[str, Any] = {}
        self.counts: dict[str, int] = {}
        self._connection = http.client.HTTPConnection(HOST, node.admin_port, timeout=30)
        self._connection.request("GET", "/events")
        self.answer = self._connection.getresponse()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        name = ""
        with contextlib.suppress(OSError, ValueError, AttributeError, http.client.HTTPException):
            for raw in self.answer:
                field, _, text = raw.decode().rstrip("\n").partition(": ")
                if field == "event":
                    name = text
                elif field == "data":
                    self.newest[name] = json.loads(text)
                    self.counts[name] = self.counts.get(name, 0) + 1

    def close(self) -> None:
        if self._connection.sock is not None:
            self._connection.sock.close()
        self.answer.close()
        self._connection.close()
        self._reader.join()

    def has(self, *names: str) -> bool:
        return all(name in self.newest for name in names)

    def links(self) -> dict[str, str]:
        told = self.newest.get("deployment", {"links": []})
        return {f"{link['from']}>{link['to']}": link["state"] for link in told["links"]}

    def states(self) -> dict[str, str]:
        told = self.newest.get("deployment", {"nodes": []})
        return {node["id"]: node["state"] for node in told["nodes"]}


@pytest.fixture(scope="module")
def world(make_shared_world: MakeWorld) -> World:
    return make_shared_world(3).start()


@pytest.fixture
def viewer(world: World) -> Iterator[Viewer]:
    with contextlib.closing(Viewer(world.nodes[0])) as one:
        yield one


def test_the_page_and_its_parts_come_with_a_strict_policy_and_are_sent_once(world: World) -> None:
    port = world.nodes[0].admin_port
    parts = [f"/dashboard/{path.name}" for path in FOLDER.iterdir() if path.name != INDEX]
    for path in ("/", "/dashboard", *parts):
        answer = ask(port, "GET", path)
        assert answer.status == 200, path
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        etag = {"If-None-Match": answer.headers["Etag"]}
        again = ask(port, "GET", path, headers=etag)
        assert (again.status, again.body) == (304, "")
        assert ask(port, "HEAD", path).status == 200
    for path, method, status in (("/dashboard/no.js", "GET", 404), ("/", "PUT", 405)):
        assert ask(port, method, path, headers={"X-Sidecar-Admin": "1"}).status == status
    assert ask(port, "GET", "/dashboard/..%2fpage.py").status == 404


def test_a_viewer_is_told_of_all_nodes_and_links(world: World, viewer: Viewer) -> None:
    assert viewer.answer.headers["Content-Type"] == "text/event-stream"
    wait_until(lambda: viewer.has("history", "deployment", "conflicts", "tenants"), "all topics")
    wait_until(lambda: set(viewer.states().values()) == {"healthy"}, lambda: str(viewer.newest))
    names = [node.name for node in world.nodes]
    assert viewer.links() == {f"{a}>{b}": "fresh" for a in names for b in names if a != b}
    told = viewer.newest["deployment"]
    assert (told["asked_by"], told["strategy"]) == ("node1", "active_active")
    assert told["regions"] == [node.region for node in world.nodes]


def test_samples_go_on_while_it_looks(viewer: Viewer) -> None:
    before = viewer.counts.get("sample", 0)
    wait_until(lambda: viewer.counts.get("sample", 0) > before, "a sample", 10)
    assert viewer.newest["sample"]["lag_ms"].keys() == {"node2", "node3"}


def test_a_cut_between_two_others_is_told_and_its_end_too(world: World, viewer: Viewer) -> None:
    wait_until(lambda: viewer.links().get("node2>node3") == "fresh", "the link is up")
    world.link("node2", "node3").cut()
    wait_until(lambda: viewer.links()["node2>node3"] == "cut", "the cut shows")
    assert viewer.links()["node1>node3"] == "fresh"
    world.heal()
    wait_until(lambda: viewer.links()["node2>node3"] == "fresh", "it is up again", 30)


def test_a_link_that_falls_silent_shows_before_anything_fails(world: World, viewer: Viewer) -> None:
    """No error, no closed connection: only the heartbeats stop."""
    wait_until(lambda: viewer.links().get("node1>node2") == "fresh", "the link is up", 30)
    world.link("node1", "node2").freeze()
    waited_s = wait_until(lambda: viewer.links()["node1>node2"] == "silent", "silence shows")
    assert world.nodes[0].metric("target_connected{node2}") == 1, "the session stands"
    print(f"shown {waited_s:.2f} s after the link fell silent")
    world.heal()
    wait_until(lambda: viewer.links()["node1>node2"] == "fresh", "it is heard again", 30)


def test_conflicts_and_tenants_are_told_as_they_come(world: World, viewer: Viewer) -> None:
    """What somebody writes into a tuple comes as text in JSON, in one line, whatever it is."""
    us, eu, _ = world.nodes
    wait_until(lambda: viewer.has("conflicts", "tenants"), "the topics are there")
    world.cut()
    wait_until(lambda: us.metric("targets_connected") == 0, "apart")
    one = {"resource": "document:1", "relation": "viewer", "subject": "user:alice"}
    condition = {"a": HOSTILE, "long": "x" * 5_000, "lines": "\n\nevent: deployment\ndata: {}"}
    for node, more in ((us, {"condition": condition}), (eu, {})):
        body = {"relationships": [{**one, **more}]}
        assert node.post_here("/access/v1/relationships/write", body).status == 200
    world.heal()
    world.settle()
    wait_until(lambda: viewer.newest["conflicts"]["conflicts"], "the conflict is told", 30)
    (conflict,) = viewer.newest["conflicts"]["conflicts"]
    assert (conflict["resource"], conflict["winner"]) == ("document:1", conflict["arrived"])
    cut_short = conflict["stored"]["condition"]
    assert isinstance(cut_short, str)
    assert HOSTILE in cut_short
    assert len(cut_short) <= 2_001

    us.insert(*documents(range(10, 15)))
    tenants = [{"tenant": "default", "is_here": True}]
    wait_until(
        lambda: (
            [
                {name: row[name] for name in tenants[0]}
                for row in viewer.newest["tenants"]["tenants"]
            ]
            == tenants
        ),
        lambda: str(viewer.newest["tenants"]),
    )


def test_a_node_that_stops_answering_shows(world: World, viewer: Viewer) -> None:
    """Stopped, not ended: connections stand, and nobody says anything."""
    second = world.nodes[1]
    wait_until(lambda: viewer.states().get("node2") == "healthy", "it is well", 30)
    assert second.process is not None
    second.process.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: viewer.states()["node2"] in {"silent", "unreachable"}, "it shows")
        wait_until(lambda: viewer.links()["node3>node2"] == "silent", "its links show")
    finally:
        second.process.send_signal(signal.SIGCONT)
    wait_until(lambda: viewer.states()["node2"] == "healthy", "it is back", 30)


def test_a_node_ends_at_once_although_somebody_looks(make_world: MakeWorld) -> None:
    (node,) = make_world(1).start().nodes
    with contextlib.closing(Viewer(node)) as viewer:
        wait_until(lambda: viewer.has("deployment"), "it is told")
        node.terminate()
        assert node.process is not None
        node.process.wait(timeout=10)
        assert node.process.returncode == 0


@pytest.mark.soak
def test_ten_viewers_take_less_than_a_tenth_of_a_core(make_world: MakeWorld) -> None:
    """And nobody takes less than 2 %: by the processor time of the node, in turns, the median."""
    world = make_world().start()
    node = world.nodes[0]
    shares: dict[int, list[float]] = {0: [], 10: []}
    for _ in range(5):
        for viewers, measured in shares.items():
            with contextlib.ExitStack() as stack:
                looking = [
                    stack.enter_context(contextlib.closing(Viewer(node))) for _ in range(viewers)
                ]
                for one in looking:
                    wait_until(lambda one=one: one.has("deployment"), "it is told")  # type: ignore[misc]
                measured.append(share_of_core(node.pid, 6.0))
    nobody, ten = (statistics.median(measured) for measured in shares.values())
    print(f"nobody looks: {nobody:.1%}; ten look: {ten:.1%} of a core, replication included")
    assert nobody < 0.02
    assert ten - nobody < 0.10


def share_of_core(pid: int, seconds: float) -> float:
    """The processor time of a process, as a share of the time that passes."""

    def used_s() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    began_s, used = time.monotonic(), used_s()
    wait_until(lambda: time.monotonic() - began_s >= seconds, "time passes", seconds + 5)
    return (used_s() - used) / (time.monotonic() - began_s)
