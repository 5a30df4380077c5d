"""Eight years of an organisation's permissions, written in one region and read in the other.

Also when one of the two, or its Redis, is killed in the middle.
"""

import gzip
import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.e2e.conftest import MakeWorld
from tests.waiting import wait_until
from tests.world import (
    ROOT,
    Made,
    Node,
    Triple,
    Watcher,
    World,
    clean_environ,
    sidecar,
    sidecar_command,
    triple_of,
)

FILE = "tests/data/org-history.ndjson.gz"
TRANSACTIONS, LEFT_AT_THE_END = 2_769, 6_968
OPENINGS = 2
"""Each data set begins with an empty transaction, which is in every feed."""
HALFWAY = TRANSACTIONS // 3
"""Kill after this many: dying and coming back takes time too."""


@dataclass(frozen=True)
class History:
    """The file, read by the test itself: transactions in order, and what is left at the end."""

    transactions: Sequence[list[Made]]
    left: frozenset[Triple]


@pytest.fixture(scope="module")
def history() -> History:
    transactions: list[list[Made]] = []
    left: set[Triple] = set()
    with gzip.open(ROOT / FILE, "rt") as lines:
        for line in lines:
            content = json.loads(line)
            inserts = [tuple(triple) for triple in content["insert"]]
            deletes = [tuple(triple) for triple in content["delete"]]
            left = left.union(inserts).difference(deletes)
            transactions.append([("insert", t) for t in inserts] + [("delete", t) for t in deletes])
    assert (len(transactions), len(left)) == (TRANSACTIONS, LEFT_AT_THE_END)
    return History(transactions, frozenset(left))


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world().start()


@contextmanager
def importing(node: Node) -> Iterator["subprocess.Popen[str]"]:
    """`sidecar import` of the history into a node, while the test does something else."""
    with subprocess.Popen(
        sidecar_command("import", FILE, "--url", node.url),
        cwd=ROOT,
        env=clean_environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_end(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def assert_same_everywhere(world: World, history: History) -> None:
    """Both regions export what the file leaves, and stored it as the same versions."""
    first, second = world.nodes
    for node in world.nodes:
        exported = node.export()
        assert len(exported) == LEFT_AT_THE_END, f"{node.name} exports {len(exported)}"
        assert {triple_of(one) for one in exported} == history.left, node.name
    assert first.vector == second.vector
    assert first.digest() == second.digest()
    for node in world.nodes:
        assert node.metric("conflicts_total") == 0, node.name


def assert_seen_as_written(watcher: Watcher, history: History, begins_with: int = 0) -> None:
    """Every transaction once, whole and in order; before it `begins_with` of an earlier import."""
    seen = watcher.transactions
    expected = [*history.transactions[:begins_with], *history.transactions]
    assert len(seen) == len(expected), watcher.errors
    for number, ((origin, changes), written) in enumerate(zip(seen, expected, strict=True), 1):
        assert origin.startswith("node1."), f"transaction {number} is of {origin}"
        assert changes == written, f"transaction {number} of {len(expected)} differs"


def wait_for_the_watcher(watcher: Watcher, count: int) -> None:
    wait_until(lambda: watcher.complete >= count, f"{count} transactions seen", 60)


def test_a_history_written_in_one_region_is_the_same_in_the_other(
    world: World, history: History
) -> None:
    """Within two seconds of its end the other region has all of it, transaction by transaction."""
    first, second = world.nodes
    watcher = world.watch(second)
    done = sidecar("import", FILE, "--url", first.url)
    assert done.returncode == 0, done.stderr
    assert "2,769 transactions (16,179 inserts, 9,211 deletes)" in done.stdout
    waited_s = wait_until(lambda: second.triples() == history.left, "the other has all", 2.0)
    print(f"{done.stdout.strip()}; all of it in the other region {waited_s:.3f} s later")
    assert_same_everywhere(world, history)
    wait_for_the_watcher(watcher, TRANSACTIONS)
    assert_seen_as_written(watcher, history)
    assert second.metric("merged_transactions_total") == TRANSACTIONS + 1
    assert first.metric("changes_total") == 16_179 + 9_211
    assert second.feed_length() == TRANSACTIONS + OPENINGS


def test_the_other_region_is_killed_halfway_and_comes_back(world: World, history: History) -> None:
    """The writers notice nothing, and what is sent twice has no second effect."""
    first, second = world.nodes
    watcher = world.watch(second)
    with importing(first) as process:
        wait_for_the_watcher(watcher, HALFWAY)
        second.kill()
        assert process.poll() is None, "killed too late to tell anything"
        second.start()
        wait_for_end(process)
    waited_s = world.settle()
    print(f"settled {waited_s:.3f} s after the import")
    assert_same_everywhere(world, history)
    wait_for_the_watcher(watcher, TRANSACTIONS)
    assert_seen_as_written(watcher, history)
    assert second.feed_length() == TRANSACTIONS + OPENINGS


def test_only_the_redis_of_the_other_region_is_killed_halfway(
    world: World, history: History
) -> None:
    """Its sidecar starts the Redis again and goes on where it was."""
    first, second = world.nodes
    watcher = world.watch(second)
    sidecar_pid = second.pid
    with importing(first) as process:
        wait_for_the_watcher(watcher, HALFWAY)
        second.kill_valkey()
        assert process.poll() is None, "killed too late to tell anything"
        wait_for_end(process)
    second.wait_until_serving()
    world.settle()
    assert second.is_running
    assert second.pid == sidecar_pid
    assert_same_everywhere(world, history)
    wait_for_the_watcher(watcher, TRANSACTIONS)
    assert_seen_as_written(watcher, history)
    assert second.feed_length() == TRANSACTIONS + OPENINGS


def test_the_first_region_is_killed_halfway_and_the_import_is_run_again(
    world: World, history: History
) -> None:
    """From its first line: an import over half an import ends in the same relationships."""
    first, second = world.nodes
    watcher = world.watch(second)
    with importing(first) as process:
        wait_for_the_watcher(watcher, HALFWAY)
        process.kill()
        process.communicate()
        first.kill()
    first.start()
    world.settle()
    done_before = first.feed_length() - OPENINGS
    assert HALFWAY <= done_before < TRANSACTIONS
    done = sidecar("import", FILE, "--url", first.url)
    assert done.returncode == 0, done.stderr
    world.settle()
    assert_same_everywhere(world, history)
    wait_for_the_watcher(watcher, done_before + TRANSACTIONS)
    assert_seen_as_written(watcher, history, begins_with=done_before)
