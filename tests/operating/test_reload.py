"""Regions that come and go while the nodes run, and what an operator stops and starts meanwhile."""

import contextlib
import http.client
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial

import pytest
import yaml

from tests.e2e.conftest import MakeWorld
from tests.e2e.test_operations import (
    QUICK,
    admin_url,
    complaint,
    reset,
    status,
    told,
    unsettled,
    with_members,
)
from tests.waiting import wait_until
from tests.world import LIST, WRITE, Answer, Node, World, ask, documents

TARGET = "inferadb_replication_target_connected{node3}"


PAUSE_S = 0.005
"""Between two requests: what is tested is the change, not how much a machine can do."""


class Traffic:
    """An application that writes to a node and reads there, and repeats nothing that fails."""

    def __init__(self, node: Node) -> None:
        self._node, self._numbers = node, itertools.count()
        self.failures: list[object] = []
        self.written: list[int] = []
        self._ending = threading.Event()
        self._loop = threading.Thread(target=self._run, daemon=True)
        self._loop.start()

    def _run(self) -> None:
        while not self._ending.is_set():
            number = next(self._numbers)
            triple = (f"folder:{self._node.name}-{number}", "viewer", "user:bob")
            body = {"relationships": [dict(zip(NAMES, triple, strict=True))]}
            try:
                wrote = self._node.post(WRITE, body, X_Write_Concern="majority")
                read = self._node.post(LIST, {"limit": 1})
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(error)
                continue
            self.failures += [answer for answer in (wrote, read) if answer.status != 200]
            self.written.append(number)
            self._ending.wait(PAUSE_S)

    def go_on(self, requests: int = 20) -> None:
        """Until so many more have been answered."""
        wanted = len(self.written) + requests
        wait_until(lambda: self.failures or len(self.written) >= wanted, "the traffic goes on")
        assert not self.failures

    def end(self) -> None:
        self._ending.set()
        self._loop.join()


NAMES = ("resource", "relation", "subject")


@contextlib.contextmanager
def traffic(*nodes: Node) -> Iterator[list[Traffic]]:
    """Applications of these nodes; at the end none of their requests may have failed."""
    running = [Traffic(node) for node in nodes]
    try:
        yield running
        for one in running:
            one.go_on()
    finally:
        for one in running:
            one.end()
    assert [one.failures for one in running] == [[] for _ in running]


def reload(node: Node, *words: str) -> None:
    """Have a node take up its file; the command tells what came of it."""
    said = told(node, "topology", "reload")
    assert all(word in said for word in words), said


def hang_up(node: Node, text: str = "topology reloaded") -> None:
    """The same by SIGHUP; its log tells."""
    seen = len(node.log)
    os.kill(node.pid, signal.SIGHUP)
    wait_until(lambda: text in node.log[seen:], f"{node.name} has read its file")


def two_of_three(make_world: MakeWorld, **more: object) -> World:
    """A world whose third node is in no file of the others, and does not run."""
    world = make_world(3, replication=QUICK)
    with_members(world, "node1", "node2", **more)
    for node in world.nodes[:2]:
        node.begin()
    for node in world.nodes[:2]:
        node.wait_until_serving()
    wait_until(lambda: all(is_connected(n, 1) for n in world.nodes[:2]), "sessions stand")
    return world


def is_connected(node: Node, targets: int) -> bool:
    found = node.metrics()
    names = ("targets_connected", "targets_total")
    return [found[f"inferadb_replication_{name}"] for name in names] == [targets, targets]


# -- regions ---------------------------------------------------------------------------------------


def test_a_region_comes_and_goes_while_applications_write(make_world: MakeWorld) -> None:
    """No request fails, none is repeated, and nothing is lost; once by signal, once by command."""
    world = two_of_three(make_world)
    first, second, third = world.nodes
    first.insert(*documents(range(10)))
    with traffic(first, second) as applications:
        with_members(world, "node1", "node2", "node3")
        third.begin()
        hang_up(first)
        reload(second, "added: node3")
        wait_until(lambda: is_connected(first, 2) and is_connected(second, 2), "it has joined")
        third.wait_until_serving()
        for one in applications:
            one.go_on()
        assert "added=node3 removed=none" in first.log
        assert first.metrics()[TARGET] == 1
        with_members(world, "node1", "node2")
        third.stop()
        reload(first, "removed: node3")
        hang_up(second)
        assert "added=none removed=node3" in second.log
        assert TARGET not in first.metrics(), "what is told of a target ends with it"
        assert not any("{node3}" in name for name in first.metrics())
    reload(first, "nothing has changed")
    assert all(is_connected(node, 1) for node in (first, second))
    wait_until(lambda: first.vector == second.vector, "both have the same")
    written = sum(len(one.written) for one in applications)
    assert len(first.triples()) == 10 + written
    assert first.triples() == second.triples()
    assert status(first)["members"] == ["node1", "node2"]
    # What each of them was waiting for has gone with the third one.
    first.delete(*documents(range(10)))
    wait_until(lambda: unsettled(first, second) == [0, 0], "collection goes on", 30)


