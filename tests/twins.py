"""Custom scripts of tests, and what says the same in Python."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sidecar.core.conflict import ConflictResolutionStrategy, Override, Rules, Sibling
from sidecar.core.relationship import Operation
from sidecar.core.script import check
from sidecar.core.vector import Version, order

MAJORITY = check(
    (Path(__file__).parent / "data" / "majority.lua").read_text(encoding="utf-8"), "majority.lua"
)


def majority(siblings: Mapping[Version, Sibling]) -> Version:
    """What `data/majority.lua` says."""
    deletes = [v for v, one in siblings.items() if one.operation is Operation.DELETE]
    inserts = [v for v, one in siblings.items() if one.operation is Operation.INSERT]
    return max(deletes if 2 * len(deletes) > len(siblings) else inserts, key=order)


def custom() -> Rules:
    """That script for every tuple."""
    rules = Rules.of(ConflictResolutionStrategy.CUSTOM, script=MAJORITY.source)
    return replace(rules, resolve=majority)


def mixed() -> Rules:
    """One strategy for documents, another for editors, the script for the rest."""
    overrides = [
        Override(ConflictResolutionStrategy.INSERT_WINS, relation="editor"),
        Override(ConflictResolutionStrategy.LAST_WRITE_WINS, resource_type="document"),
    ]
    return replace(custom(), overrides=tuple(overrides))
