"""Histories under a custom script and overrides, and histories in which the rules change.

The script runs as its Python twin here; `tests/lua` holds the two together.
"""

from collections import Counter
from collections.abc import Callable

import pytest

from sidecar.agent.peers import Peers
from sidecar.core.collection import Rows
from sidecar.core.conflict import Override, Rules
from tests import twins
from tests.sim.changes import DELETE_WINS, INSERT_WINS, LWW, play_changes
from tests.sim.histories import History
from tests.sim.memory_store import Disk, MemoryStore
from tests.sim.shapes import SHAPES, mesh
from tests.sim.test_histories import first_seed
from tests.sim.world import KEYS, MS, S, World, few_buckets

SEEDS = 4
"""Times five shapes."""


@pytest.mark.parametrize("kind", ["custom", "custom and overrides"])
def test_a_sound_script_gives_the_same_result_everywhere(kind: str) -> None:
    rules = twins.custom()
    if kind == "custom and overrides":
        overrides = [Override(DELETE_WINS, relation="w"), Override(LWW, resource_type="document")]
        rules = Rules(rules.strategy, {}, tuple(overrides), rules.script, resolve=rules.resolve)
    first = first_seed()
    with few_buckets():
        for seed in range(first, first + SEEDS):
            for shape in SHAPES:
                told = History(seed, rules.strategy, shape, rules).play()
                assert told.happened["conflicts"] > 0


def test_rules_that_change_node_by_node_lose_nothing() -> None:
    first, happened = first_seed(), Counter[str]()
    for seed in range(first, first + SEEDS):
        for shape in SHAPES:
            happened += play_changes(seed, shape).happened
    # Of a single history it is not sure: the last rules may be those it began with.
    assert happened["rules changed"] > SEEDS * len(SHAPES) * 2
    assert happened["changes completed"] > SEEDS * len(SHAPES) * 2


@pytest.mark.soak
@pytest.mark.parametrize("shape", SHAPES)
def test_rules_that_change_lose_nothing_hundreds_of_times(shape: str) -> None:
    first = first_seed()
    for seed in range(first, first + 200):
        play_changes(seed, shape)


# -- scenarios, pinned ----------------------------------------------------------------------------


def three(rules: Rules) -> World:
    """a and b have written one tuple without knowing of each other; only c has received both."""
    world = World("rules", rules.strategy, mesh(["a", "b", "c"]), is_calm=True, rules=rules)
    world.oracle.is_lenient = True
    world.start()
    world.run_for(3 * S)
    world.cut |= {("a", "b"), ("b", "a")}
    for session in world.sessions_of(world.nodes["a"]):
        if world.nodes["b"] in (session.source, session.target):
            world.break_session(session)
    return world


def restart(world: World, name: str, rules: Rules) -> None:
    world.kill(name)
    world.nodes[name].configure(rules)
    world.nodes[name].start()
    world.run_for(2 * S)


def dropped_and_changed() -> None:
    """Under lww c has dropped the insert; by the rules of later it would have won."""
    with few_buckets():
        world = three(Rules.of(LWW))
        world.cut_off("a", "b")
        world.cut -= {("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")}
        world.insert("a")
        world.run_for(1)
        world.delete("b")
        world.run_for(2 * S)
        assert world.nodes["c"].store.visible(KEYS[0]) is None
        for name in ("a", "b", "c"):
            world.mend()
            restart(world, name, Rules.of(INSERT_WINS))
        world.heal()
        world.settle()
        assert world.everywhere() is None
        # A node that begins with nothing does not meet the insert in the feed of a.
        world.kill("b")
        world.restore("b", Disk())
        world.run_for(1 * S)
        world.heal()
        world.settle()
        assert world.everywhere() is None


def settled_by_the_old_rules() -> None:
    """Some have settled a conflict, others not yet; then the rules change, and would turn it."""
    with few_buckets():
        world = World("settled", INSERT_WINS, mesh(["a", "b", "c"]), is_calm=True)
        world.oracle.is_lenient = True
        world.start()
        world.run_for(3 * S)
        world.cut_off("a")
        inserted = world.insert("a")
        world.delete("b")
        world.mend()
        for _ in range(1000):
            world.run_for(5 * MS)
            world.sync()
            states = [node.store.disk.tuples.get(KEYS[0]) for node in world.nodes.values()]
            counts = {len(state.siblings) if state else 0 for state in states}
            vectors = [node.store.vector for node in world.nodes.values()]
            if all(vector == vectors[0] for vector in vectors) and counts == {1, 2}:
                break
        assert counts == {1, 2}, "some have settled it and others have not"
        for name in ("a", "b", "c"):
            world.kill(name)
            world.nodes[name].configure(Rules.of(DELETE_WINS))
        world.heal()
        world.settle()
        assert world.everywhere() == inserted


SCENARIOS = [dropped_and_changed, settled_by_the_old_rules]


@pytest.mark.parametrize("play_it", SCENARIOS)
def test_what_was_settled_by_the_old_rules_stays_settled(play_it: Callable[[], None]) -> None:
    play_it()


def forgets_whom_to_join(patch: pytest.MonkeyPatch) -> None:
    change = MemoryStore._change_rules

    def forgets(self: MemoryStore) -> None:
        change(self)
        self.disk.joined = None

    patch.setattr(MemoryStore, "_change_rules", forgets)


def ships_what_came_before(patch: pytest.MonkeyPatch) -> None:
    change = MemoryStore._change_rules

    def keeps_its_floor(self: MemoryStore) -> None:
        floor = dict(self.disk.floor)
        change(self)
        self.disk.floor = floor

    patch.setattr(MemoryStore, "_change_rules", keeps_its_floor)


def settles_by_the_new_rules_at_once(patch: pytest.MonkeyPatch) -> None:
    stable = Rows.stable
    patch.setattr(Peers, "stability", property(lambda self: stable(self.rows, self._store.vector)))


@pytest.mark.parametrize(
    "break_it", [forgets_whom_to_join, ships_what_came_before, settles_by_the_new_rules_at_once]
)
def test_a_node_that_leaves_out_a_part_of_a_change_is_found_out(
    break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    found = []
    for play_it in SCENARIOS:
        try:
            play_it()
        except AssertionError:
            found.append(play_it)
    assert found


def test_nothing_is_settled_by_new_rules_before_all_have_them() -> None:
    with few_buckets():
        world = three(Rules.of(DELETE_WINS))
        world.mend()
        restart(world, "a", Rules.of(INSERT_WINS))
        assert world.nodes["a"].store.joined == frozenset({"a"})
        assert world.nodes["a"].peers.stability.vector is None
        assert world.nodes["a"].peers.stability.held_by == "b"
        restart(world, "b", Rules.of(INSERT_WINS))
        world.run_for(5 * S)
        assert world.nodes["a"].store.joined == frozenset({"a", "b"})
        assert world.nodes["a"].peers.stability.vector is None
        restart(world, "c", Rules.of(INSERT_WINS))
        world.heal()
        nodes = world.nodes.values()
        assert world.run_until(lambda: all(n.store.joined is None for n in nodes), 20 * S)
        world.settle()
