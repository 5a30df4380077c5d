"""The checkers, on histories made by hand: good ones pass, and each bad one is found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from tests.chaos.checkers import GRACE_US, Finding, Rules, check
from tests.chaos.history import Change, Final, Lost, Outcome, Request, Restored, Version
from tests.chaos.run import lost_in
from tests.world import Triple

TRIPLE: Triple = ("document:1", "viewer", "user:alice")
OTHER: Triple = ("document:2", "viewer", "user:alice")
NODES = ("a", "b", "c")
RULES = {
    strategy: Rules(strategy, {"a": 0, "b": 1, "c": 2})
    for strategy in ("lww", "source_priority", "insert_wins", "delete_wins")
}
LWW = RULES["lww"]
S = 1_000_000
"""A second, and the unit of time here: node `a` at 3 means three seconds after the beginning."""


def insert(mark: str | None = None, triple: Triple = TRIPLE) -> Change:
    return Change(triple, is_insert=True, mark=mark)


def delete(triple: Triple = TRIPLE) -> Change:
    return Change(triple, is_insert=False)


def done(
    node: str, at: float, *changes: Change, knew: Mapping[str, float] | None = None
) -> Request:
    """A write that took its time around `at`; knew: node -> up to which time of it."""
    timestamp = round(at * S)
    seen = {f"{other}.1": round(t * S) for other, t in (knew or {}).items()}
    return Request(
        *("client", timestamp, node, changes, timestamp - 1000, timestamp + 1000),
        *(Outcome.DONE, Version(timestamp, f"{node}.1"), {**seen, f"{node}.1": timestamp}),
    )


def without_answer(
    node: str, at: float, *changes: Change, outcome: Outcome = Outcome.UNKNOWN
) -> Request:
    began_us = round(at * S)
    return Request("client", began_us, node, changes, began_us - 1000, began_us + 1000, outcome)


def refused(node: str, at: float, *changes: Change) -> Request:
    return without_answer(node, at, *changes, outcome=Outcome.REFUSED)


def finals(
    requests: Sequence[Request], visible: Mapping[Triple, str | None]
) -> tuple[Final, Final, Final]:
    """All nodes agree on what is visible, and have received everything."""
    vector: dict[str, int] = {}
    for request in requests:
        for origin, timestamp in request.vector.items():
            vector[origin] = max(vector.get(origin, 0), timestamp)
    allowed = {triple: triple in visible and visible[triple] is None for triple in (TRIPLE, OTHER)}
    a, b, c = (Final(node, visible, {"7": "42"}, vector, allowed) for node in NODES)
    return a, b, c


def checked(
    requests: Sequence[Request], visible: Mapping[Triple, str | None], rules: Rules = LWW
) -> list[str]:
    """Which checks find something."""
    return names(check(requests, finals(requests, visible), rules))


def names(findings: Sequence[Finding]) -> list[str]:
    return sorted({finding.check for finding in findings})


HERE: dict[Triple, str | None] = {TRIPLE: None}
NOTHING: dict[Triple, str | None] = {}

# Inserted by a, revoked by b that had seen it, and both known to c's write of another tuple.
REVOKED = [
    done("a", 1, insert()),
    done("b", 2, delete(), knew={"a": 1}),
    done("c", 3, insert("x", OTHER), knew={"a": 1, "b": 2}),
]


def test_an_empty_history_explains_empty_nodes_and_nothing_else() -> None:
    assert checked([], NOTHING) == []
    assert checked([], HERE) == ["survival"]


def test_what_is_there_is_explained_by_its_insert() -> None:
    assert checked([done("a", 1, insert())], HERE) == []
    assert checked(REVOKED, {OTHER: "x"}) == []


def test_a_lost_write_is_found() -> None:
    assert checked([done("a", 1, insert())], NOTHING) == ["survival"]
    assert checked(REVOKED, NOTHING) == ["survival"]


def test_a_deleted_tuple_that_comes_back_is_found() -> None:
    for rules in RULES.values():
        assert checked(REVOKED, {**HERE, OTHER: "x"}, rules) == ["survival"], rules.strategy


def test_an_old_payload_that_comes_back_is_found() -> None:
    history = [done("a", 1, insert("old")), done("b", 2, insert("new"), knew={"a": 1})]
    assert checked(history, {TRIPLE: "new"}) == []
    assert checked(history, {TRIPLE: "old"}) == ["survival"]
    assert checked(history, HERE) == ["survival"]


def test_a_refused_write_that_is_seen_is_found() -> None:
    history = [done("a", 1, delete()), refused("a", 2, insert("no"))]
    assert checked(history, NOTHING) == []
    assert checked(history, {TRIPLE: "no"}) == ["survival"]


def test_part_of_a_transaction_is_found() -> None:
    history = [done("a", 1, insert(), insert(triple=OTHER))]
    assert checked(history, {TRIPLE: None, OTHER: None}) == []
    assert checked(history, HERE) == ["survival"]


@pytest.mark.parametrize(
    ("strategy", "visible"),
    [("lww", NOTHING), ("source_priority", HERE), ("insert_wins", HERE), ("delete_wins", NOTHING)],
)
def test_the_strategy_decides_between_writes_that_did_not_know_each_other(
    strategy: str, visible: Mapping[Triple, str | None]
) -> None:
    """b has the higher priority and inserts first; a deletes later."""
    history = [done("b", 1, insert()), done("a", 2, delete())]
    wrong = HERE if visible is NOTHING else NOTHING
    assert checked(history, visible, RULES[strategy]) == []
    assert checked(history, wrong, RULES[strategy]) == ["survival"]


def test_equal_timestamps_are_decided_by_the_node() -> None:
    history = [done("a", 1, insert("a")), done("b", 1, insert("b"))]
    assert checked(history, {TRIPLE: "b"}) == []
    assert checked(history, {TRIPLE: "a"}) == ["survival"]


def test_an_overwritten_write_does_not_win_whatever_its_rank() -> None:
    """Under insert_wins: the insert of b is gone, c's deletion knew it; a's is concurrent."""
    history = [
        done("b", 1, insert("b")),
        done("a", 2, insert("a")),
        done("c", 3, delete(), knew={"b": 1}),
    ]
    rules = RULES["insert_wins"]
    assert checked(history, {TRIPLE: "a"}, rules) == []
    assert checked(history, {TRIPLE: "b"}, rules) == ["survival"]
    assert checked(history, NOTHING, rules) == ["survival"]


def test_a_version_that_is_used_twice_is_found() -> None:
    history = [done("a", 1, insert("x", OTHER)), done("a", 1, insert())]
    assert "versions" in checked(history, {TRIPLE: None, OTHER: "x"})


def test_a_vector_that_does_not_cover_an_answered_write_is_found() -> None:
    history = [done("a", 1, insert())]
    behind = [replace(final, vector={"a.1": S - 1}) for final in finals(history, HERE)]
    assert names(check(history, behind, LWW)) == ["versions"]


UNEQUAL: dict[str, Callable[[Final], Final]] = {
    "tuples": lambda final: replace(final, visible={TRIPLE: "y"}),
    "missing tuples": lambda final: replace(final, visible={}),
    "digests": lambda final: replace(final, digest={"7": "41"}),
    "missing digests": lambda final: replace(final, digest={}),
    "vectors": lambda final: replace(final, vector={**final.vector, "b.1": 9}),
}


@pytest.mark.parametrize("what", UNEQUAL)
@pytest.mark.parametrize("which", [1, 2])
def test_unequal_nodes_are_found(what: str, which: int) -> None:
    history = [done("a", 1, insert("x"))]
    nodes = list(finals(history, {TRIPLE: "x"}))
    assert check(history, nodes, LWW) == []
    nodes[which] = replace(UNEQUAL[what](nodes[which]), allowed={})
    found = check(history, nodes, LWW)
    assert names(found) == ["agreement"]
    assert any(what.rsplit(maxsplit=1)[-1] in finding.message for finding in found)


def test_a_permission_that_is_granted_and_not_listed_is_found() -> None:
    nodes = finals(REVOKED, {OTHER: "x"})
    for triple in (TRIPLE, OTHER):  # one is not there, one has a payload
        granted = replace(nodes[1], allowed={triple: True})
        assert names(check(REVOKED, [nodes[0], granted], LWW)) == ["evaluation"]
    denied = replace(finals([done("a", 1, insert())], HERE)[0], allowed={TRIPLE: False})
    assert names(check([done("a", 1, insert())], [denied], LWW)) == ["evaluation"]


# -- writes of unknown outcome ---------------------------------------------------------------------


def test_a_write_without_answer_may_have_been_done_or_not() -> None:
    history = [done("a", 1, insert("x")), without_answer("a", 2, delete())]
    assert checked(history, {TRIPLE: "x"}) == []
    assert checked(history, NOTHING) == []
    assert checked(history, HERE) == ["survival"]


def test_a_write_without_answer_is_overwritten_by_what_its_node_did_later() -> None:
    history = [without_answer("a", 1, insert("x")), done("a", 9, delete())]
    for rules in RULES.values():
        assert checked(history, NOTHING, rules) == []
        assert checked(history, {TRIPLE: "x"}, rules) == ["survival"], rules.strategy


def test_a_write_without_answer_may_still_have_been_running() -> None:
    """Within the grace nobody knows which of the two was first."""
    soon = 1 + GRACE_US / S / 2
    history = [without_answer("a", 1, insert("x")), done("a", soon, delete())]
    assert checked(history, {TRIPLE: "x"}) == []


def test_a_write_without_answer_knew_what_its_node_had_answered_before() -> None:
    """The insert of a was overwritten, if the deletion was done: insert_wins has no say."""
    history = [done("a", 1, insert("x")), without_answer("a", 2, delete())]
    assert checked(history, NOTHING, RULES["insert_wins"]) == []
    # A node that has not heard of it cannot overwrite it.
    history = [
        done("a", 1, insert("x")),
        without_answer("b", 2, delete()),
        done("b", 9, insert("y", OTHER)),
    ]
    visible = {TRIPLE: "x", OTHER: "y"}
    assert checked(history, visible, RULES["insert_wins"]) == []
    assert checked(history, {OTHER: "y"}, RULES["insert_wins"]) == ["survival"]


def test_a_write_without_answer_is_overwritten_by_who_has_surely_seen_it() -> None:
    """c has seen what a did before and after, so the write in between, too."""
    history = [
        done("a", 1, insert("y", OTHER)),
        without_answer("a", 2, insert("x")),
        done("a", 9, insert("z", OTHER)),
        done("c", 10, delete(), knew={"a": 9}),
    ]
    assert checked(history, {OTHER: "z"}, RULES["insert_wins"]) == []
    assert checked(history, {TRIPLE: "x", OTHER: "z"}, RULES["insert_wins"]) == ["survival"]
    # With less seen it stands beside c's deletion, and insert_wins prefers it.
    history[-1] = done("c", 10, delete(), knew={"a": 1})
    assert checked(history, {TRIPLE: "x", OTHER: "z"}, RULES["insert_wins"]) == []


def test_a_write_without_answer_does_not_help_an_older_one_to_win() -> None:
    """Under lww whoever overwrites the later write is later still."""
    history = [
        done("a", 1, insert("old")),
        done("b", 2, insert("new")),
        without_answer("b", 3, delete()),
    ]
    assert checked(history, {TRIPLE: "new"}) == []
    assert checked(history, NOTHING) == []
    assert checked(history, {TRIPLE: "old"}) == ["survival"]


def test_a_write_without_answer_can_clear_the_way_for_another_one() -> None:
    """Under insert_wins: b's insert is overwritten by b's deletion, and a's insert is left."""
    history = [
        done("a", 1, insert("a")),
        done("b", 2, insert("b")),
        without_answer("b", 3, delete()),
        done("b", 9, insert("y", OTHER)),  # b has not heard of a until here
    ]
    rules = RULES["insert_wins"]
    assert checked(history, {TRIPLE: "b", OTHER: "y"}, rules) == []
    assert checked(history, {TRIPLE: "a", OTHER: "y"}, rules) == []
    assert checked(history, {OTHER: "y"}, rules) == ["survival"]
    # It may have heard of it, and then the deletion may have overwritten both.
    assert checked(history[:3], NOTHING, rules) == []


