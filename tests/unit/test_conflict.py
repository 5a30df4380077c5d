"""Who wins: each strategy as a ranking of siblings, and what nodes must agree on."""

import itertools
import json

import pytest

from sidecar.core.conflict import ConflictResolutionStrategy, Override, Rules, Sibling
from sidecar.core.relationship import Operation
from sidecar.core.vector import Version, order

LWW, PRIORITY, INSERT_WINS, DELETE_WINS, CUSTOM = ConflictResolutionStrategy
REGION_OF = {"us1": "us", "us2": "us", "eu1": "eu", "ap1": "ap", "sa1": "sa"}
INSERT, DELETE = Sibling(Operation.INSERT), Sibling(Operation.DELETE)


def winner(rules: Rules, *siblings: tuple[int, str, Sibling]) -> str:
    """The winner, whatever the order in which the siblings are met."""
    found = {
        rules.winner({(timestamp, origin): sibling for timestamp, origin, sibling in turned})
        for turned in itertools.permutations(siblings)
    }
    (version,) = found
    return f"{version[0]} {version[1]}"


@pytest.mark.parametrize(
    ("strategy", "siblings", "wins"),
    [
        (LWW, [(5, "us1.1", INSERT), (6, "eu1.1", DELETE)], "6 eu1.1"),
        (LWW, [(6, "us1.1", INSERT), (6, "eu1.1", DELETE)], "6 us1.1"),
        (LWW, [(6, "n.1", INSERT), (6, "n-1.1", DELETE)], "6 n-1.1"),
        (LWW, [(6, "n.1", INSERT), (6, "n.2", DELETE)], "6 n.2"),
        (INSERT_WINS, [(5, "us1.1", INSERT), (6, "eu1.1", DELETE)], "5 us1.1"),
        (INSERT_WINS, [(5, "us1.1", INSERT), (6, "eu1.1", INSERT)], "6 eu1.1"),
        (INSERT_WINS, [(5, "us1.1", DELETE), (6, "eu1.1", DELETE)], "6 eu1.1"),
        (DELETE_WINS, [(6, "us1.1", INSERT), (5, "eu1.1", DELETE)], "5 eu1.1"),
        (DELETE_WINS, [(6, "us1.1", INSERT), (5, "eu1.1", INSERT)], "6 us1.1"),
        # A delete of the region with the higher priority against a later insert.
        (PRIORITY, [(5, "us1.1", DELETE), (9, "eu1.1", INSERT)], "5 us1.1"),
        (PRIORITY, [(5, "eu1.1", DELETE), (9, "ap1.1", INSERT)], "5 eu1.1"),
        # Within a region, and between regions of one priority, the version decides.
        (PRIORITY, [(5, "us2.1", DELETE), (9, "us1.1", INSERT)], "9 us1.1"),
        (PRIORITY, [(9, "sa1.1", INSERT), (5, "ap1.1", DELETE)], "9 sa1.1"),
        # A node that the topology does not know has the lowest priority.
        (PRIORITY, [(9, "gone.1", INSERT), (5, "eu1.1", DELETE)], "5 eu1.1"),
    ],
)
def test_the_winner(
    strategy: ConflictResolutionStrategy, siblings: list[tuple[int, str, Sibling]], wins: str
) -> None:
    rules = Rules.of(strategy, ["ap", "eu", "us"], REGION_OF)
    assert winner(rules, *siblings) == wins


def test_a_region_that_is_later_in_the_list_is_higher_and_one_not_listed_is_0() -> None:
    rules = Rules.of(PRIORITY, ["ap", "eu", "us"], REGION_OF)
    assert rules.priority == {"ap1": 0, "eu1": 1, "us1": 2, "us2": 2, "sa1": 0}
    assert Rules.of(LWW, ["ap", "eu", "us"], REGION_OF).priority == {}


@pytest.mark.parametrize("strategy", [LWW, PRIORITY, INSERT_WINS, DELETE_WINS])
def test_rankings_are_total(strategy: ConflictResolutionStrategy) -> None:
    """Two siblings never tie, or two nodes could choose differently for ever."""
    rules = Rules.of(strategy, ["ap", "eu", "us"], REGION_OF)
    versions: list[Version] = [
        (timestamp, f"{node}.{incarnation}")
        for timestamp in (5, 6)
        for node in ("us1", "us2", "eu1", "sa1", "gone")
        for incarnation in (1, 2)
    ]
    # One version is one write: it has one operation.
    siblings = {v: INSERT if index % 3 else DELETE for index, v in enumerate(versions)}
    assert len({rules.rank(v, s) for v, s in siblings.items()}) == len(siblings)


