"""How a node ships its feed to one target: events in, actions out.

The sender keeps a window of batches in flight, goes back when the target says that something is
missing, and sends whole buckets where its feed no longer holds what the target lacks. It is
deterministic, so that a simulator can drive it.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sidecar.core.relationship import BUCKETS
from sidecar.core.session import (
    PROTOCOLS,
    TRANSFER,
    AckOutcome,
    Party,
    heartbeat,
    joined_of,
    outcome_of,
    quoted,
)
from sidecar.core.vector import Vector, above, is_covered, node_of, pointwise_max
from sidecar.core.wire import decode_vector, encode_frame, encode_vector
from sidecar.errors import Refused

MAX_BATCH_BYTES = 1024 * 1024
HEARTBEAT_US = 1_000_000
ADOPT_US = 3_000_000
"""For so long a target may stand still at an origin before others than its carrier help out."""
PARKED_RETRY_US = 1_000_000
TRANSFER_RETRY_US = 1_000_000


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
class ReadStates:
    """Read whole buckets from this one on, and hand them with this to `Sender.on_states`."""

    transfer: int
    first: int


@dataclass(frozen=True, slots=True)
class Transferred:
    """A state transfer to the target has begun (0), come so far, or ended (`BUCKETS`)."""

    buckets: int


@dataclass(frozen=True, slots=True)
class Parked:
    """The target holds back what follows of an origin, and says why."""

    origin: str
    reason: str


@dataclass(frozen=True, slots=True)
class Close:
    """End the session: it failed with this code, and a message for people."""

    code: str
    message: str


Action = Send | Established | Acknowledged | ReadStates | Transferred | Parked | Close


@dataclass(frozen=True, slots=True)
class Here:
    """What the sending node has. vector: applied; durable: what of it no crash takes away.

    floor: origin -> timestamp up to which its feed does not hold everything. revision: its newest.
    is_in_doubt: it differs from most of the others, so what it lacks must not count as deleted.
    joined: nodes whose states are joined here since the rules changed; None: no change under way.
    """

    vector: Vector
    durable: Vector
    floor: Vector
    revision: int
    is_in_doubt: bool = False
    joined: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class _Batch:
    number: int
    first_timestamp: int
    reached: dict[str, int]
    position: int
    changes: int
    sent_us: int


@dataclass(slots=True)
class _Transfer:
    """A state transfer under way. heard_us: when the target last had a word for it.

    reached: the first bucket that the target does not have; -1 before it has said so.
    """

    number: int
    start: Vector
    revision: int
    heard_us: int
    reached: int = -1


@dataclass(frozen=True, slots=True)
class Limits:
    """window: batches in flight. batch_size: changes per batch. timeout_us: of an answer."""

    window: int
    batch_size: int
    timeout_us: int


class Sender:
    """The end that ships: first a hello, then batches, with a heartbeat each second.

    carried: the nodes whose transactions go to this target over this node. What the target lacks
    of others for a while is sent as well: whoever should carry it cannot.

    position: revision up to which the feed has been sent. target_vector: what the target has.
    cursor: revision up to which the target has, durably, all that is carried to it.
    """

    def __init__(
        self,
        me: Party,
        origin: str,
        target: str,
        limits: Limits,
        carried: Collection[str] | None = None,
        *,
        must_transfer: bool = False,
    ) -> None:
        """must_transfer: the target gets a state transfer, whether it lacks something or not."""
        self._must_transfer = must_transfer
        self._me, self._origin, self._target, self._limits = me, origin, target, limits
        self._carried = frozenset(carried or {me.node})
        self._in_flight: deque[_Batch] = deque()
        self._next_number = 1
        self._is_established = False
        self._has_shipped = False
        self._heard_us = 0
        self._beat_us = 0
        self._acked_us = 0
        self._target_origin = ""
        self._durable: Vector = {}
        self._undurable: deque[tuple[int, Vector]] = deque()
        self._sent: dict[str, int] = {}
        self._adopted: set[str] = set()
        self._stuck: dict[str, tuple[int, int]] = {}
        self._parked: dict[str, int] = {}
        self._lacking_older: set[str] = set()
        self._transfer: _Transfer | None = None
        self._transfer_after_us = 0
        self._joined: frozenset[str] | None = None
        self.target_vector: Vector = {}
        self.position = 0
        self.cursor = 0

    @property
    def is_established(self) -> bool:
        """Whether the target has agreed to the session."""
        return self._is_established

    @property
    def has_shipped(self) -> bool:
        """Whether the target has acknowledged a batch of this session."""
        return self._has_shipped

    @property
    def acknowledged(self) -> int:
        """Timestamp of this node's own origin up to which the target has everything."""
        return self.target_vector.get(self._origin, 0)

    @property
    def sent(self) -> int:
        """The same, for what is on its way."""
        return self._sent.get(self._origin, 0)

    @property
    def ships_only_own(self) -> bool:
        """Whether nothing but the writes of this node's incarnation need be read from the feed."""
        is_alone = self._carried == {self._me.node}
        return is_alone and not self._adopted and not self._lacking_older

    @property
    def keeps_feed_after(self) -> int | None:
        """Revision from which the feed must be kept, because a state transfer ends there."""
        return self._transfer.revision if self._transfer else None

    @property
    def room(self) -> int:
        """How many more batches may be in flight; at 0 wait, the feed keeps the rest."""
        return self._limits.window - len(self._in_flight) if self._is_established else 0

    @property
    def in_flight(self) -> int:
        """How many batches were sent and not acknowledged."""
        return len(self._in_flight)

    @property
    def oldest_in_flight(self) -> int | None:
        """Timestamp of the oldest transaction that was sent and not acknowledged."""
        return self._in_flight[0].first_timestamp if self._in_flight else None

    # -- what happens -----------------------------------------------------------------------------

    def hello(self, facts: Mapping[str, object], now_us: int) -> list[Action]:
        """Begin. facts: what every hello and heartbeat tells (`agent/peers.py`)."""
        self._heard_us = now_us
        head = {
            "type": "hello",
            "protocols": list(PROTOCOLS),
            **self._me.to_json(),
            "origin": self._origin,
            "to": self._target,
            **facts,
        }
        return [Send(encode_frame(head))]

    def on_frame(self, head: Mapping[str, object], here: Here, now_us: int) -> list[Action]:
        """A frame of the target has come."""
        self._heard_us = now_us
        match head["type"]:
            case "welcome" if not self._is_established:
                return self._on_welcome(head, here)
            case "refuse":
                return [Close(str(head.get("code")), str(head.get("message")))]
            case "ack" if self._is_established:
                return self._on_ack(head, here, now_us)
            case "heartbeat" if self._is_established:
                self._joined = joined_of(head)
                self._learn(head)
                return []
            case "ready" | "page_ack" | "done" | "busy" if self._is_established:
                return self._on_transfer(head, here, now_us)
            case other:
                return [Close("bad_frame", f"{self._target} sent an unexpected {quoted(other)}")]

    def on_entries(
        self, after: int, entries: Sequence[Entry], here: Here, now_us: int
    ) -> list[Action]:
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
            if not self._is_wanted(entry, here):
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
        """Nothing that this session ships lies between `position` and this revision."""
        self.position = max(self.position, revision)

    def on_tick(self, here: Here, facts: Mapping[str, object], now_us: int) -> list[Action]:
        """Time has passed: beat, help out, and give up on a target that has fallen silent."""
        waited_us = now_us - self._heard_us
        if self._in_flight:
            # A slow target that goes on acknowledging is not a dead one.
            waited_us = max(waited_us, now_us - max(self._in_flight[0].sent_us, self._acked_us))
        if waited_us > self._limits.timeout_us:
            what = "acknowledged nothing" if self._in_flight else "said nothing"
            return [Close("timeout", f"{self._target} {what} for {waited_us / 1e6:.1f} s")]
        if self._transfer and now_us - self._transfer.heard_us > self._limits.timeout_us:
            return [Close("timeout", f"{self._target} does not go on with a state transfer")]
        if not self._is_established:
            return []
        self._advance_cursor(here)
        self._retry_parked(now_us)
        self._adopt(here, now_us)
        actions = self._begin_transfer(here, now_us)
        if now_us - self._beat_us >= HEARTBEAT_US:
            self._beat_us = now_us
            actions.append(Send(heartbeat(facts)))
        return actions

    def on_states(
        self, asked: ReadStates, vector: Vector, following: int, lines: Sequence[bytes]
    ) -> list[Action]:
        """Buckets that were asked for, and the vector they were read at, which is durable now."""
        transfer = self._transfer
        if transfer is None or not self._is_established:
            return []
        if asked != ReadStates(transfer.number, transfer.reached):
            return []
        if not is_covered(transfer.start, vector):
            return [Close("source_lost", "this node has lost data in the middle of a transfer")]
        head = {
            "type": "page",
            "transfer": transfer.number,
            "first": asked.first,
            "next": following,
        }
        return [Send(encode_frame(head, lines))]

    # -- the beginning ----------------------------------------------------------------------------

    def _on_welcome(self, head: Mapping[str, object], here: Here) -> list[Action]:
        if head.get("node") != self._target:
            return [
                Close(
                    "wrong_node",
                    f"expected {self._target}, {quoted(head.get('node'))} answers; check its "
                    "endpoint",
                )
            ]
        self._is_established = True
        self._target_origin = str(head.get("origin"))
        self._joined = joined_of(head)
        self._learn(head)
        self._go_back(here)
        reached = {o: t for o, t in self.target_vector.items() if o in here.vector}
        self._undurable.append((self.position, reached))
        return [Established()]

    def _learn(self, head: Mapping[str, object]) -> None:
        self.target_vector = decode_vector(head.get("vector"))
        durable = head.get("durable")
        self._durable = decode_vector(durable) if durable is not None else self.target_vector

    def _carries(self, origin: str) -> bool:
        node = node_of(origin)
        if node == self._target:
            # The present incarnation of the target needs no one to tell it what it wrote.
            return origin != self._target_origin
        return node in self._carried or origin in self._adopted

    def _is_wanted(self, entry: Entry, here: Here) -> bool:
        origin = entry.origin
        sent = self._sent.get(origin, 0)
        return (
            entry.timestamp > sent
            and origin not in self._parked
            and self._carries(origin)
            # Below the floor the feed has gaps: a state transfer brings what lies there.
            and sent >= here.floor.get(origin, 0)
            and origin != TRANSFER
        )

    def _go_back(self, here: Here) -> None:
        """Begin again behind what the target has."""
        self._in_flight.clear()
        self._sent = dict(self.target_vector)
        self._seek(here, here.revision)

    def _seek(self, here: Here, position: int) -> None:
        """Move to where the first entry can lie that the target lacks, at most to `position`.

        An entry's revision is above its timestamp; of own writes they are the same.
        """
        lacking = [o for o, t in here.vector.items() if t > self._sent.get(o, 0)]
        lacking = [o for o in lacking if self._carries(o) and o not in self._parked]
        self._lacking_older = {o for o in lacking if o != self._origin}
        streamed = [
            self._sent.get(o, 0) for o in lacking if self._sent.get(o, 0) >= here.floor.get(o, 0)
        ]
        self.position = min([position, *streamed])

    # -- acknowledgements -------------------------------------------------------------------------

    def _on_ack(self, head: Mapping[str, object], here: Here, now_us: int) -> list[Action]:
        number, outcome = head.get("batch"), outcome_of(head.get("outcome"))
        if not any(batch.number == number for batch in self._in_flight):
            return []  # sent before the session went back
        self._learn(head)
        if outcome is AckOutcome.GAP:
            self._go_back(here)
            return []
        self._has_shipped = True
        self._acked_us = now_us
        actions = self._park(head.get("parked"), now_us)
        while self._in_flight:
            batch = self._in_flight.popleft()
            missing = above(batch.reached, self.target_vector).keys() - self._parked.keys()
            if missing:
                # A batch of other origins came and this one did not.
                self._go_back(here)
                return actions
            actions.append(Acknowledged(batch.changes, now_us - batch.sent_us))
            self._undurable.append((batch.position, batch.reached))
            if batch.number == number:
                break
        self._lacking_older = {
            o for o in self._lacking_older if here.vector.get(o, 0) > self.target_vector.get(o, 0)
        }
        self._advance_cursor(here)
        return actions

    def _advance_cursor(self, here: Here) -> None:
        while self._undurable and is_covered(self._undurable[0][1], self._durable):
            self.cursor = max(self.cursor, self._undurable.popleft()[0])
        owed = above(here.vector, self._durable)
        if not any(self._carries(origin) for origin in owed):
            # Whatever else is in the feed is nothing to this target.
            self.cursor = max(self.cursor, here.revision)

    def _park(self, parked: object, now_us: int) -> list[Action]:
        if not isinstance(parked, dict):
            return []
        actions: list[Action] = []
        for origin, reason in parked.items():
            if origin not in self._parked:
                actions.append(Parked(str(origin), str(reason)))
            self._parked[origin] = now_us
            self._sent[origin] = self.target_vector.get(origin, 0)
        return actions

    def _retry_parked(self, now_us: int) -> None:
        for origin, since_us in list(self._parked.items()):
            if now_us - since_us >= PARKED_RETRY_US:
                del self._parked[origin]
                self._lacking_older |= {origin} - {self._origin}
                self.position = min(self.position, self._sent.get(origin, 0))

    def _adopt(self, here: Here, now_us: int) -> None:
        """Send also what nobody else brings to the target, until it has it."""
        on_its_way = {origin for batch in self._in_flight for origin in batch.reached}
        for origin, timestamp in here.vector.items():
            has = self.target_vector.get(origin, 0)
            if timestamp <= has or origin == self._target_origin:
                self._adopted.discard(origin)
                self._stuck.pop(origin, None)
                continue
            if self._carries(origin) and self.ships_only_own and origin != self._origin:
                # It came here after the session began, and nobody reads the feed for it.
                self._lacking_older.add(origin)
                self.position = min(self.position, self._sent.get(origin, 0))
            stood, since_us = self._stuck.get(origin, (-1, now_us))
            if stood != has or origin in on_its_way or origin in self._parked:
                self._stuck[origin] = (has, now_us)
            elif now_us - since_us >= ADOPT_US:
                self._stuck[origin] = (has, now_us)
                if not self._carries(origin):
                    self._adopted.add(origin)
                self._sent[origin] = has
                self.position = min(self.position, has)

    # -- state transfer ---------------------------------------------------------------------------

    def _begin_transfer(self, here: Here, now_us: int) -> list[Action]:
        if self._transfer is not None or here.is_in_doubt or now_us < self._transfer_after_us:
            return []
        is_needed = self._must_transfer or any(
            self._sent.get(origin, 0) < here.floor.get(origin, 0)
            and timestamp > self.target_vector.get(origin, 0)
            and self._carries(origin)
            for origin, timestamp in here.vector.items()
        )
        if not is_needed and not self._has_settled(here):
            return []
        self._transfer = _Transfer(self._next_number, here.durable, here.revision, now_us)
        self._next_number += 1
        head = {
            "type": "transfer",
            "transfer": self._transfer.number,
            "start": encode_vector(self._transfer.start),
            **({} if here.joined is None else {"joined": sorted(here.joined)}),
        }
        return [Send(encode_frame(head))]

    def _has_settled(self, here: Here) -> bool:
        """Whether conflicts may be settled here of which the target does not know.

        So it is after a change of the rules: what was settled by the old ones stands in no feed.
        """
        if self._joined is None:
            return False
        return here.joined is None or not here.joined <= self._joined

    def _on_transfer(self, head: Mapping[str, object], here: Here, now_us: int) -> list[Action]:
        transfer = self._transfer
        if transfer is None or head.get("transfer") != transfer.number:
            return []
        transfer.heard_us = now_us
        match head["type"]:
            case "busy":
                self._transfer = None
                self._transfer_after_us = now_us + TRANSFER_RETRY_US
                return []
            case "ready" | "page_ack":
                return self._on_reached(transfer, head)
            case _:
                self._transfer, self._must_transfer = None, False
                self._joined = joined_of(head)
                self._learn(head)
                self._sent = pointwise_max(self._sent, self.target_vector)
                self._seek(here, self.position)
                return [Transferred(BUCKETS)]

    def _on_reached(self, transfer: _Transfer, head: Mapping[str, object]) -> list[Action]:
        reached = _bucket(head.get("next"))
        is_ready = head["type"] == "ready"
        is_news = transfer.reached < 0 if is_ready else 0 <= transfer.reached < reached
        # What comes twice must not ask for pages twice: each row of them would have gaps.
        if not is_news:
            return []
        if is_ready:
            # An earlier one may have been cut short: it goes on where it was.
            transfer.start = decode_vector(head.get("start"))
        transfer.reached = reached
        if transfer.reached < BUCKETS:
            asked = ReadStates(transfer.number, transfer.reached)
            return [Transferred(transfer.reached), asked]
        end = {"type": "transfer_end", "transfer": transfer.number}
        return [Send(encode_frame(end))]

    def _batch(self, entries: list[Entry], changes: int, now_us: int) -> Send:
        reached = {entry.origin: entry.timestamp for entry in entries}
        batch = _Batch(
            self._next_number,
            entries[0].timestamp,
            reached,
            entries[-1].revision,
            changes,
            now_us,
        )
        self._next_number += 1
        self._in_flight.append(batch)
        self.position = entries[-1].revision
        self._sent |= reached
        head = {"type": "batch", "batch": batch.number}
        return Send(encode_frame(head, [entry.text for entry in entries]), changes)


def _bucket(number: object) -> int:
    if not isinstance(number, int) or not 0 <= number <= BUCKETS:
        raise Refused("bad_frame", f"a bucket is a number up to {BUCKETS}")
    return number