# -- nodes that come back from an older copy -------------------------------------------------------


def test_a_write_that_its_node_names_as_lost_need_not_be_there() -> None:
    history = [done("a", 1, insert("x")), done("a", 2, delete()), done("a", 3, insert("y", OTHER))]
    nodes = finals(history[:1], {TRIPLE: "x"})
    assert "survival" in names(check(history, nodes, LWW))
    assert check(history, nodes, LWW, lost=[Lost("a.1", S)]) == []


def test_only_what_is_named_is_excused() -> None:
    """What that origin wrote later."""
    history = [done("a", 1, insert("x"))]
    nodes = finals([], NOTHING)
    for lost in (Lost("a.1", S), Lost("a.2", 0)):
        assert names(check(history, nodes, LWW, lost=[lost])) == ["survival", "versions"]
    assert check(history, nodes, LWW, lost=[Lost("a.1", S - 1)]) == []


def test_a_version_that_is_used_again_after_a_loss_is_found() -> None:
    history = [done("a", 1, insert("x")), done("a", 1, insert("y"))]
    found = check(history, finals(history, {TRIPLE: "y"}), LWW, lost=[Lost("a.1", S)])
    assert "versions" in names(found)


def test_after_a_return_to_an_older_copy_nothing_is_known_of_a_write_without_answer() -> None:
    """It may have reached others, and the restored node may have written without it."""
    history = [without_answer("a", 1, insert("x")), done("a", 9, delete())]
    nodes = finals(history, {TRIPLE: "x"})
    rules = RULES["insert_wins"]
    assert names(check(history, nodes, rules)) == ["survival"]
    assert check(history, nodes, rules, restored=[Restored("a", 5 * S)]) == []
    assert names(check(history, nodes, rules, restored=[Restored("b", 5 * S)])) == ["survival"]


def test_a_tuple_that_was_set_aside_and_written_again_is_left_out() -> None:
    """As what it was written again nobody has said; the other tuples are judged as ever."""
    history = [done("a", 1, insert("x")), done("b", 2, insert("y", OTHER))]
    aside = [Lost("a.1", 0, is_aside=True)]
    assert check(history, finals(history[1:], {OTHER: "y"}), LWW, lost=aside) == []
    assert "survival" in names(check(history, finals(history[1:], NOTHING), LWW, lost=aside))


def test_lost_writes_are_read_from_the_log() -> None:
    log = (
        "2026-01-01T00:00:00.000+00:00 info    store opened node=a origin=a.1\n"
        "2026-01-01T00:00:01.000+00:00 warning new incarnation origin=a.2 before=a.1 "
        "phase=behind set_aside=0\n"
        "2026-01-01T00:00:01.000+00:00 warning incarnation ended, what it wrote later is lost "
        "origin=a.1 after=12\n"
        "2026-01-01T00:00:01.000+00:00 warning new incarnation origin=a.3 before=a.2 "
        "phase=behind set_aside=7\n"
    )
    assert lost_in(log) == [Lost("a.1", 12), Lost("a.2", 0, is_aside=True)]
