"""One node, three times: by the specification in Python, by the scripts, and by the model.

All take the same writes and batches and show what they hold in the same shape, so that a history
can be run on all of them and compared.
"""

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import fakeredis

from sidecar.core.clock import tick
from sidecar.core.conflict import ConflictResolutionStrategy, Rules, Sibling
from sidecar.core.digest import mix
from sidecar.core.relationship import (
    Change,
    Identity,
    Operation,
    Relationship,
    bucket_of,
    tuple_hash,
)
from sidecar.core.script import CustomScript
from sidecar.core.state import TupleState, Winner, absorb, write
from sidecar.core.vector import Vector, Version, above, order, pointwise_max
from sidecar.core.wire import encode_body
from sidecar.store.conflicts import ConflictEntry, Versioned, conflict_entries_of
from sidecar.store.keys import Keys
from sidecar.store.scripts import script

SKEW_US = 10**12  # histories use any clocks
TENANT = "default"


class Conflict(NamedTuple):
    """An entry of the conflict log: what was counted, where, and what it says."""

    revision: int
    merged_us: int
    tuple: Identity
    stored: Versioned
    arrived: Versioned
    winner: Versioned
    resolved: Winner
    strategy: ConflictResolutionStrategy


@dataclass(frozen=True)
class Snapshot:
    """What one node holds. conflicts: won by what was here, won by what came."""

    vector: Vector
    tuples: dict[Identity, TupleState]
    conflicts: tuple[int, int]
    conflict_log: list[Conflict]


@dataclass(frozen=True)
class Tx:
    """A transaction between specification nodes."""

    origin: str
    timestamp: int
    previous: int
    context: Vector
    changes: tuple[tuple[Change, Vector], ...]
    """Each with what it alone had overwritten."""


def in_order(log: list[Conflict]) -> list[Conflict]:
    """By feed and tuple; which of a tuple's stored siblings comes first has no meaning."""
    return sorted(log, key=lambda one: (one.revision, one.tuple, order(one.stored.version)))


def sibling_of(change: Change) -> Sibling:
    if change.operation is Operation.DELETE:
        return Sibling(Operation.DELETE)
    one = change.relationship
    return Sibling(Operation.INSERT, one.condition, one.expires_at)


def change_of(identity: Identity, operation: Operation, condition: str | None = None) -> Change:
    return Change(operation, Relationship(*identity, condition=condition))


@dataclass
class SpecNode:
    """A node that decides with `core/state.py`."""

    name: str
    rules: Rules
    clock: int = 0
    vector: dict[str, int] = field(default_factory=dict)
    tuples: dict[Identity, TupleState] = field(default_factory=dict)
    log: list[Tx] = field(default_factory=list)
    conflicts: dict[Winner, int] = field(default_factory=lambda: dict.fromkeys(Winner, 0))
    conflict_log: list[Conflict] = field(default_factory=list)

    @property
    def origin(self) -> str:
        return f"{self.name}.1"

    def open(self, now_us: int) -> None:
        self.clock = now_us
        self.vector[self.origin] = now_us
        self.log.append(Tx(self.origin, now_us, 0, {}, ()))

    def write(self, changes: list[Change], now_us: int) -> None:
        before = dict(self.vector)
        self.clock = tick(self.clock, now_us)
        done = []
        for change in changes:
            identity = change.relationship.identity
            old = self.tuples.get(identity, TupleState())
            version = (self.clock, self.origin)
            self.tuples[identity], own = write(old, version, sibling_of(change), before)
            done.append((change, own))
        self.vector[self.origin] = self.clock
        self.log.append(Tx(self.origin, self.clock, before[self.origin], before, tuple(done)))

    def receive(self, batch: list[Tx], now_us: int) -> str:
        for tx in batch:
            reached = self.vector.get(tx.origin, 0)
            if tx.timestamp <= reached:
                continue
            if tx.previous > reached:
                return "gap"
            self.clock = tick(self.clock, now_us, tx.timestamp)
            for change, own in tx.changes:
                self._absorb(tx, change, own, now_us)
            self.vector[tx.origin] = tx.timestamp
        return "applied"

    def _absorb(self, tx: Tx, change: Change, own: Vector, now_us: int) -> None:
        identity = change.relationship.identity
        old, arrived = self.tuples.get(identity, TupleState()), (tx.timestamp, tx.origin)
        rules = self.rules.at(identity[1], identity[2])
        self.tuples[identity], conflicts = absorb(
            old,
            arrived,
            sibling_of(change),
            pointwise_max(tx.context, own),
            self.vector,
            rules,
        )
        known = {**old.siblings, arrived: sibling_of(change)}
        best = rules.winner(self.tuples[identity].siblings)
        for stored, whose in conflicts:
            self.conflicts[whose] += 1
            self.conflict_log.append(
                Conflict(
                    self.clock,
                    now_us,
                    identity,
                    stored=Versioned(stored, known[stored]),
                    arrived=Versioned(arrived, known[arrived]),
                    winner=Versioned(best, known[best]),
                    resolved=whose,
                    strategy=rules.strategy,
                )
            )

    def snapshot(self) -> Snapshot:
        tuples = {
            identity: TupleState(state.siblings, above(state.beyond, self.vector))
            for identity, state in self.tuples.items()
        }
        counts = (self.conflicts[Winner.LOCAL], self.conflicts[Winner.REMOTE])
        return Snapshot(dict(self.vector), tuples, counts, in_order(self.conflict_log))


