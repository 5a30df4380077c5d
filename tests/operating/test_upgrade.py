"""The release before this one and this one, side by side and one after the other.

Each runs its own code and its own scripts, on the interpreter and the libraries of the tests.
"""

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import MakeWorld
from tests.previous import NoHistoryError, check_out, previous_release
from tests.waiting import wait_until
from tests.world import ROOT, Node, Triple, World, documents

WRITES = 150
"""Of each node, while both run."""


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the code of the previous release lies."""
    try:
        previous = previous_release()
        yield check_out(previous, tmp_path_factory.mktemp("previous") / previous.version)
    except NoHistoryError as missing:
        pytest.skip(f"NOT TESTED: the upgrade from the previous release; {missing}")


class Writer:
    """An application that inserts, and deletes every third again, until it is told to end."""

    def __init__(self, node: Node) -> None:
        self._node, self._ending = node, threading.Event()
        self.visible: set[Triple] = set()
        self.count = 0
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ending.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        assert self.failure is None, self.failure

    def _write(self) -> None:
        try:
            for number in itertools.count():
                if self._ending.is_set():
                    return
                (triple,) = documents([number], f"user:{self._node.name}")
                self._node.insert(triple)
                self.visible.add(triple)
                if number % 3 == 2:
                    self._node.delete(triple)
                    self.visible.remove(triple)
                self.count += 1
        except BaseException as failure:  # noqa: BLE001 - told where the thread is joined
            self.failure = failure


def write_on_all(world: World) -> set[Triple]:
    """Both ways at once; what must be visible everywhere afterwards."""
    writers = [Writer(node) for node in world.nodes]
    try:
        wait_until(
            lambda: all(one.count >= WRITES or one.failure for one in writers), "enough is written"
        )
    finally:
        for one in writers:
            one.end()
    world.settle()
    return set().union(*(one.visible for one in writers))


def assert_equal(world: World, expected: set[Triple]) -> None:
    """Tuples, and what each node has computed of them on its own."""
    first, second = world.nodes
    assert first.triples() == second.triples() == expected
    assert first.digest() == second.digest()
    assert all("Traceback" not in node.log for node in world.nodes)


def assert_runs_from(tree: Path) -> None:
    """A process that is started there runs the code and loads the scripts that lie there."""
    asked = "import sidecar.store.scripts as s; print(s.__file__, s.folder(), sep='\\n')"
    command = [sys.executable, "-c", asked]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True)
    places = [Path(line).resolve() for line in done.stdout.splitlines()]
    assert places == [(tree / "sidecar/store/scripts.py").resolve(), (tree / "lua").resolve()]


def test_the_previous_release_and_this_one_replicate_both_ways(
    make_world: MakeWorld, before: Path
) -> None:
    """Both under load; then the old one is upgraded with its data, and they go on."""
    world = make_world()
    old, new = world.nodes
    old.tree = before
    world.start()
    for tree in (before, ROOT):
        assert_runs_from(tree)
    expected = write_on_all(world)
    assert_equal(world, expected)

    # The upgrade itself: the same data, the code of today.
    origin = next(o for o in old.vector if o.startswith(old.name))
    old.stop()
    old.tree = ROOT
    old.start()
    world.settle()
    assert origin in old.vector, "what it had written as the previous release is still known"
    assert old.triples() == new.triples() == expected


def test_what_the_previous_release_stored_is_served_by_this_one_and_back(
    make_world: MakeWorld, before: Path
) -> None:
    """A lone node: nobody could bring back what it lost on the way, there and back."""
    (node,) = make_world(1).nodes
    node.tree = before
    node.start()
    node.insert(*documents(range(100)))
    node.delete(*documents(range(50)))
    # Back as well, as long as the stored format is the same: an upgrade that disappoints is undone.
    for tree in (ROOT, before, ROOT):
        digest = node.digest()
        node.stop()
        node.tree = tree
        node.start()
        assert node.triples() == set(documents(range(50, 100)))
        assert node.digest() == digest
