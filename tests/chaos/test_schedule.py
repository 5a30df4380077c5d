"""Schedules: the same for the same seed, and no fault meets another one in its place."""

from collections.abc import Sequence

import pytest

from tests.chaos.schedule import ALWAYS, OF_LINKS, Fault, Kind, draw, links_of

NODES = ("node1", "node2", "node3")


def test_a_schedule_is_made_by_its_seed() -> None:
    assert draw(7, 60.0, NODES) == draw(7, 60.0, NODES)
    assert draw(7, 60.0, NODES) != draw(8, 60.0, NODES)


def test_every_kind_of_fault_is_drawn_and_older_copies_only_when_asked_for() -> None:
    assert {fault.kind for fault in draw(7, 300.0, NODES)} == set(ALWAYS)
    assert {fault.kind for fault in draw(7, 300.0, NODES, tuple(Kind))} == set(Kind)


@pytest.mark.parametrize("seed", range(20))
def test_faults_end_in_time_and_do_not_meet(seed: int) -> None:
    """Or the end of one would heal the other."""
    ends: dict[object, float] = {}
    for fault in draw(seed, 60.0, NODES, tuple(Kind)):
        assert 0 < fault.at_s <= fault.at_s + fault.for_s <= 60.0
        assert (fault.target is not None) == (fault.kind in OF_LINKS)
        places: Sequence[object] = [*links_of(fault, NODES)] or [fault.node]
        for place in places:
            assert ends.get(place, 0.0) <= fault.at_s, f"{fault} meets another one at {place}"
            ends[place] = fault.at_s + fault.for_s


def test_a_cut_is_of_one_direction_and_isolation_of_all() -> None:
    cut = Fault(1.0, Kind.CUT, "node1", "node2", 1.0)
    assert list(links_of(cut, NODES)) == [("node1", "node2")]
    isolated = Fault(1.0, Kind.ISOLATE, "node1", None, 1.0)
    assert set(links_of(isolated, NODES)) == {
        *(("node1", "node2"), ("node2", "node1")),
        *(("node1", "node3"), ("node3", "node1")),
    }
