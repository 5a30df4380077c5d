"""`sidecar conflicts` as a person runs it, against two regions that wrote the same tuples."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import MakeWorld
from tests.servers import free_ports
from tests.waiting import wait_until
from tests.world import (
    HOST,
    ROOT,
    WRITE,
    Node,
    World,
    clean_environ,
    documents,
    sidecar,
    sidecar_command,
)

PLAIN = documents(range(3))


def admin_url(node: Node) -> str:
    return f"http://{HOST}:{node.admin_port}"


def listed(node: Node, *words: str) -> str:
    done = sidecar("conflicts", "--url", admin_url(node), *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def entries(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def complaint(code: int, *words: str) -> str:
    """The one line of `sidecar conflicts` when it ends with `code`."""
    done = sidecar("conflicts", *words)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def quarrel(world: World, first: Callable[[], object], second: Callable[[], object]) -> None:
    """Two writes that do not know each other."""
    world.cut()
    wait_until(
        lambda: all(node.metric("targets_connected") == 0 for node in world.nodes),
        "the link is cut",
    )
    first()
    second()
    world.heal()
    world.settle()


@contextmanager
def following(node: Node, folder: Path, *words: str) -> Iterator[tuple[Path, Path]]:
    """A `sidecar conflicts --follow --json`, ended by Ctrl-C: what it says, and complains of."""
    said, complained = folder / "said.ndjson", folder / "complained.txt"
    with said.open("wb") as output, complained.open("wb") as errors:
        command = ("conflicts", "--url", admin_url(node), "--follow", "--json", *words)
        process = subprocess.Popen(
            sidecar_command(*command), cwd=ROOT, env=clean_environ(), stdout=output, stderr=errors
        )
    try:
        yield said, complained
        assert process.poll() is None, complained.read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def world(make_shared_world: MakeWorld) -> World:
    """Four conflicts: three plain ones, and one with a condition in a tenant of its own."""
    world = make_shared_world().start()
    us, eu = world.nodes
    odd = {"resource": "document:[b]é", "relation": "viewer", "subject": "user:alice"}
    payload = {"condition": {"name": "office hours"}, "expires_at": "2031-01-01T00:00:00Z"}

    def write_odd(node: Node, more: Mapping[str, object]) -> None:
        answer = node.post(WRITE, {"relationships": [{**odd, **more}]}, X_Tenant="acme")
        assert answer.status == 200, answer

    quarrel(world, lambda: us.insert(*PLAIN), lambda: eu.delete(*PLAIN))
    quarrel(world, lambda: write_odd(us, payload), lambda: write_odd(eu, {}))
    return world


def test_each_node_lists_its_conflicts_newest_first(world: World) -> None:
    us, eu = world.nodes
    odd, *plain = entries(listed(us, "--json"))
    assert [one["resource"] for one in plain] == ["document:2", "document:1", "document:0"]
    assert {one["resolved"] for one in plain} == {"remote"}
    assert (odd["tenant"], odd["resource"]) == ("acme", "document:[b]é")
    assert odd["stored"]["condition"] == {"name": "office hours"}
    assert odd["winner"] == odd["arrived"]
    for here, there in zip(
        entries(listed(us, "--json")), entries(listed(eu, "--json")), strict=True
    ):
        assert (here["stored"], here["arrived"]) == (there["arrived"], there["stored"])
        assert here["winner"] == there["winner"]
        assert {here["resolved"], there["resolved"]} == {"local", "remote"}
    assert entries(listed(us, "--json", "--limit", "2")) == [odd, plain[0]]
    assert entries(listed(us, "--json", "--resource", "document:1")) == [plain[1]]
    assert entries(listed(us, "--json", "--resource", "document:9")) == []


def test_the_table_is_for_people(world: World) -> None:
    us, _ = world.nodes
    heading, *rows = listed(us, "--resource", "document:1").splitlines()
    assert heading.split("  ")[0] == "merged here (UTC)"
    assert len(rows) == 1
    for part in (
        "document:1#viewer@user:alice",
        "insert by node1 at 20",
        "delete by node2 at 20",
        "arrived: delete",
        "lww",
    ):
        assert part in rows[0]
    _, odd = listed(us, "--resource", "document:[b]é").splitlines()
    assert 'if {"name":"office hours"} until 2031-01-01 00:00:00' in odd
    assert "acme/document:[b]é#viewer" in odd


def test_what_cannot_be_done_is_one_line(world: World) -> None:
    us, _ = world.nodes
    (port,) = free_ports(1)
    nobody = f"http://{HOST}:{port}"
    assert f"no sidecar answers at {nobody}" in complaint(1, "--url", nobody)
    assert "its admin listener" in complaint(1, "--url", nobody, "--follow")
    assert "should be the admin listener" in complaint(2, "--url", us.url)
    assert "http://127.0.0.1:8082" in complaint(2, "--url", "localhost")
    assert "no colon" in complaint(2, "--url", admin_url(us), "--resource", "document")
    assert "--limit" in complaint(2, "--url", admin_url(us), "--limit", "0")
    assert "--bogus" in complaint(2, "--bogus")


def test_following_goes_on_over_the_death_of_the_node(world: World, tmp_path: Path) -> None:
    us, eu = world.nodes
    before = entries(listed(us, "--json"))
    with following(us, tmp_path, "--limit", "2") as (said, complained):

        def told() -> list[dict[str, Any]]:
            return entries(said.read_text())

        wait_until(lambda: told() == before[:2][::-1], said.read_text)
        us.kill()
        wait_until(lambda: "goes on when it is back" in complained.read_text(), "it has noticed")
        us.start()
        more = documents(range(10, 15))
        quarrel(world, lambda: us.insert(*more), lambda: eu.delete(*more))
        wait_until(lambda: len(told()) == 7, said.read_text)
        assert [one["resource"] for one in told()[2:]] == [triple[0] for triple in more]
        assert told()[::-1] == entries(listed(us, "--json", "--limit", "7"))
    assert complained.read_text().count("\n") == 1


def test_following_one_resource_tells_nothing_else(world: World, tmp_path: Path) -> None:
    us, eu = world.nodes
    with following(us, tmp_path, "--resource", "document:21") as (said, complained):
        quarrel(
            world,
            lambda: us.insert(*documents(range(20, 23))),
            lambda: eu.delete(*documents(range(20, 23))),
        )
        wait_until(said.read_text, complained.read_text)
        quarrel(
            world, lambda: us.delete(*documents([21, 22])), lambda: eu.insert(*documents([21, 22]))
        )
        wait_until(lambda: said.read_text().count("\n") == 2, complained.read_text)
    assert {one["resource"] for one in entries(said.read_text())} == {"document:21"}
    assert complained.read_text() == ""