def test_a_node_that_ran_alone_gets_company(make_world: MakeWorld) -> None:
    world = make_world(2, replication=QUICK)
    first, second = world.nodes
    with_members(world, "node1")
    first.start()
    first.insert(*documents(range(5)))
    with traffic(first):
        with_members(world, "node1", "node2")
        reload(first, "added: node2")
        second.start()
        wait_until(lambda: is_connected(first, 1) and is_connected(second, 1), "they have met")
    world.settle()
    assert second.triples() == first.triples()
    assert status(first)["phase"] == status(second)["phase"] == "serving"


def test_who_waits_for_a_region_that_goes_is_answered(make_world: MakeWorld) -> None:
    """A write that was to reach all regions has reached all that are left."""
    world = make_world(3, replication=QUICK).start()
    first, second, third = world.nodes
    third.stop()
    body = {"relationships": [dict(zip(NAMES, documents([1])[0], strict=True))]}
    answers = []

    def write() -> None:
        headers = {"X_Write_Concern": "all", "X_Write_Concern_Timeout_Ms": "25000"}
        answers.append(first.post(WRITE, body, **headers))

    waiting = threading.Thread(target=write)
    waiting.start()
    wait_until(lambda: second.triples() == set(documents([1])), "it has come to the second")
    assert not answers
    with_members(world, "node1", "node2")
    reload(first, "removed: node3")
    waiting.join(10)
    assert [answer.status for answer in answers] == [200]


def test_what_needs_a_restart_is_refused_and_changes_nothing(make_world: MakeWorld) -> None:
    world = two_of_three(make_world)
    first, second, _ = world.nodes
    with traffic(first):
        written = yaml.safe_load(first.config.read_text())
        sound = first.config.read_text()
        regions = written["replication"]["regions"]
        moved = {**regions[0], "zones": [{**regions[0]["zones"][0], "id": "elsewhere"}]}
        for file, why in (
            ("replication: [", "line 1"),
            ({"replication": {"regions": []}}, "replication.regions"),
            ({"replication": {**written["replication"], "window": 5}}, "replication.window"),
            ({**written, "drain_timeout_s": 3}, "drain_timeout_s"),
            ({"replication": {**QUICK, "regions": regions[1:]}}, "node1"),
            ({"replication": {**QUICK, "regions": [moved, regions[1]]}}, "zone of this node"),
        ):
            first.config.write_text(file if isinstance(file, str) else yaml.safe_dump(file))
            assert why in complaint("topology", "reload", "--url", admin_url(first))
            hang_up(first, "topology not reloaded, the present one stays")
        assert first.is_running
        assert is_connected(first, 1)
        first.config.write_text(sound)
        reload(first, "nothing has changed")
    assert first.log.count("replication session to a target") == 1, "not even a session has ended"
    assert status(second)["members"] == ["node1", "node2"]


def test_rules_that_depend_on_the_regions_need_a_restart(make_world: MakeWorld) -> None:
    ranked = {
        **QUICK,
        "conflict_resolution": "source_priority",
        "region_priorities": ["eu-central-1", "us-west-1"],
    }
    world = make_world(2, replication=ranked)
    first, second = world.nodes
    alone = [world.seen_by(first, first.region)]
    both = first.config.read_text()
    ranked["region_priorities"] = ["us-west-1"]
    first.config.write_text(yaml.safe_dump({"replication": {**ranked, "regions": alone}}))
    first.start()
    region = world.seen_by(first, second.region)
    file = {"replication": {**ranked, "regions": [*alone, region]}}
    first.config.write_text(yaml.safe_dump(file))
    assert "part of the conflict rules" in complaint(
        "topology", "reload", "--url", admin_url(first)
    )
    first.config.write_text(both)
    assert "replication.region_priorities" in complaint(
        "topology", "reload", "--url", admin_url(first)
    )


# -- pause, resume, resync -------------------------------------------------------------------------


def test_an_operator_pauses_replication_and_what_waited_is_shipped_then(
    make_world: MakeWorld,
) -> None:
    world = make_world(replication=QUICK).start()
    first, second = world.nodes
    assert "node1 does not ship to node2" in told(first, "pause", "--target", "node2")
    assert "the operator paused replication" in first.log
    first.insert(*documents([1]))
    second.insert(*documents([2]))
    wait_until(lambda: first.triples() == set(documents([1, 2])), "the other way goes on")
    assert second.triples() == set(documents([2]))
    assert status(first)["targets"]["node2"]["paused"] is True
    assert "paused" in told(first, "status")
    health = first.health().body
    assert health["status"] == "degraded"
    assert "replication to target node2 is paused by an operator" in health["reasons"]
    assert first.metric("lag_milliseconds") > 0
    assert "paused" in complaint("resync", "node2", "--url", admin_url(first))
    # Also a reload leaves it so.
    reload(first, "nothing has changed")
    assert "ships to all" in told(first, "resume")
    assert "the operator resumed replication" in first.log
    world.settle()
    assert second.triples() == set(documents([1, 2]))
    # A restart forgets it: nobody wonders a year later why nothing arrives.
    told(first, "pause")
    first.stop()
    first.start()
    first.insert(*documents([3]))
    world.settle()
    assert status(first)["targets"]["node2"]["paused"] is False


