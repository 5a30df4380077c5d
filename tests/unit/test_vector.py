"""The laws of vectors, and the order of versions."""

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.vector import Vector, above, covers, is_covered, order, pointwise_max

ORIGINS = ["n.1", "n.2", "n-1.1", "n0.1"]
VECTORS = st.dictionaries(st.sampled_from(ORIGINS), st.integers(1, 5))
VERSIONS = st.tuples(st.integers(1, 6), st.sampled_from(ORIGINS))


@given(VECTORS, VECTORS, VECTORS)
def test_joining_does_not_depend_on_order_grouping_or_repetition(
    a: Vector, b: Vector, c: Vector
) -> None:
    assert pointwise_max(a, b) == pointwise_max(b, a)
    assert pointwise_max(pointwise_max(a, b), c) == pointwise_max(a, pointwise_max(b, c))
    assert pointwise_max(a, a) == pointwise_max(a, {}) == a


@given(VECTORS, VECTORS)
def test_a_join_is_the_least_that_covers_both(a: Vector, b: Vector) -> None:
    joined = pointwise_max(a, b)
    assert is_covered(a, joined)
    assert is_covered(b, joined)
    for origin, timestamp in joined.items():
        less = {**joined, origin: timestamp - 1}
        assert not (is_covered(a, less) and is_covered(b, less))


@given(VECTORS, VECTORS, VERSIONS)
def test_a_join_covers_what_one_of_both_covers(
    a: Vector, b: Vector, version: tuple[int, str]
) -> None:
    assert covers(pointwise_max(a, b), version) == (covers(a, version) or covers(b, version))


@given(VECTORS, VECTORS)
def test_what_is_above_is_what_is_not_covered(a: Vector, b: Vector) -> None:
    missing = above(a, b)
    assert (not missing) == is_covered(a, b)
    assert is_covered(missing, a)
    assert pointwise_max(b, missing) == pointwise_max(a, b)
    assert above(missing, b) == missing


@given(VECTORS, VECTORS)
def test_arguments_stay_as_they_were(a: Vector, b: Vector) -> None:
    before = dict(a), dict(b)
    pointwise_max(a, b)
    above(a, b)
    assert (dict(a), dict(b)) == before


def test_an_origin_never_heard_of_stands_at_nothing() -> None:
    assert not covers({}, (1, "n.1"))
    assert not is_covered({"n.1": 1}, {})
    assert is_covered({"n.1": 0}, {})
    assert is_covered({}, {})


def test_versions_of_one_time_are_ordered_by_node_then_by_incarnation() -> None:
    """Never by the joined text, in which "-" comes before "."."""
    ascending = [
        (4, "z.z"),
        (5, "a.9"),
        (5, "n.1"),
        (5, "n.2"),
        (5, "n-1.1"),
        (5, "n-1.9"),
        (5, "n0.1"),
        (5, "na.1"),
        (6, "a.1"),
    ]
    turned = ascending[::-1]
    assert sorted(turned, key=order) == ascending
    assert sorted(["n.1", "n-1.1"]) == ["n-1.1", "n.1"]


@given(st.lists(VERSIONS, min_size=2, unique=True))
def test_the_order_of_versions_is_total(versions: list[tuple[int, str]]) -> None:
    assert len({order(version) for version in versions}) == len(versions)
    best = max(versions, key=order)
    assert reduce(lambda a, b: a if order(a) > order(b) else b, versions) == best
