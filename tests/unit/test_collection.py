"""Rows: what the others are known to have, when that is believed, and what follows."""

import pytest

from sidecar.core.collection import Rows, Stability

A, A2, B, B2, C = "a.00000001xxxx", "a.00000002xxxx", "b.00000001xxxx", "b.00000002xxxx", "c.1xxxx"
ALL = {A: 5, B: 5, C: 5}


def rows_of_three() -> Rows:
    """Those of node a, among a, b and c."""
    return Rows("a", ["a", "b", "c"])


def all_have(vector: dict[str, int]) -> Rows:
    rows = rows_of_three()
    rows.hear("b", vector)
    rows.hear("c", vector)
    rows.believe(vector, vector)
    return rows


# -- belief ---------------------------------------------------------------------------------------


def test_a_row_is_believed_when_this_node_has_everything_in_it() -> None:
    """Until then something that the other wrote before it had it may still be on its way here."""
    rows = rows_of_three()
    rows.hear("b", {A: 4, B: 5, C: 3})
    assert rows.believe({A: 9, B: 5, C: 2}, {A: 9}) == ["a"]
    assert "b" not in rows.known
    assert rows.believe({A: 9, B: 5, C: 3}, {A: 9}) == ["b"]
    assert rows.known["b"] == {A: 4, B: 5, C: 3}
    assert rows.believe({A: 9, B: 5, C: 3}, {A: 9}) == []


def test_the_oldest_row_waits_or_none_would_be_reached_under_load() -> None:
    rows = rows_of_three()
    for timestamp in (5, 6, 7):
        rows.hear("b", {B: timestamp})
    assert "b" in rows.believe({B: 5}, {})
    assert rows.known["b"] == {B: 5}
    assert rows.believe({B: 9}, {}) == []
    rows.hear("b", {B: 8})
    rows.believe({B: 9}, {})
    assert rows.known["b"] == {B: 8}


def test_a_row_that_says_less_than_what_is_believed_says_nothing() -> None:
    rows = rows_of_three()
    rows.hear("b", {A: 3, B: 5})
    rows.believe({A: 9, B: 5}, {})
    rows.hear("b", {B: 4})
    assert rows.told() == {"b": {A: 3, B: 5}}
    assert "b" not in rows.believe({A: 9, B: 9}, {A: 1})
    assert rows.known["b"] == {A: 3, B: 5}


def test_a_row_of_a_newer_incarnation_takes_the_place_of_all_before() -> None:
    """What the node said as its older one it may have lost."""
    rows = rows_of_three()
    rows.hear("b", {A: 4, B: 5})
    rows.believe({A: 4, B: 5}, {})
    rows.hear("b", {A: 2, B: 3, B2: 1})
    assert "b" not in rows.known
    rows.hear("b", {A: 4, B: 5})
    rows.hear("b", {A: 4, B: 9})
    assert rows.believe({A: 4, B: 9}, {}) == []
    assert rows.believe({A: 4, B: 5, B2: 1}, {}) == ["b"]
    assert rows.known["b"] == {A: 2, B: 3, B2: 1}


def test_a_row_that_waits_gives_way_to_one_of_a_newer_incarnation() -> None:
    rows = rows_of_three()
    rows.hear("b", {A: 99, B: 5})
    rows.hear("b", {A: 2, B: 3, B2: 1})
    assert "b" in rows.believe({A: 5, B: 5, B2: 1}, {})
    assert rows.known["b"] == {A: 2, B: 3, B2: 1}


@pytest.mark.parametrize(
    ("node", "row"),
    [("x", {"x.1": 5}), ("a", {A: 99}), ("b", {}), ("b", {A: 5, C: 5})],
    ids=["a stranger", "this node itself", "nothing", "nothing of its own is durable"],
)
def test_rows_that_count_for_nothing(node: str, row: dict[str, int]) -> None:
    rows = rows_of_three()
    rows.hear(node, row)
    rows.believe({A: 99, B: 99, C: 99, "x.1": 99}, {A: 1})
    assert rows.known == {"a": {A: 1}}
    assert rows.claims_of(node) == {}
    assert rows.told() == {}


def test_what_was_heard_is_passed_on_also_before_it_is_believed() -> None:
    rows = rows_of_three()
    rows.hear("b", {B: 5})
    rows.believe({B: 5}, {A: 1})
    rows.hear("b", {B: 8})
    rows.hear("c", {C: 2})
    assert rows.told() == {"b": {B: 8}, "c": {C: 2}}


