"""One session: how a node ships its feed to one target. Events in, actions out.

The sender keeps a window of batches in flight and goes back when the target says that something is
missing; the receiver merges and acknowledges. Neither knows sockets, tasks or Redis; both ends are
deterministic, so that a simulator can drive them.
"""

import reprlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from sidecar.core.vector import Vector
from sidecar.core.wire import decode_vector, encode_frame, encode_vector
from sidecar.errors import Refused

PROTOCOLS = (1, 1)
"""The oldest and the newest version of the session protocol that this release speaks."""

MAX_BATCH_BYTES = 1024 * 1024
HEARTBEAT_US = 1_000_000

# What the other end said is quoted as far as a person reads it, however long or deep it is.
_quoting = reprlib.Repr()
_quoting.maxstring = _quoting.maxother = 80
_quoted = _quoting.repr


class Entry(Protocol):
    """What a session needs of an entry of the feed; all read-only."""

    @property
    def revision(self) -> int: ...
    @property
    def origin(self) -> str: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def changes(self) -> int: ...
    @property
    def text(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Party:
    """What both ends of a session must agree on, and who they are."""

    node: str
    region: str
    partition: str
    partitions: int
    format: int
    rules: str

    def to_json(self) -> dict[str, object]:
        """The part of a hello that does not change while a node runs."""
        return {
            "node": self.node,
            "region": self.region,
            "partition": self.partition,
            "partitions": self.partitions,
            "format": self.format,
            "rules": self.rules,
        }


class AckOutcome(StrEnum):
    """What became of a batch at the target."""

    APPLIED = "applied"
    GAP = "gap"
    SKEW = "skew"


@dataclass(frozen=True, slots=True)
class Send:
    """Put this frame on the link."""

    frame: str | bytes
    changes: int | None = None
    """How many changes, if it is a batch."""


@dataclass(frozen=True, slots=True)
class Established:
    """The target has agreed; the feed can be shipped from `Sender.position` on."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The target has a batch in its Redis."""

    changes: int
    duration_us: int


@dataclass(frozen=True, slots=True)
class Close:
    """End the session: it failed with this code, and a message for people."""

    code: str
    message: str


Action = Send | Established | Acknowledged | Close


@dataclass(frozen=True, slots=True)
class _Batch:
    number: int
    first_timestamp: int
    last_timestamp: int
    changes: int
    sent_us: int


@dataclass(frozen=True, slots=True)
class Limits:
    """window: batches in flight. batch_size: changes per batch. timeout_us: of an answer."""

    window: int
    batch_size: int
    timeout_us: int


class Sender:
    """The end that ships: first a hello, then batches, with a heartbeat each second.

    position: revision up to which the feed has been sent. acknowledged: timestamp of this node's
    own origin up to which the target has everything; sent: the same, for what is on its way.
    """

    def __init__(self, me: Party, origin: str, target: str, limits: Limits) -> None:
        self._me, self._origin, self._target, self._limits = me, origin, target, limits
        self._in_flight: deque[_Batch] = deque()
        self._next_number = 1
        self._is_established = False
        self._has_shipped = False
        self._heard_us = 0
        self._beat_us = 0
        self._acked_us = 0
        self.position = 0
        self.acknowledged = 0
        self.sent = 0

    @property
    def is_established(self) -> bool:
        """Whether the target has agreed to the session."""
        return self._is_established

    @property
    def has_shipped(self) -> bool:
        """Whether the target has acknowledged a batch of this session."""
        return self._has_shipped

    @property
    def room(self) -> int:
        """How many more batches may be in flight; at 0 wait, the feed keeps the rest."""
        return self._limits.window - len(self._in_flight) if self._is_established else 0

    @property
    def oldest_in_flight(self) -> int | None:
        """Timestamp of the oldest transaction that was sent and not acknowledged."""
        return self._in_flight[0].first_timestamp if self._in_flight else None

    def hello(self, vector: Vector, now_us: int) -> list[Action]:
        """Begin."""
        self._heard_us = now_us
        head = {
            "type": "hello",
            "protocols": list(PROTOCOLS),
            **self._me.to_json(),
            "origin": self._origin,
            "to": self._target,
            "vector": encode_vector(vector),
        }
        return [Send(encode_frame(head))]

    def on_frame(self, head: Mapping[str, object], now_us: int) -> list[Action]:
        """A frame of the target has come."""
        self._heard_us = now_us
        match head["type"]:
            case "welcome" if not self._is_established:
                return self._on_welcome(head)
            case "refuse":
                return [Close(str(head.get("code")), str(head.get("message")))]
            case "ack" if self._is_established:
                return self._on_ack(head, now_us)
            case "heartbeat" if self._is_established:
                self._learn(decode_vector(head.get("vector")))
                return []
            case other:
                return [Close("bad_frame", f"{self._target} sent an unexpected {_quoted(other)}")]

    def on_entries(self, after: int, entries: Sequence[Entry], now_us: int) -> list[Action]:
        """Entries that follow revision `after` in the feed: send what the window has room for.

        Takes from the front as many as fit and moves `position`; the caller comes again with the
        rest. Entries that do not start at `position` (it went back meanwhile) are left alone.
        """
        if after != self.position or not self._is_established:
            return []
        actions: list[Action] = []
        batch: list[Entry] = []
        changes = size = 0
        for entry in entries:
            # The target writes its own; what it has already need not travel.
            if entry.origin != self._origin or entry.timestamp <= self.acknowledged:
                if not batch:
                    self.position = entry.revision
                continue
            is_full = batch and (
                changes + entry.changes > self._limits.batch_size
                or size + len(entry.text) > MAX_BATCH_BYTES
            )
            if is_full:
                actions.append(self._batch(batch, changes, now_us))
                batch, changes, size = [], 0, 0
            if not self.room:
                return actions
            batch.append(entry)
            changes += entry.changes
            size += len(entry.text)
        if batch:
            actions.append(self._batch(batch, changes, now_us))
        if entries and self.room:
            self.position = max(self.position, entries[-1].revision)
        return actions

    def skip_to(self, revision: int) -> None:
        """Nothing of this node's origin lies between `position` and this revision."""
        self.position = max(self.position, revision)

    def on_tick(self, vector: Vector, clock: int, now_us: int) -> list[Action]:
        """Time has passed: beat, and give up on a target that has fallen silent."""
        waited_us = now_us - self._heard_us
        if self._in_flight:
            # A slow target that goes on acknowledging is not a dead one.
            waited_us = max(waited_us, now_us - max(self._in_flight[0].sent_us, self._acked_us))
        if waited_us > self._limits.timeout_us:
            what = "acknowledged nothing" if self._in_flight else "said nothing"
            return [Close("timeout", f"{self._target} {what} for {waited_us / 1e6:.1f} s")]
        if not self._is_established or now_us - self._beat_us < HEARTBEAT_US:
            return []
        self._beat_us = now_us
        return [Send(heartbeat(vector, clock))]

    def _on_welcome(self, head: Mapping[str, object]) -> list[Action]:
        if head.get("node") != self._target:
            return [
                Close(
                    "wrong_node",
                    f"expected {self._target}, {_quoted(head.get('node'))} answers; check its "
                    "endpoint",
                )
            ]
        self._is_established = True
        # The receiver's vector says where to start: revision = timestamp for own writes.
        self._learn(decode_vector(head.get("vector")))
        self.position = self.sent = self.acknowledged
        return [Established()]

    def _on_ack(self, head: Mapping[str, object], now_us: int) -> list[Action]:
        number, outcome = head.get("batch"), _outcome(head.get("outcome"))
        if not any(batch.number == number for batch in self._in_flight):
            return []  # sent before the session went back
        self._learn(decode_vector(head.get("vector")))
        if outcome is AckOutcome.SKEW:
            return [Close("skew", f"{self._target} holds a batch back: {head.get('detail')}")]
        if outcome is AckOutcome.GAP:
            self._in_flight.clear()
            self.position = self.sent = self.acknowledged
            return []
        self._has_shipped = True
        self._acked_us = now_us
        actions: list[Action] = []
        while self._in_flight:
            batch = self._in_flight.popleft()
            actions.append(Acknowledged(batch.changes, now_us - batch.sent_us))
            if batch.number == number:
                break
        return actions

    def _learn(self, vector: Vector) -> None:
        self.acknowledged = vector.get(self._origin, 0)

    def _batch(self, entries: list[Entry], changes: int, now_us: int) -> Send:
        batch = _Batch(
            self._next_number, entries[0].timestamp, entries[-1].timestamp, changes, now_us
        )
        self._next_number += 1
        self._in_flight.append(batch)
        self.position = entries[-1].revision
        self.sent = entries[-1].timestamp
        head = {"type": "batch", "batch": batch.number}
        return Send(encode_frame(head, [entry.text for entry in entries]), changes)


def heartbeat(vector: Vector, clock: int) -> str | bytes:
    """The frame that makes idle different from stuck."""
    return encode_frame({"type": "heartbeat", "clock": str(clock), "vector": encode_vector(vector)})


def greet(hello: Mapping[str, object], me: Party, regions: Mapping[str, str]) -> tuple[str, int]:
    """Who is at the other end, and the protocol to speak; `regions` has the known nodes.

    Raises Refused when the two must not replicate: the message names both values.
    """
    if (kind := hello.get("type")) != "hello":
        raise Refused("bad_frame", f"a session begins with hello, not {_quoted(kind)}")
    protocol = _common_protocol(hello.get("protocols"))
    node = hello.get("node")
    if hello.get("to") != me.node:
        raise Refused("wrong_node", f"expected {_quoted(hello.get('to'))}, this is {me.node}")
    if not isinstance(node, str) or node not in regions or node == me.node:
        raise Refused(
            "unknown_node", f"{_quoted(node)} is not another node of the topology of {me.node}"
        )
    theirs = {**me.to_json(), "node": node, "region": regions[node]}
    for name, mine in theirs.items():
        if hello.get(name) != mine:
            raise Refused(
                f"{name}_mismatch",
                f"{node} says {name} {_quoted(hello.get(name))}, {me.node} says {mine!r}; "
                "nothing is lost, the session resumes when they agree",
            )
    return node, protocol


def welcome(me: Party, origin: str, vector: Vector, clock: int, protocol: int) -> str | bytes:
    """The answer to a hello that agrees."""
    return encode_frame(
        {
            "type": "welcome",
            "protocol": protocol,
            **me.to_json(),
            "origin": origin,
            "vector": encode_vector(vector),
            "clock": str(clock),
        }
    )


def refuse(code: str, message: str) -> str | bytes:
    """The last frame of a session that cannot go on."""
    return encode_frame({"type": "refuse", "code": code, "message": message})


def acknowledge(number: object, outcome: AckOutcome, detail: str, vector: Vector) -> str | bytes:
    """The answer to a batch, once its merge is in Redis. Refuses a batch without a number."""
    if not isinstance(number, int):
        raise Refused("bad_frame", f"a batch has a whole number, not {_quoted(number)}")
    return encode_frame(
        {
            "type": "ack",
            "batch": number,
            "outcome": outcome.value,
            "detail": detail,
            "vector": encode_vector(vector),
        }
    )


def _outcome(word: object) -> AckOutcome:
    try:
        return AckOutcome(str(word))
    except ValueError:
        raise Refused("bad_frame", f"{_quoted(word)} is no outcome of a batch") from None


def _common_protocol(theirs: object) -> int:
    oldest, newest = PROTOCOLS
    is_pair = isinstance(theirs, list) and [type(v) for v in theirs] == [int, int]
    bounds: Iterable[int] = theirs if is_pair and isinstance(theirs, list) else (0, 0)
    their_oldest, their_newest = bounds
    common = min(newest, their_newest)
    if common < max(oldest, their_oldest):
        raise Refused(
            "protocol_mismatch",
            f"the other end speaks session protocols {_quoted(theirs)}, this node "
            f"{list(PROTOCOLS)}",
        )
    return common