class LuaNode:
    """A node that decides with the scripts, on any server that runs them."""

    def __init__(
        self,
        server: Any,
        name: str,
        rules: Rules,
        prefix: str,
        custom: CustomScript | None = None,
    ) -> None:
        self.name, self.rules, self._custom = name, rules, custom
        self._server, self._keys = server, Keys(f"{prefix}{name}")
        self._known = 0
        self._won_here = self._won_there = 0
        self.log: list[bytes] = []

    @property
    def origin(self) -> str:
        return f"{self.name}.1"

    def run(self, name: str, *args: object) -> list[bytes]:
        one = script(name, self._custom)
        if isinstance(self._server, fakeredis.FakeRedis):
            one = one.without_flags()
        # Loaded once for each server; EVAL by text is the slow way and needs no loading.
        try:
            reply = self._server.evalsha(one.sha, 1, self._keys.meta, *args)
        except Exception as error:
            if "NOSCRIPT" not in type(error).__name__.upper():
                raise
            self._server.script_load(one.text)
            reply = self._server.evalsha(one.sha, 1, self._keys.meta, *args)
        assert isinstance(reply, list)
        return reply

    def open(self, now_us: int) -> None:
        reply = self.run(
            "open", now_us, 0, self.name, "1", 1, 1, self.rules.fingerprint, "run", "1"
        )
        assert reply[0] == b"opened"
        self._note_own()

    def write(self, changes: list[Change], now_us: int) -> None:
        reply = self.run("write", now_us, self._known, encode_body(TENANT, changes), "")
        assert reply[0] == b"stored"
        assert reply[4] == b"written"
        self._known = int(reply[5])
        self._note_own()

    def receive(self, batch: list[bytes], now_us: int) -> str:
        rules = self.rules.to_json()
        reply = self.run("merge", now_us, self._known, SKEW_US, rules, b"\n".join(batch))
        self._known = int(reply[2])
        self._won_here += int(reply[4])
        self._won_there += int(reply[5])
        return reply[0].decode()

    def _note_own(self) -> None:
        ((_, fields),) = self._server.xrevrange(self._keys.feed, count=1)
        self.log.append(fields[b"transaction"])

    def snapshot(self) -> Snapshot:
        counts = (self._won_here, self._won_there)
        return Snapshot(self.vector(), self.tuples(), counts, in_order(self.conflict_log()))

    def conflict_log(self) -> list[Conflict]:
        reply = [
            (name, [part for pair in fields.items() for part in pair])
            for name, fields in self._server.xrevrange(self._keys.conflicts)
        ]
        return [
            Conflict(
                one.revision,
                one.merged_us,
                one.tuple,
                one.stored,
                one.arrived,
                one.winner,
                one.resolved,
                one.strategy,
            )
            for one in conflict_entries_of(reply)
            if isinstance(one, ConflictEntry)
        ]

    def vector(self) -> dict[str, int]:
        flat = self._server.hgetall(self._key("vector"))
        return {origin.decode(): int(text) for origin, text in flat.items()}

    def tuples(self) -> dict[Identity, TupleState]:
        vector, found = self.vector(), {}
        for key in self._scan("t:*"):
            tenant, _, resource = key.partition("}:t:")[2].partition("/")
            for name, value in self._server.hgetall(key).items():
                relation, _, subject = name.decode().partition("#")
                state = decode_state(value.decode())
                found[(tenant, resource, relation, subject)] = TupleState(
                    state.siblings, above(state.beyond, vector)
                )
        return found

    def check_what_follows(self) -> None:
        """The indexes, the digest and the unsettled list say what the states say."""
        tuples = self.tuples()
        visible: dict[Identity, Version] = {}
        for identity, state in tuples.items():
            best = self.rules.at(identity[1], identity[2]).winner(state.siblings)
            if state.siblings[best].operation is Operation.INSERT:
                visible[identity] = best
        self._check_digests(visible)
        subjects = {(i[0], i[3], f"{i[1]}#{i[2]}") for i in visible}
        assert self._members("s:") == subjects
        types = {(i[0], i[1].partition(":")[0], i[1]) for i in tuples}
        stored_types = {entry for entry in self._members("x:") if entry[1]}
        assert stored_types == types
        buckets = {(str(bucket_of(i[0], i[1])), "", f"{i[0]}/{i[1]}") for i in tuples}
        assert self._members("b:") == buckets
        unsettled = {
            f"{i[0]}/{i[1]}#{i[2]}#{i[3]}": max(version[0] for version in state.siblings)
            for i, state in self._raw().items()
            if not state.is_settled
        }
        flat = self._server.zrange(self._key("unsettled"), 0, -1, withscores=True)
        assert {name.decode(): int(score) for name, score in flat} == unsettled

    def _check_digests(self, visible: dict[Identity, Version]) -> None:
        sums: dict[int, int] = {}
        for identity, (timestamp, origin) in visible.items():
            bucket = bucket_of(identity[0], identity[1])
            amount = mix(tuple_hash(identity), timestamp, origin)
            sums[bucket] = sums.get(bucket, 0) + amount
        stored = {int(b): int(n) for b, n in self._server.hgetall(self._key("digest")).items()}
        assert {b: n for b, n in stored.items() if n} == sums

    def _raw(self) -> dict[Identity, TupleState]:
        """States as stored: what the vector has reached leaves `beyond` only when touched."""
        found = {}
        for key in self._scan("t:*"):
            tenant, _, resource = key.partition("}:t:")[2].partition("/")
            for name, value in self._server.hgetall(key).items():
                relation, _, subject = name.decode().partition("#")
                found[(tenant, resource, relation, subject)] = decode_state(value.decode())
        return found

    def _members(self, kind: str) -> set[tuple[str, str, str]]:
        found = set()
        for key in self._scan(f"{kind}*"):
            first, _, rest = key.partition(f"}}:{kind}")[2].partition("/")
            found |= {(first, rest, one.decode()) for one in self._server.smembers(key)}
        return found

    def _scan(self, pattern: str) -> list[str]:
        return [key.decode() for key in self._server.scan_iter(self._key(pattern), count=1000)]

    def _key(self, name: str) -> str:
        return self._keys.meta.removesuffix("meta") + name


def decode_state(text: str) -> TupleState:
    """The whole state in a value of a `t:` hash, as `lua/lib/state.lua` says it is written."""
    sign, rest = text[0], text[1:]
    if not rest.startswith("{"):
        timestamp, origin, *_ = rest.split(" ")
        return TupleState({(int(timestamp), origin): Sibling(_operation(sign))})
    long = json.loads(rest)
    siblings = {}
    for timestamp, origin, mark, condition, expires_at in long["siblings"]:
        siblings[(int(timestamp), origin)] = Sibling(
            _operation(mark), condition or None, int(expires_at) if expires_at else None
        )
    assert long["siblings"][0][2] == sign
    beyond = {origin: int(t) for origin, t in long.get("beyond", {}).items()}
    return TupleState(siblings, beyond)


def _operation(sign: str) -> Operation:
    return Operation.INSERT if sign == "+" else Operation.DELETE