def test_a_restart_begins_with_the_rows_that_were_believed() -> None:
    rows = rows_of_three()
    rows.restore({"b": {B: 5}, "gone": {"gone.1": 5}})
    assert rows.known == {"b": {B: 5}}
    assert rows.claims_of("b") == {B: 5}


# -- claims ---------------------------------------------------------------------------------------


def test_a_claim_stays_until_the_node_serves_without_it() -> None:
    rows = rows_of_three()
    rows.hear("b", {A: 4, B: 5})
    rows.hear("b", {A: 2, B: 7})
    assert rows.claims_of("b") == {A: 4, B: 7}
    rows.hear("b", {A: 1, B: 3, B2: 1})
    assert rows.claims_of("b") == {A: 4, B: 7, B2: 1}
    rows.acknowledged_loss("b", {A: 1, B: 9})
    assert rows.claims_of("b") == {A: 4, B: 7, B2: 1}, "an older incarnation has no say"
    rows.acknowledged_loss("b", {A: 1, B: 3, B2: 2})
    assert rows.claims_of("b") == {A: 1, B: 3, B2: 2}


# -- what is stable -------------------------------------------------------------------------------


def test_stable_is_what_every_believed_row_has() -> None:
    rows = rows_of_three()
    vector = {A: 9, B: 9, C: 9}
    rows.hear("b", {A: 4, B: 9, C: 2})
    rows.hear("c", {A: 3, B: 7, C: 9})
    rows.believe(vector, {A: 9, B: 8, C: 1})
    assert rows.stable(vector) == Stability({A: 3, B: 7, C: 1}, "b")


def test_all_have_all_and_nobody_holds_anything_back() -> None:
    assert all_have(ALL).stable(ALL) == Stability(ALL, None)


def test_a_node_alone_has_what_is_durable() -> None:
    rows = Rows("a", ["a"])
    rows.believe({A: 9}, {A: 7})
    assert rows.stable({A: 9}) == Stability({A: 7}, None)


def test_a_node_of_which_nothing_is_known_holds_all_back() -> None:
    rows = rows_of_three()
    rows.hear("b", ALL)
    rows.hear("c", {**ALL, C: 6})
    rows.believe(ALL, ALL)
    assert rows.stable(ALL) == Stability(None, "c")


def test_the_node_that_is_the_furthest_behind_holds_back() -> None:
    rows = rows_of_three()
    rows.hear("b", {A: 5, B: 5, C: 4})
    rows.hear("c", {A: 1, B: 5, C: 5})
    rows.believe(ALL, ALL)
    assert rows.stable(ALL) == Stability({A: 1, B: 5, C: 4}, "c")


def test_nothing_is_stable_until_everybody_has_heard_of_every_newest_incarnation() -> None:
    """What a node had that has lost something may still surface there."""
    rows = all_have(ALL)
    newer = {**ALL, B2: 1}
    assert rows.stable(newer).vector is None
    rows.hear("b", newer)
    rows.believe(newer, newer)
    assert rows.stable(newer) == Stability(None, "c")
    rows.hear("c", newer)
    rows.believe(newer, newer)
    assert rows.stable(newer) == Stability(newer, None)


# -- where incarnations ended ---------------------------------------------------------------------


def test_an_incarnation_ends_where_all_have_the_same_of_it() -> None:
    vector = {**ALL, B2: 1}
    rows = rows_of_three()
    rows.hear("b", {**vector, B: 4})
    rows.hear("c", vector)
    rows.believe(vector, vector)
    assert rows.ended == {}, "b itself may still get what it has lost"
    rows.hear("b", vector)
    rows.believe(vector, vector)
    assert rows.ended == {B: 5}


def test_an_incarnation_has_not_ended_where_somebody_has_nothing_of_it() -> None:
    vector = {**ALL, A2: 1}
    rows = rows_of_three()
    rows.hear("b", vector)
    rows.hear("c", {B: 5, C: 5, A2: 1})
    rows.believe(vector, vector)
    assert rows.ended == {}


def test_nothing_has_ended_before_all_have_heard_of_the_newer_one() -> None:
    vector = {**ALL, B2: 1}
    rows = rows_of_three()
    rows.hear("b", vector)
    rows.hear("c", ALL)
    rows.believe(vector, vector)
    assert rows.ended == {}
