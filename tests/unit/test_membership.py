"""Who belongs, and whose clock is wrong: what nodes tell each other and what follows from it."""

import itertools
import random
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import pytest

from sidecar.agent.peers import Peers
from sidecar.core.collection import Stability
from sidecar.core.conflict import ConflictResolutionStrategy, Rules
from sidecar.core.membership import is_ahead_of_most, is_removed, newest_removed, usually_ahead
from sidecar.core.vector import newest_origins
from sidecar.errors import Refused, Unavailable
from sidecar.store.calls import Phase
from tests.sim.memory_store import MemoryStore

S = 1_000_000
LIMIT_US = 60 * S
RULES = Rules.of(ConflictResolutionStrategy.LAST_WRITE_WINS)
Answer = TypeVar("Answer")


def run(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    """The result of a coroutine that never has to wait."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("nothing here may wait")


class Simulated:
    """A node with a wall clock of its own that is some seconds off; time itself is shared."""

    time_us = 1_790_000_000_000_000

    def __init__(self, name: str, members: Sequence[str], off_s: float = 0.0) -> None:
        self.name, self.off_us = name, int(off_s * S)
        self.store = MemoryStore(
            name,
            RULES,
            now_us=self.wall_us,
            random_bits=random.Random(name).getrandbits,
        )
        self.store.start()
        self.restart(members)

    def wall_us(self) -> int:
        return Simulated.time_us + self.off_us

    def restart(self, members: Sequence[str]) -> None:
        """The sidecar ends and comes with another topology; its data stays."""
        self.peers = Peers(
            self.store,
            self.name,
            members,
            lambda: Simulated.time_us,
            wall_us=self.wall_us,
            max_ahead_us=LIMIT_US,
        )

    def adapt(self, members: Sequence[str]) -> None:
        """The topology changes while the sidecar runs on."""
        run(self.peers.adapt(members, None))

    def greet(self, other: "Simulated") -> None:
        """Say hello to another node, which hears all about this one."""
        run(self.peers.prepare())
        head = {**self.peers.facts(to=other.name), "origin": self.store.origin}
        run(other.peers.greeted(self.name, head))

    def beat(self, other: "Simulated") -> None:
        run(other.peers.heard(self.name, self.peers.facts()))

    def code(self) -> str | None:
        refusal = self.peers.refusal or self.peers.write_refusal
        return refusal.code if refusal else None


def meet(*nodes: Simulated) -> None:
    """All say hello to all, twice, and what they told is kept."""
    for _ in range(2):
        for one, other in itertools.permutations(nodes, 2):
            one.greet(other)
        for node in nodes:
            node.store.sync()
            run(node.peers.tick())


def trio(*offs: float) -> list[Simulated]:
    names = ("n1", "n2", "n3")
    return [Simulated(name, names, off) for name, off in zip(names, offs, strict=True)]


# -- clocks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ahead_s", "expected"),
    [([], 0), ([5], 5), ([-5], -5), ([0, 10], 0), ([-10, 0], 0), ([9, 10], 9), ([0, 1, 90], 1)],
)
def test_two_that_agree_are_not_in_doubt_because_of_a_third(
    ahead_s: list[int], expected: int
) -> None:
    assert usually_ahead(ahead_s) == expected


@pytest.mark.parametrize(
    ("ahead_s", "expected"),
    [
        ([], False),
        ([61], True),
        ([60], False),
        ([61, 0], False),
        ([61, 61], True),
        ([61, 61, -3_600], True),
        ([3_600, 0, 0], False),
    ],
)
def test_ahead_of_most_means_of_more_than_half(ahead_s: list[int], expected: bool) -> None:
    assert is_ahead_of_most([s * S for s in ahead_s], LIMIT_US) is expected


def test_the_node_whose_clock_is_ahead_takes_no_writes_and_the_others_do() -> None:
    wrong, right, late = trio(90, 0, -20)
    meet(wrong, right, late)
    assert wrong.peers.refusal is None, "what it has may be read"
    assert (wrong.code(), right.code(), late.code()) == ("clock_ahead", None, None)
    assert "by 90 s" in str(wrong.peers.write_refusal)


def test_one_node_that_is_far_behind_does_not_stop_the_others() -> None:
    first, second, late = trio(0, 0, -7_200)
    meet(first, second, late)
    assert (first.code(), second.code(), late.code()) == (None, None, None)


def test_a_clock_that_was_set_right_is_noticed_with_the_next_heartbeats() -> None:
    wrong, *others = trio(90, 0, 0)
    meet(wrong, *others)
    assert wrong.code() == "clock_ahead"
    wrong.off_us = 0
    for other in others:
        other.beat(wrong)
    assert wrong.code() is None


def test_who_is_not_heard_of_any_more_says_nothing_about_clocks() -> None:
    wrong, *others = trio(90, 0, 0)
    meet(wrong, *others)
    Simulated.time_us += 4 * S
    assert wrong.code() is None


@pytest.mark.parametrize("wall", ["", "soon", "-1", "9" * 17, "²"])
def test_a_wall_clock_that_is_none_ends_the_session(wall: str) -> None:
    one, other, _ = trio(0, 0, 0)
    head = {**one.peers.facts(), "origin": one.store.origin, "wall": wall}
    with pytest.raises(Refused, match="wall clock"):
        run(other.peers.greeted("n1", head))


# -- removed nodes ---------------------------------------------------------------------------------


def test_of_a_node_the_newest_incarnation_counts() -> None:
    a, b = {"n1": "n1.b", "n2": "n2.a"}, {"n1": "n1.a", "n3": "n3.c"}
    expected = {"n1": "n1.b", "n2": "n2.a", "n3": "n3.c"}
    assert newest_removed(a, b) == newest_removed(b, a) == expected


def test_data_is_outdated_if_it_began_before_the_removal() -> None:
    removed = {"n1": "n1.b"}
    assert is_removed("n1", "n1.a", removed)
    assert is_removed("n1", "n1.b", removed)
    assert not is_removed("n1", "n1.c", removed)
    assert not is_removed("n2", "n2.a", removed)


def removed_third(*, is_reloaded: bool = False) -> tuple[Simulated, Simulated, Simulated]:
    """Three nodes have met; the third is stopped, and the others restart without it, or go on."""
    first, second, third = trio(0, 0, 0)
    meet(first, second, third)
    assert "n3" in newest_origins(first.store.vector) or _learn(first, third)
    for node in (first, second):
        (node.adapt if is_reloaded else node.restart)(["n1", "n2"])
    meet(first, second)
    return first, second, third


def _learn(node: Simulated, other: Simulated) -> bool:
    # No session has carried it here: the incarnation of the other is known by its first entry.
    node.store.disk.vector[other.store.origin] = other.store.vector[other.store.origin]
    return True


@pytest.mark.parametrize("is_reloaded", [False, True])
def test_who_was_removed_is_refused_and_told_why(is_reloaded: bool) -> None:
    first, second, third = removed_third(is_reloaded=is_reloaded)
    assert first.peers.removed == {"n3": third.store.origin}
    assert second.peers.removed == {"n3": third.store.origin}, "it is passed on"
    with pytest.raises(Refused, match="sidecar reset") as refused:
        third.greet(first)
    assert refused.value.code == "node_removed"
    third.peers.is_removed_by("n1", True)
    assert third.code() == "node_removed"


def test_also_in_the_topology_again_and_also_as_a_later_incarnation_of_the_same_data() -> None:
    first, second, third = removed_third()
    for node in (first, second):
        node.restart(["n1", "n2", "n3"])
    meet(first, second)
    with pytest.raises(Refused, match="sidecar reset"):
        third.greet(second)
    Simulated.time_us += S
    run(third.store.begin(None))
    assert third.store.origin > first.peers.removed["n3"]
    with pytest.raises(Refused, match="sidecar reset"):
        third.greet(second)
    # It hears of it from them as well, and keeps it.
    second.greet(third)
    run(third.peers.prepare())
    assert third.code() == "node_removed"


@pytest.mark.parametrize("is_reloaded", [False, True])
def test_after_a_reset_it_is_a_node_like_any_other(is_reloaded: bool) -> None:
    first, second, third = removed_third(is_reloaded=is_reloaded)
    Simulated.time_us += S
    for node in (first, second):
        (node.adapt if is_reloaded else node.restart)(["n1", "n2", "n3"])
    fresh = Simulated("n3", ["n1", "n2", "n3"])
    meet(first, second, fresh)
    assert fresh.store.origin > third.store.origin
    assert (first.code(), fresh.code()) == (None, None)
    assert first.store.phase is not Phase.BEHIND


def test_nothing_is_collected_while_a_node_that_is_there_has_another_topology() -> None:
    first, second, _ = trio(0, 0, 0)
    for node in (first, second):
        node.restart(["n1", "n2"])
    meet(first, second)
    for node, other in ((first, second), (second, first)):
        _learn(node, other)
    meet(first, second)
    run(first.peers.tick())
    assert first.peers.stability.vector is not None
    second.restart(["n1", "n2", "n3"])
    second.greet(first)
    assert first.peers.stability == Stability(None, "n2")


def test_after_a_reload_nothing_is_collected_before_the_others_have_done_the_same() -> None:
    """What they said before stays: no moment passes in which nobody seems to disagree."""
    first, second, third = trio(0, 0, 0)
    meet(first, second, third)
    for node, other in itertools.permutations((first, second, third), 2):
        _learn(node, other)
    meet(first, second, third)
    first.adapt(["n1", "n2"])
    run(first.peers.tick())
    assert first.peers.stability == Stability(None, "n2")
    second.beat(first)
    assert first.peers.stability == Stability(None, "n2"), "it has the old topology still"
    second.adapt(["n1", "n2"])
    meet(first, second)
    run(first.peers.tick())
    assert first.peers.stability.vector is not None
    assert first.peers.rows.known.keys() == {"n1", "n2"}


def test_who_goes_is_kept_before_anybody_is_told() -> None:
    first, second, third = trio(0, 0, 0)
    meet(first, second, third)
    _learn(first, third)
    first.adapt(["n1", "n2"])
    with pytest.raises(Unavailable, match="not in the topology"):
        # A hello that was on its way while the topology changed.
        first.peers._hear("n3", {**third.peers.facts(), "origin": third.store.origin})
    second.greet(first)
    assert first.peers.facts()["members"] == ["n1", "n2"]
    assert first.peers.facts()["removed"] == {"n3": third.store.origin}


def test_a_new_node_joins_until_it_has_what_another_has() -> None:
    first, second = Simulated("n1", ["n1", "n2"]), Simulated("n2", ["n1", "n2"])
    meet(first, second)
    for node, other in itertools.permutations((first, second), 2):
        _learn(node, other)
    meet(first, second)
    assert first.peers.joins == second.peers.joins == ""
    fresh = Simulated("n3", ["n1", "n2", "n3"])
    assert "has not read yet" in fresh.peers.joins
    run(fresh.peers.prepare())
    assert "has not heard" in fresh.peers.joins
    for node in (first, second):
        node.adapt(["n1", "n2", "n3"])
        assert node.peers.joins == "", "only the new one is new"
    meet(first, second, fresh)
    assert "does not have yet what n1 has" in fresh.peers.joins
    for node in (first, second):
        _learn(fresh, node)
    run(fresh.peers.tick())
    assert fresh.peers.joins == ""
    alone = Simulated("n9", ["n8", "n9"])
    run(alone.peers.prepare())
    Simulated.time_us += 4 * S
    assert alone.peers.joins == "", "nobody is there to wait for"


def test_a_node_whose_only_other_is_replaced_is_not_new_again() -> None:
    """Both would say that they are new, and the one that comes be ready with nothing."""
    first, second = Simulated("n1", ["n1", "n2"]), Simulated("n2", ["n1", "n2"])
    meet(first, second)
    _learn(first, second)
    meet(first, second)
    assert not first.peers.is_new
    first.adapt(["n1", "n3"])
    third = Simulated("n3", ["n1", "n3"])
    first.greet(third)
    assert not first.peers.is_new
    assert "does not have yet what n1 has" in third.peers.joins
    # One that had nothing yet has still nothing, whoever comes and goes.
    third.adapt(["n2", "n3"])
    assert third.peers.is_new


@pytest.mark.parametrize(
    "said",
    [
        {"removed": []},
        {"removed": {"n3": 5}},
        {"removed": {"n3": "n4.a"}},
        {"removed": {"n3": "n3"}},
        {"removed": {'n"3': 'n"3.a'}},
        {"members": {}},
        {"members": ["n1", 2]},
    ],
)
def test_what_is_no_topology_ends_the_session(said: dict[str, object]) -> None:
    one, other, _ = trio(0, 0, 0)
    head = {**one.peers.facts(), "origin": one.store.origin, **said}
    with pytest.raises(Refused):
        run(other.peers.greeted("n1", head))
    assert other.peers.removed == {}


def phase_of(node: Simulated) -> Phase:
    return node.store.phase


# -- what was lost ---------------------------------------------------------------------------------


def test_a_loss_is_accepted_only_by_a_node_that_is_behind() -> None:
    one, *_ = trio(0, 0, 0)
    with pytest.raises(Refused, match="no loss to accept") as refused:
        run(one.peers.accept_loss())
    assert refused.value.status == 409
    run(one.store.begin({"n1.00000000a": 5}))
    assert phase_of(one) is Phase.BEHIND
    run(one.peers.accept_loss())
    assert phase_of(one) is Phase.SERVING


def test_a_token_above_the_end_of_an_incarnation_names_a_lost_write() -> None:
    alone = Simulated("n1", ["n1"])
    dead, never = alone.store.origin, "n1.00000000a"
    had = alone.store.vector[dead]
    assert alone.peers.lost_of({dead: had + 1}) is None, "it may still come"
    Simulated.time_us += S
    run(alone.store.begin(None))
    alone.store.sync()
    run(alone.peers.prepare())
    run(alone.peers.tick())
    assert alone.peers.lost_of({dead: had}) is None
    assert alone.peers.lost_of({dead: had + 1}) == dead
    assert alone.peers.lost_of({never: 1}) == never, "no vector names it"
    assert alone.peers.lost_of({"n1.zzzzzzzzzzzz": 1}) is None, "a newer one may have begun"
    assert alone.peers.lost_of({"n9.a": 1}) is None


def test_a_token_is_not_given_up_while_a_node_may_know_more() -> None:
    first, second, _ = trio(0, 0, 0)
    for node in (first, second):
        node.restart(["n1", "n2"])
    meet(first, second)
    dead, had = first.store.origin, first.store.vector[first.store.origin]
    Simulated.time_us += S
    run(first.store.begin(None))
    first.store.sync()
    run(first.peers.tick())
    assert first.peers.lost_of({dead: had + 1}) is None, "the other one's row is not there yet"


# -- tokens of nobody ------------------------------------------------------------------------------


def bring(one: Simulated, other: Simulated) -> None:
    """What one node has written comes to the other: how its incarnation began."""
    origin = one.store.origin
    line = (
        f'{{"format":1,"origin":"{origin}","timestamp":"{one.store.vector[origin]}",'
        '"previous":"0","context":{},"tenant":"default","changes":[]}'
    )
    run(other.store.merge(line.encode()))


def test_a_token_is_of_a_stranger_only_when_nobody_here_has_ever_heard_of_its_node() -> None:
    first, second, third = trio(0, 0, 0)
    assert first.peers.stranger_among({"n1", "n2", "n3"}) is None
    assert first.peers.stranger_among({"n1", "n9"}) is None, "it is new: others may know it"
    for one, other in itertools.permutations((first, second, third), 2):
        bring(one, other)
    meet(first, second, third)
    assert first.peers.stranger_among({"n1", "n9"}) == "n9"
    # It was removed: what it wrote is in the vectors, and tokens of it stay good.
    first.restart(["n1", "n2"])
    second.restart(["n1", "n2"])
    meet(first, second)
    assert first.peers.removed.keys() == {"n3"}
    assert first.peers.stranger_among({"n1", "n3"}) is None
    assert first.peers.stranger_among({"n1", "n9"}) == "n9"


def test_a_node_that_only_the_topology_of_another_has_is_no_stranger() -> None:
    """Configurations are changed on one node after the other."""
    first, second, _ = trio(0, 0, 0)
    bring(second, first)
    meet(first, second)
    second.restart(["n1", "n2", "n3", "n4"])
    assert first.peers.stranger_among({"n4"}) == "n4"
    meet(first, second)
    assert first.peers.stranger_among({"n4"}) is None
