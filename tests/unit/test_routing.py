"""Who carries whose writes to whom: shapes that people draw, and graphs that nobody would."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.routing import Graph, carried, distances, neighbours
from tests.sim.shapes import chain, mesh, one_way_ring, ring, star

NAMES = ["a", "b", "c", "d", "e"]


def carriers(graph: Graph, origin: str, target: str) -> list[str]:
    """The nodes that bring the writes of `origin` to `target`."""
    return [n for n in graph if target in graph[n] and origin in carried(graph, n, target)]


def reached(graph: Graph, origin: str) -> set[str]:
    """Where the writes of `origin` come to, when each node sends only what it carries."""
    found, frontier = {origin}, [origin]
    for node in frontier:
        for target in graph[node]:
            if target not in found and origin in carried(graph, node, target):
                found.add(target)
                frontier.append(target)
    return found


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[:3], NAMES], ids=len)
@pytest.mark.parametrize("shape", [mesh, ring, chain, star, one_way_ring])
def test_every_write_comes_to_every_node_over_one_carrier(
    shape: Callable[[Sequence[str]], Graph], names: list[str]
) -> None:
    graph = shape(names)
    for origin in names:
        assert reached(graph, origin) == set(names)
        for target in set(names) - {origin}:
            assert len(carriers(graph, origin, target)) == 1, (origin, target)


def test_in_a_mesh_each_carries_its_own() -> None:
    graph = mesh(NAMES)
    assert {carried(graph, a, b) for a in NAMES for b in NAMES if a != b} == {
        frozenset({name}) for name in NAMES
    }


def test_in_a_chain_everything_from_behind_is_carried_on() -> None:
    graph = chain(NAMES)
    assert carried(graph, "c", "d") == {"a", "b", "c"}
    assert carried(graph, "c", "b") == {"c", "d", "e"}
    assert carried(graph, "b", "a") == {"b", "c", "d", "e"}


def test_the_middle_of_a_star_carries_all_but_the_targets_own() -> None:
    graph = star(NAMES)
    assert carried(graph, "a", "c") == {"a", "b", "d", "e"}
    assert carried(graph, "b", "a") == {"b"}


def test_a_one_way_ring_carries_everything_on_but_what_comes_from_the_target() -> None:
    graph = one_way_ring(NAMES)
    assert carried(graph, "b", "c") == {"a", "b", "d", "e"}
    assert carried(graph, "e", "a") == {"b", "c", "d", "e"}


def test_of_two_last_hops_the_one_with_the_lower_id_carries() -> None:
    graph = ring(NAMES[:4])
    # From a to c there are two ways of the same length, over b and over d.
    assert carried(graph, "b", "c") == {"a", "b"}
    assert carried(graph, "d", "c") == {"d"}
    assert carriers(graph, "b", "d") == ["a"]


def test_the_shortest_way_carries_also_where_a_longer_one_has_a_lower_id() -> None:
    graph = {"z": ["a", "x"], "a": ["b"], "b": ["t"], "x": ["t"], "t": []}
    assert carriers(graph, "z", "t") == ["x"]


graphs = st.integers(2, 5).flatmap(
    lambda n: st.fixed_dictionaries(
        {a: st.lists(st.sampled_from(NAMES[:n]), unique=True) for a in NAMES[:n]}
    ).map(lambda graph: {a: [b for b in targets if b != a] for a, targets in graph.items()})
)


@given(graphs)
def test_what_can_come_to_a_node_has_one_carrier_there_and_nothing_else_has(graph: Graph) -> None:
    for origin in graph:
        away = distances(graph, origin)
        assert reached(graph, origin) == away.keys()
        for target in graph.keys() - {origin}:
            found = carriers(graph, origin, target)
            assert len(found) == (target in away)
            assert all(away[carrier] + 1 == away[target] for carrier in found)


@given(graphs)
def test_neighbours_are_those_that_a_session_joins(graph: Graph) -> None:
    for a in graph:
        joined = {b for b in graph if b in graph[a] or a in graph[b]}
        assert neighbours(graph, a) == joined
