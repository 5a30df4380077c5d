"""Overrides and a custom script on real nodes, and other rules for stored data, node by node."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from sidecar.core.vector import is_covered, pointwise_max
from tests.e2e.conftest import MakeWorld
from tests.waiting import wait_until
from tests.world import ROOT, Node, Triple, World, ask, documents, sidecar

SETTINGS: dict[str, Any] = {
    "conflict_resolution": "custom",
    "custom_script": "winner.lua",
    "region_priorities": ["eu-central-1", "us-west-1"],
    "conflict_overrides": [
        {"relation": "banned", "strategy": "delete_wins"},
        {"resource_type": "folder", "strategy": "insert_wins"},
    ],
}
BANNED, FOLDER, OTHER = (
    [(f"{kind}:{n}", relation, "user:ann") for n in range(10)]
    for kind, relation in (("document", "banned"), ("folder", "viewer"), ("document", "viewer"))
)


def told(node: Node, resource: str) -> list[dict[str, Any]]:
    found = ask(node.admin_port, "GET", f"/conflicts?resource={resource}").body["conflicts"]
    return list(found)


def test_each_tuple_is_decided_by_the_strategy_that_fits_it(make_world: MakeWorld) -> None:
    """Concurrent writes by the rule, either way round; ordered ones by their order."""
    world = make_world(replication=SETTINGS)
    shutil.copy(ROOT / "config" / "winner.lua", world.folder)
    checked = sidecar("check-config", str(world.nodes[0].config), "--node", "node1")
    assert checked.returncode == 0, checked.stderr
    assert "winner.lua: sound for" in checked.stdout
    world.start()
    us, eu = world.nodes
    world.cut()
    for triples in (BANNED, FOLDER, OTHER):
        us.insert(*triples[:5])
        us.delete(*triples[5:])
        eu.delete(*triples[:5])
        eu.insert(*triples[5:])
    world.heal()
    world.settle()
    # us-west-1 has the higher priority for the script, whatever it wrote and when.
    expected = {*FOLDER, *OTHER[:5]}
    for node in world.nodes:
        assert node.triples() == expected, node.name
    assert us.digest() == eu.digest()
    for node in world.nodes:
        for resource, strategy in (("folder:1", "insert_wins"), ("folder:7", "insert_wins")):
            (one,) = told(node, resource)
            assert one["strategy"] == strategy, node.name
        strategies = {one["relation"]: one["strategy"] for one in told(node, "document:7")}
        assert strategies == {"banned": "delete_wins", "viewer": "custom"}

    everything = {*BANNED, *FOLDER, *OTHER}
    before = {node.name: node.metric("conflicts_total") for node in world.nodes}
    for write, is_there in ((us.insert, True), (eu.delete, False), (eu.insert, True)):
        write(*everything)
        world.settle()
        for node in world.nodes:
            assert node.triples() == (everything if is_there else set()), node.name
    assert {node.name: node.metric("conflicts_total") for node in world.nodes} == before


def test_a_script_that_is_not_symmetric_starts_no_node(tmp_path: Path) -> None:
    script = tmp_path / "first.lua"
    script.write_text("return function(siblings)\n  return 1\nend\n")
    file = tmp_path / "config.yaml"
    file.write_text("replication: {conflict_resolution: custom, custom_script: first.lua}\n")
    complaint = (
        "first.lua: of the siblings AB it chooses A, of the same ones as BA B, where "
        "A = delete at 1 by a.1; B = delete at 1 by b.1"
    )
    for command in (("check-config", str(file)), ("run", "--config", str(file))):
        environ = {"INFERADB__REDIS__URL": f"embedded:{tmp_path}/data"}
        environ |= {f"INFERADB__LISTEN__{name}": "127.0.0.1:0" for name in ("APP", "PEER", "ADMIN")}
        done = sidecar(*command, environ=environ)
        assert done.returncode == 2, done.stdout
        assert complaint in done.stderr
    script.write_text("return function(siblings)\n  while true do end\nend\n")
    done = sidecar("check-config", str(file))
    assert "first.lua:2: a loop that may not end" in done.stderr


# -- a change of the rules ------------------------------------------------------------------------


class Writer:
    """An application that writes one document after the other, and knows what was acknowledged."""

    def __init__(self, node: Node) -> None:
        self._node, self._ending = node, threading.Event()
        self.acknowledged: set[Triple] = set()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        number = 0
        while not self._ending.is_set():
            number += 1
            triple = (f"{self._node.name}:{number}", "viewer", "user:ann")
            try:
                self._node.insert(triple)
                self.acknowledged.add(triple)
            except (OSError, AssertionError):
                pass  # the node is being restarted: this one was never acknowledged
            self._ending.wait(0.02)

    def end(self) -> set[Triple]:
        self._ending.set()
        self._thread.join()
        return self.acknowledged


@contextmanager
def writing(world: World) -> Iterator[list[Writer]]:
    writers = [Writer(node) for node in world.nodes]
    try:
        yield writers
    finally:
        for writer in writers:
            writer.end()


def restart_with(node: Node, **settings: object) -> None:
    node.stop()
    config = yaml.safe_load(node.config.read_text())
    config["replication"] |= settings
    node.config.write_text(yaml.safe_dump(config, sort_keys=False))
    node.start()


def waits_for(node: Node) -> object:
    return ask(node.admin_port, "GET", "/status").body["rules"]["change_waits_for"]


def test_the_strategy_is_changed_on_running_nodes(make_world: MakeWorld) -> None:
    """One node after the other, while all write: sessions pause, nothing is lost, no alarm."""
    world = make_world(
        3, replication={"conflict_resolution": "lww", "anti_entropy_interval_s": 1}
    ).start()
    us, eu, ap = world.nodes
    old, fresh = documents(range(50)), documents(range(100, 150))
    # Inserted here, deleted there and a little later: some nodes have settled it, others have not.
    world.cut()
    us.insert(*old)
    eu.delete(*old)
    for source, target in (("node1", "node3"), ("node2", "node3")):
        world.link(source, target).heal()
    written = pointwise_max(us.vector, eu.vector)
    wait_until(lambda: is_covered(written, ap.vector), "both writes come to the third region")
    assert not ap.triples(), "the delete is the last write"
    with writing(world) as writers:
        restart_with(us, conflict_resolution="insert_wins")
        world.heal()
        line = "replication to a target pauses target="
        for name in ("node2", "node3"):
            wait_until(lambda n=name: line + n in us.log, f"us pauses to {name}")  # type: ignore[misc]
        failures, attempts = us.metric("failures_total"), us.metric("attempts_total")
        wait_until(lambda: us.metric("attempts_total") > attempts + 5, "us has tried again")
        assert us.metric("failures_total") == failures, "a pause is no failure"
        for name in ("node2", "node3"):
            assert us.metric(f"target_unreachable{{{name}}}") == 0
        assert waits_for(us) == ["node2", "node3"]
        shown = sidecar(
            "status", "--node-only", "--url", f"http://127.0.0.1:{us.admin_port}"
        ).stdout
        assert "wait for node2, node3" in shown
        assert set(old) <= us.triples(), "it has not heard of the deletes"
        restart_with(eu, conflict_resolution="insert_wins")
        restart_with(ap, conflict_resolution="insert_wins")
        for node in world.nodes:
            wait_until(lambda n=node: waits_for(n) is None, f"{node.name} is done", 60.0)  # type: ignore[misc]
    acknowledged = set().union(*(writer.acknowledged for writer in writers))
    assert len(acknowledged) > 100
    world.settle()
    for node in world.nodes:
        assert node.triples() == us.triples(), node.name
        assert acknowledged <= node.triples(), "nothing that was acknowledged is missing"
        assert node.digest() == us.digest()
    assert not us.triples() & set(old), "the third region had settled them, and told the others"

    world.cut()
    us.insert(*fresh)
    ap.delete(*fresh)
    world.heal()
    world.settle()
    for node in world.nodes:
        assert set(fresh) <= node.triples(), "new conflicts are decided by the new rules"
    for node in world.nodes:
        for alarm in ("damage", "differs from most"):
            assert alarm not in node.log, f"{node.name} raises a false alarm"
    wait_until(
        lambda: all(
            ask(node.admin_port, "GET", "/status").body["unsettled"] == 0 for node in world.nodes
        ),
        "what lost is collected",
        60.0,
    )
