"""Random histories: the same writes and batches on the specification, the scripts and the model."""

import random
from dataclasses import dataclass
from typing import Any

from sidecar.core.conflict import ConflictResolutionStrategy, Rules
from sidecar.core.relationship import Change, Identity, Operation
from sidecar.core.script import CustomScript
from sidecar.core.vector import above
from tests.lua.replicas import LuaNode, SpecNode, change_of
from tests.model import replication_model as model

STRATEGIES = [s for s in ConflictResolutionStrategy if s is not ConflictResolutionStrategy.CUSTOM]
KEYS: list[Identity] = [
    ("default", "document:1", "viewer", "user:ann"),
    ("default", "document:1", "editor", "user:ann"),
    ("default", "folder:é", "viewer", "group:all#member"),
]
# "n" is before "n-1", though "n-1.1" is before "n.1"; "n-1" is before "n0", though not in a locale
# that ignores punctuation.
NAMES = ["n", "n-1", "n0", "n1"]
CONDITIONS = [None, None, '{"name":"office_hours"}', '{"name":"é","n":[]}']


@dataclass
class Trio:
    """One node in three bodies."""

    spec: SpecNode
    lua: LuaNode
    model: Any
    skew: int


def run_history(
    server: Any,
    seed: int,
    strategy: ConflictResolutionStrategy,
    steps: int = 60,
    *,
    given: tuple[Rules, CustomScript | None] | None = None,
) -> None:
    """One history of `steps` steps and the delivery of everything at its end.

    Even seeds write single changes, so that the model can follow; odd ones write transactions of
    up to three. Raises AssertionError with the seed when anything differs. given: rules that the
    model does not know, and the script that stands in them.
    """
    rnd = random.Random(seed)
    names = rnd.sample(NAMES, rnd.choice([2, 3, 4]))
    priority = dict(zip(rnd.sample(names, len(names)), range(len(names)), strict=True))
    rules = Rules(strategy, priority if strategy == "source_priority" else {})
    custom = None
    if given is not None:
        rules, custom = given
    with_model = seed % 2 == 0 and given is None
    now = 1_000_000
    nodes = {}
    for name in names:
        skew = rnd.choice([0, 0, -50, 50])
        trio = Trio(
            SpecNode(name, rules),
            LuaNode(server, name, rules, f"h{seed}", custom),
            model.Node(name, names, strategy.value if with_model else "lww", priority, skew),  # type: ignore[no-untyped-call]
            skew,
        )
        trio.spec.open(now + skew)
        trio.lua.open(now + skew)
        trio.model.vector[trio.model.origin] = trio.model.tick(now)
        trio.model.log.append((trio.model.clock, None, None, {}))
        nodes[name] = trio

    for _ in range(steps):
        now += rnd.randint(0, 3)
        here = nodes[rnd.choice(names)]
        there = nodes[rnd.choice([n for n in names if n != here.spec.name])]
        if rnd.random() < 0.5:
            _write(rnd, here, now, with_model)
        else:
            log = here.spec.log
            start = rnd.randrange(len(log))
            part = slice(start, start + rnd.choice([1, 2, 5, 100]))
            _deliver(here, there, part, now, with_model)
    for _ in range(2):
        for here in nodes.values():
            for there in nodes.values():
                if here is not there:
                    _deliver(here, there, slice(None), now, with_model)

    for name, trio in nodes.items():
        where = f"{strategy.value}, seed {seed}, node {name}"
        spec, lua = trio.spec.snapshot(), trio.lua.snapshot()
        assert lua == spec, f"{where}: scripts {lua} specification {spec}"
        assert sum(lua.conflicts) == len(lua.conflict_log), where
        trio.lua.check_what_follows()
        if with_model:
            assert spec.vector == trio.model.vector, where
            for key in KEYS:
                _compare_with_model(trio, key, rules, where)
    _compare_nodes([trio.spec.snapshot().tuples for trio in nodes.values()], rules, seed)


def _write(rnd: random.Random, here: Trio, now: int, with_model: bool) -> None:
    count = 1 if with_model else rnd.choice([1, 2, 3])
    changes: list[Change] = []
    for key in rnd.sample(KEYS, count):
        operation = rnd.choice([Operation.INSERT, Operation.DELETE])
        changes.append(change_of(key, operation, rnd.choice(CONDITIONS)))
    here.spec.write(changes, now + here.skew)
    here.lua.write(changes, now + here.skew)
    if with_model:
        here.model.write(changes[0].relationship.identity, changes[0].operation.value, now)


def _deliver(here: Trio, there: Trio, part: slice, now: int, with_model: bool) -> None:
    batch = here.spec.log[part]
    outcome = there.spec.receive(batch, now + there.skew)
    assert there.lua.receive(here.lua.log[part], now + there.skew) == outcome
    if with_model:
        received = there.model.receive(
            here.spec.name,
            here.model.origin,
            batch[0].previous,
            batch[-1].timestamp,
            here.model.log[part],
            None,
            now,
        )
        assert received == (outcome == "applied")


def _compare_with_model(trio: Trio, key: Identity, rules: Rules, where: str) -> None:
    wanted = trio.model.tuples.get(key)
    found = trio.spec.snapshot().tuples.get(key)
    if wanted is None or found is None:
        assert wanted is found, where
        return
    assert {v: s.operation.value for v, s in found.siblings.items()} == wanted.siblings, where
    assert found.beyond == above(wanted.beyond, trio.model.vector), where
    best = rules.winner(found.siblings)
    visible = best if found.siblings[best].operation is Operation.INSERT else None
    assert visible == trio.model.visible(key), where


def _compare_nodes(tuples: list[dict[Identity, Any]], rules: Rules, seed: int) -> None:
    """Everything was delivered: all nodes show the same."""
    for key in KEYS:
        shown = {rules.at(*key[1:3]).winner(t[key].siblings) for t in tuples if key in t}
        assert len(shown) <= 1, f"{rules.strategy.value}, seed {seed}: {key} differs: {shown}"