def test_payload_decides_nothing() -> None:
    for strategy in (LWW, PRIORITY, INSERT_WINS, DELETE_WINS):
        rules = Rules.of(strategy, ["ap", "eu", "us"], REGION_OF)
        plain = rules.rank((5, "us1.1"), INSERT)
        assert plain == rules.rank((5, "us1.1"), Sibling(Operation.INSERT, '{"a":1}', 7))


def test_custom_is_decided_by_its_script() -> None:
    assert Rules.of(CUSTOM).winner({(5, "us1.1"): INSERT}) == (5, "us1.1")
    with pytest.raises(ValueError, match="script"):
        Rules.of(CUSTOM).winner({(5, "us1.1"): INSERT, (6, "eu1.1"): DELETE})


def test_nodes_that_decide_alike_have_one_fingerprint() -> None:
    same = {
        Rules.of(PRIORITY, ["ap", "eu"], regions).fingerprint
        for regions in (REGION_OF, dict(reversed(REGION_OF.items())))
    }
    assert len(same) == 1
    others = {
        Rules.of(strategy, priorities, REGION_OF).fingerprint
        for strategy, priorities in [
            (LWW, ["ap", "eu"]),
            (INSERT_WINS, []),
            (DELETE_WINS, []),
            (PRIORITY, ["ap", "eu"]),
            (PRIORITY, ["eu", "ap"]),
        ]
    }
    assert len(others) == 5
    assert {one.partition(":")[0] for one in others} == {
        s.value for s in (LWW, PRIORITY, INSERT_WINS, DELETE_WINS)
    }


def test_the_words_of_the_configuration() -> None:
    words = ["lww", "source_priority", "insert_wins", "delete_wins", "custom"]
    assert [strategy.value for strategy in ConflictResolutionStrategy] == words


def test_the_scripts_are_given_canonical_json() -> None:
    assert json.loads(Rules.of(PRIORITY, ["eu", "us"], {"us1": "us"}).to_json()) == {
        "strategy": "source_priority",
        "priority": {"us1": 1},
    }
    assert Rules.of(LWW).to_json() == '{"priority":{},"strategy":"lww"}'


def test_the_order_breaks_ties_as_versions_do() -> None:
    rules = Rules.of(LWW)
    versions: list[Version] = [(5, "n.1"), (5, "n-1.1"), (5, "n0.1"), (4, "z.1")]
    assert sorted(versions, key=lambda v: rules.rank(v, INSERT)) == sorted(versions, key=order)


def test_the_first_override_that_fits_decides() -> None:
    overrides = [
        Override(INSERT_WINS, relation="viewer"),
        Override(DELETE_WINS, resource_type="folder"),
        Override(LWW, relation="editor"),
    ]
    rules = Rules.of(CUSTOM, overrides=overrides, script="return 1")
    chosen = {
        name: rules.at(*name.split(" ")).strategy
        for name in ("folder:1 viewer", "folder:1 editor", "doc:1 editor", "doc:1 owner")
    }
    assert chosen == {
        "folder:1 viewer": INSERT_WINS,
        "folder:1 editor": DELETE_WINS,
        "doc:1 editor": LWW,
        "doc:1 owner": CUSTOM,
    }


def test_overrides_their_order_and_the_script_are_part_of_the_fingerprint() -> None:
    a, b = Override(LWW, relation="a"), Override(INSERT_WINS, resource_type="b")
    rules = [
        Rules.of(DELETE_WINS),
        Rules.of(DELETE_WINS, overrides=[a]),
        Rules.of(DELETE_WINS, overrides=[a, b]),
        Rules.of(DELETE_WINS, overrides=[b, a]),
        Rules.of(CUSTOM, script="return 1"),
        Rules.of(CUSTOM, script="return 2"),
    ]
    assert len({one.fingerprint for one in rules}) == len(rules)
    assert rules[1].fingerprint.startswith("delete_wins+overrides:")


def test_priorities_are_kept_for_what_uses_them() -> None:
    used = Override(PRIORITY, relation="a")
    assert Rules.of(LWW, ["eu", "us"], {"us1": "us"}, [used]).priority == {"us1": 1}
    assert Rules.of(CUSTOM, ["eu", "us"], {"us1": "us"}).priority == {"us1": 1}
    assert Rules.of(CUSTOM, [], {"us1": "us"}).priority == {}
