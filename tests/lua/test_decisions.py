"""The decision table of the strategies, row by row; the README shows the same text.

A and B are different conditions; under source_priority us-west-1 has the higher priority.
"""

from pathlib import Path

import fakeredis
import pytest

from sidecar.core.conflict import ConflictResolutionStrategy, Rules
from sidecar.core.relationship import Change, Identity, Operation
from tests.lua.replicas import LuaNode, Snapshot, SpecNode, change_of

ROOT = Path(__file__).parent.parent.parent
TABLE = (ROOT / "tests/vectors/conflicts.md").read_text(encoding="utf-8")
ROWS = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in TABLE.splitlines()[2:]]
TUPLE: Identity = ("default", "document:1", "viewer", "user:ann")
CONDITIONS = {"A": '{"name":"A"}', "B": '{"name":"B"}'}


def change(cell: str) -> Change:
    word, _, condition = cell.partition(" ")
    return change_of(TUPLE, Operation(word), CONDITIONS.get(condition))


def rules_of(strategy: str) -> Rules:
    regions = {"us": "us-west-1", "eu": "eu-central-1"}
    priorities = ["eu-central-1", "us-west-1"]
    return Rules.of(ConflictResolutionStrategy(strategy), priorities, regions)


def shown(snapshot: Snapshot, rules: Rules) -> str:
    siblings = snapshot.tuples[TUPLE].siblings
    best = siblings[rules.winner(siblings)]
    if best.operation is Operation.DELETE:
        return "nothing"
    names = {text: name for name, text in CONDITIONS.items()}
    return names.get(best.condition or "", "the relationship")


def play(us: SpecNode | LuaNode, eu: SpecNode | LuaNode, row: list[str]) -> None:
    _, first, second, knowing, _, _ = row
    us.open(100)
    eu.open(100)
    us.write([change(first)], 1_001)
    if knowing == "yes":
        eu.receive(us.log, 1_002)  # type: ignore[arg-type]
    eu.write([change(second)], 1_002)
    eu.receive(us.log, 1_003)  # type: ignore[arg-type]
    us.receive(eu.log, 1_003)  # type: ignore[arg-type]


@pytest.mark.parametrize("row", ROWS, ids=["-".join(row).replace(" ", "_") for row in ROWS])
@pytest.mark.parametrize("kind", ["specification", "scripts"])
def test_a_row_of_the_decision_table(kind: str, row: list[str]) -> None:
    rules = rules_of(row[0])
    us: SpecNode | LuaNode
    eu: SpecNode | LuaNode
    if kind == "specification":
        us, eu = SpecNode("us", rules), SpecNode("eu", rules)
    else:
        server = fakeredis.FakeRedis()
        us, eu = LuaNode(server, "us", rules, ""), LuaNode(server, "eu", rules, "")
    play(us, eu, row)
    conflicts = 1 if row[5] == "yes" else 0
    for node in (us, eu):
        snapshot = node.snapshot()
        assert shown(snapshot, rules) == row[4]
        assert sum(snapshot.conflicts) == conflicts
    assert us.snapshot().conflicts == eu.snapshot().conflicts[::-1]


def test_the_readme_shows_the_same_table() -> None:
    assert TABLE in (ROOT / "README.md").read_text(encoding="utf-8")