def test_an_operator_has_a_target_given_everything(make_world: MakeWorld) -> None:
    world = make_world(replication=QUICK).start()
    first, second = world.nodes
    first.insert(*documents(range(50)))
    world.settle()
    seen = len(second.log)
    assert "from node1 to node2 begins" in told(first, "resync", "node2")
    wait_until(lambda: "state transfer ends" in second.log[seen:], "it has got everything")
    wait_until(lambda: status(first)["transfers_out"] == {}, "it is told as complete")
    assert first.triples() == second.triples() == set(documents(range(50)))
    assert first.digest() == second.digest()
    assert second.log[seen:].count("state transfer begins") == 1
    for words in (("resync", "node9"), ("pause", "--target", "node9"), ("resync", "node1")):
        assert "its targets: node2" in complaint(*words, "--url", admin_url(first))
    for path, body in (("/resync", {}), ("/pause", {"node": "node2"}), ("/resume", b"x")):
        answer = ask(first.admin_port, "POST", path, body, {"X-Sidecar-Admin": "1"})
        assert (answer.status, answer.body["error"]) == (400, "invalid_request")


# -- many tuples -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tuples", [10_000, pytest.param(100_000, marks=pytest.mark.soak, id="full")]
)
def test_a_third_region_joins_many_tuples_and_leaves_again(
    make_world: MakeWorld, tuples: int
) -> None:
    """It joins, catches up, becomes ready; removed, it frees collection; unreset it is refused."""
    # What both have is trimmed: the third gets it by state transfer.
    trimming = {"feed_retention_s": 0}
    world = two_of_three(make_world, **trimming)
    first, second, third = world.nodes
    for begin in range(0, tuples, 5_000):
        first.insert(*documents(range(begin, begin + 5_000)))
    wait_until(lambda: first.vector == second.vector, "both have them", 60)
    wait_until(lambda: first.feed_length() < 5, "they have left the feed", 60)
    for node in (first, second):
        wait_until(partial(knows, node, 2), "both are new no more")
    with traffic(first, second):
        with_members(world, "node1", "node2", "node3", **trimming)
        for node in (first, second):
            hang_up(node)
        third.begin()
        third.wait_until_serving()
        answer = ready(third)
        assert (answer.status, "joining: " in answer.body["message"]) == (503, True)
        took_s = wait_until(lambda: ready(third).status == 200, "it has caught up", 120)
        assert "state transfer ends" in third.log
        assert len(third.triples()) >= tuples
    print(f"{tuples:,} tuples: ready {took_s:.1f} s after its start")
    world.settle(limit_s=60)
    wait_until(lambda: ready(third, max_lag_ms=1_000).status == 200, "it keeps up")
    assert third.digest() == first.digest() == second.digest()
    first.delete(*documents(range(100)))
    world.settle()
    wait_until(lambda: unsettled(*world.nodes) == [0, 0, 0], "nothing is held back", 30)

    third.stop()
    first.delete(*documents(range(100, 200)))
    wait_until(lambda: unsettled(first, second) == [100, 100], "they wait for the third", 30)
    with_members(world, "node1", "node2", **trimming)
    for node in (first, second):
        hang_up(node)
    wait_until(lambda: unsettled(first, second) == [0, 0], "collection goes on", 30)
    assert status(first)["removed"].keys() == {"node3"}

    third.begin()
    wait_until(lambda: "sidecar reset" in third.log, "it is told why it is refused", 30)
    wait_until(lambda: ready(third).status == 503, "it serves nothing")
    third.stop()
    with_members(world, "node1", "node2", "node3", **trimming)
    for node in (first, second):
        hang_up(node)
    seen = len(third.log)
    third.begin()
    wait_until(lambda: "sidecar reset" in third.log[seen:], "also as a member", 30)
    third.stop()
    done = reset(third, "reset", "--config", str(third.config), "--node", "node3", "--yes")
    assert done.returncode == 0, done
    third.start()
    wait_until(lambda: third.digest() == first.digest() == second.digest(), "it is back", 60)


def ready(node: Node, **asked: int) -> Answer:
    query = "&".join(f"{name}={value}" for name, value in asked.items())
    return ask(node.admin_port, "GET", f"/readyz?{query}")


def knows(node: Node, rows: int) -> bool:
    return len(status(node)["rows"]) == rows
