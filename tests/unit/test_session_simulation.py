"""Random links: whatever is lost, late or repeated, the target ends with the whole feed, in order.

A sender ships a generated feed to a deliberately dumb receiver, over a link that delays, repeats
and breaks. Time is a number, chance a seed; nothing waits.
"""

import heapq
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from sidecar.core.sender import (
    MAX_BATCH_BYTES,
    Acknowledged,
    Action,
    Close,
    Established,
    Here,
    Limits,
    Send,
    Sender,
)
from sidecar.core.session import AckOutcome, Party, acknowledge, heartbeat, welcome
from sidecar.core.wire import decode_frame, encode_vector

US = Party("us1", "us", "global.0", 1, 1, "lww:123456")
EU = Party("eu1", "eu", "global.0", 1, 1, "lww:123456")
OWN, OTHER = "us1.mwsgf5bo35gt", "eu1.mwsgf5bo35gu"
BOTH = (OWN, OTHER)
SECOND = 1_000_000
SEEDS = range(300)
FACTS: dict[str, object] = {"vector": {OWN: "5"}}


@dataclass(frozen=True)
class Entry:
    revision: int
    origin: str
    timestamp: int
    changes: int
    text: bytes


def generated_feed(rnd: random.Random) -> list[Entry]:
    """Own and foreign transactions; some empty, some large, now and then one beyond all limits."""
    feed: list[Entry] = []
    revision = previous = 0
    for _ in range(rnd.randint(1, 150)):
        revision += rnd.choice([1, 1, 1, 5, 1_000])
        origin = OWN if rnd.random() < 0.8 else OTHER
        size = rnd.choice([0] * 200 + [1_000] * 20 + [300_000, MAX_BATCH_BYTES + 1])
        line = {
            "origin": origin,
            "timestamp": revision if origin == OWN else revision - rnd.randint(0, 3),
            "previous": previous if origin == OWN else 0,
            "padding": "x" * size,
        }
        if origin == OWN:
            previous = revision
        changes = rnd.choice([0, 1, 1, 1, 2, 5, 30])
        text = json.dumps(line).encode()
        feed.append(Entry(revision, origin, int(str(line["timestamp"])), changes, text))
    return feed


@dataclass
class Receiver:
    """What every target must amount to: a vector, and a list of what it has applied."""

    reached: int = 0
    applied: list[int] = field(default_factory=list)

    def take(self, lines: bytes) -> AckOutcome:
        for line in lines.split(b"\n"):
            one = json.loads(line)
            assert one["origin"] == OWN, "a target writes its own"
            if one["timestamp"] <= self.reached:
                continue
            if one["previous"] > self.reached:
                return AckOutcome.GAP
            self.applied.append(one["timestamp"])
            self.reached = one["timestamp"]
        return AckOutcome.APPLIED

    def forget(self, count: int) -> None:
        """Come back from a copy that lacks the last writes."""
        del self.applied[len(self.applied) - count :]
        self.reached = self.applied[-1] if self.applied else 0


class Simulation:
    """One sender, one receiver, and all that may happen between them."""

    def __init__(self, seed: int) -> None:
        self.rnd = random.Random(seed)
        self.feed = generated_feed(self.rnd)
        self.written = self.rnd.randint(0, len(self.feed))  # the rest is written meanwhile
        self.limits = Limits(
            window=self.rnd.choice([1, 2, 5, 32]),
            batch_size=self.rnd.choice([1, 2, 7, 100]),
            timeout_us=10 * SECOND,
        )
        self.receiver = Receiver()
        self.delay_us = self.rnd.choice([0, 1_000, 150_000])
        self.faults = self.rnd.choice([0.0, 0.02, 0.1])
        self.now_us = 0
        self.closed_because: list[str] = []
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._event_count = 0
        self._connection = 0
        self._is_reading = False
        self.beats: list[int] = []
        self._connect()
        self._at(0, self._tick)

    # -- time and link ------------------------------------------------------------------------

    def _at(self, delay_us: int, event: Callable[[], None]) -> None:
        self._event_count += 1
        heapq.heappush(self._events, (self.now_us + delay_us, self._event_count, event))

    def run(self, until: Callable[[], bool], limit_s: int) -> None:
        """Let time pass until something holds; fail when it does not in `limit_s` seconds."""
        end_us = self.now_us + limit_s * SECOND
        while not until():
            self.now_us, _, event = heapq.heappop(self._events)
            assert self.now_us <= end_us, f"not within {limit_s} s"
            event()
            self._pump()
            self._check()

    def _connect(self) -> None:
        self._connection += 1
        self.sender = Sender(US, OWN, "eu1", self.limits)
        self.unanswered: dict[int, int] = {}
        self._arrival_us = {"there": self.now_us, "back": self.now_us}
        self._perform(self.sender.hello(FACTS, self.now_us))

    def lose_connection(self) -> None:
        self._connection += 1
        self._at(self.rnd.randint(0, SECOND), self._connect)
        # Until then there is no session: nothing may be sent.
        self.sender = Sender(US, OWN, "eu1", self.limits)

    def _carry(self, way: str, arrive: Callable[[], None]) -> None:
        """In order, after a while; not at all when the connection has gone by then."""
        connection = self._connection
        late_us = self.now_us + self.rnd.randint(0, 2 * self.delay_us)
        self._arrival_us[way] = max(self._arrival_us[way], late_us)

        def if_it_still_stands() -> None:
            if connection == self._connection:
                arrive()

        self._at(self._arrival_us[way] - self.now_us, if_it_still_stands)

    @property
    def here(self) -> Here:
        """What the sending node has, at this moment."""
        written = self.feed[: self.written]
        vector = {o: max([e.timestamp for e in written if e.origin == o], default=0) for o in BOTH}
        return Here(vector, vector, {}, written[-1].revision if written else 0)

    # -- the sender ---------------------------------------------------------------------------

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(frame, changes):
                    self._sent(frame, changes)
                case Close(code, _):
                    self.closed_because.append(code)
                    self.lose_connection()
                case Acknowledged(changes, duration_us):
                    assert changes == self.unanswered.pop(min(self.unanswered))
                    assert duration_us >= 0
                case Established():
                    has_all = self.sender.acknowledged == self.here.vector[OWN]
                    reached = self.here.revision if has_all else self.sender.acknowledged
                    assert self.sender.position == reached

    def _sent(self, frame: str | bytes, changes: int | None) -> None:
        head, lines = decode_frame(frame)
        if head["type"] == "heartbeat":
            self.beats.append(self.now_us)
        if head["type"] == "batch":
            assert changes is not None
            texts = lines.split(b"\n")
            if len(texts) > 1:
                assert changes <= self.limits.batch_size
                assert sum(map(len, texts)) <= MAX_BATCH_BYTES
            self.unanswered[int(str(head["batch"]))] = changes
        self._carry("there", lambda: self._receive(head, lines))

    def _pump(self) -> None:
        """What the agent does: bring what follows the position while there is room.

        Reading takes a while; the session may have gone back when it ends.
        """
        if self._is_reading or not self.sender.room:
            return
        self._is_reading = True
        sender, after = self.sender, self.sender.position

        def bring() -> None:
            self._is_reading = False
            if sender is self.sender:
                written = self.feed[: self.written]
                found = [e for e in written if e.revision > after][: self.rnd.randint(1, 40)]
                self._perform(sender.on_entries(after, found, self.here, self.now_us))

        self._at(self.rnd.randint(1_000, 20_000), bring)

    def _tick(self) -> None:
        self._at(SECOND // 4, self._tick)
        if self.written < len(self.feed):
            self.written += self.rnd.randint(0, min(20, len(self.feed) - self.written))
        if self.sender.is_established:
            self._perform(self.sender.on_tick(self.here, FACTS, self.now_us))
        if self.rnd.random() < self.faults:
            if self.rnd.random() < 0.5:
                self.receiver.forget(self.rnd.randint(0, len(self.receiver.applied)))
            self.lose_connection()

    def _check(self) -> None:
        one = self.sender
        assert len(self.unanswered) <= self.limits.window
        if one.is_established:
            assert one.room == self.limits.window - len(self.unanswered)
            assert one.position >= one.acknowledged
        applied = self.receiver.applied
        own = [e.timestamp for e in self.feed if e.origin == OWN]
        assert applied == own[: len(applied)], "in order, each once, nothing left out"

    # -- the receiver -------------------------------------------------------------------------

    def _receive(self, head: dict[str, object], lines: bytes) -> None:
        vector = {OWN: self.receiver.reached} if self.receiver.reached else {}
        match head["type"]:
            case "hello":
                self._answer(welcome(EU, OTHER, 1, {"vector": encode_vector(vector)}))
            case "heartbeat":
                self._answer(heartbeat({"vector": encode_vector(vector)}))
            case "batch" if self.rnd.random() < self.faults:
                self._answer_batch(head, AckOutcome.GAP)
            case "batch":
                self._answer_batch(head, self.receiver.take(lines))

    def _answer_batch(self, head: dict[str, object], outcome: AckOutcome) -> None:
        vector = {OWN: self.receiver.reached}
        frame = acknowledge(head["batch"], outcome, vector, vector)
        for _ in range(2 if self.rnd.random() < self.faults else 1):
            self._answer(frame)

    def _answer(self, frame: str | bytes) -> None:
        self._carry("back", lambda: self._answered(frame))

    def _answered(self, frame: str | bytes) -> None:
        head = decode_frame(frame)[0]
        if head["type"] == "ack" and head["outcome"] == "gap":
            number = int(str(head["batch"]))
            if number in self.unanswered:
                self.unanswered.clear()
        self._perform(self.sender.on_frame(head, self.here, self.now_us))

    # -- the end ------------------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        own = [e.timestamp for e in self.feed if e.origin == OWN]
        return (
            self.written == len(self.feed)
            and self.receiver.applied == own
            and self.sender.acknowledged == (own[-1] if own else 0)
            and not self.unanswered
            and self.sender.is_established
            and self.sender.position == self.feed[-1].revision
        )


@pytest.mark.parametrize("tens", range(0, len(SEEDS), 10))
def test_the_whole_feed_arrives_in_order_over_any_link(tens: int) -> None:
    for seed in SEEDS[tens : tens + 10]:
        world = Simulation(seed)
        try:
            world.run(lambda world=world: world.now_us > 5 * SECOND, limit_s=10)  # type: ignore[misc]
            world.faults = 0.0
            world.run(lambda world=world: world.is_settled, limit_s=120)  # type: ignore[misc]
        except AssertionError as failed:
            raise AssertionError(f"seed {seed}: {failed}") from failed
        assert world.sender.oldest_in_flight is None
        assert not world.closed_because, f"seed {seed}"


def test_an_idle_session_beats_each_second_and_stays() -> None:
    world = Simulation(4)
    world.faults = 0.0
    world.run(lambda: world.is_settled, limit_s=120)
    world.beats.clear()
    until_us = world.now_us + 60 * SECOND
    world.run(lambda: world.now_us > until_us, limit_s=61)
    assert 59 <= len(world.beats) <= 61
    assert not world.closed_because


def test_a_link_that_swallows_everything_is_given_up_and_made_anew() -> None:
    """Neither end is told: only the time says so."""
    world = Simulation(4)
    world.faults = 0.0
    world.run(lambda: world.is_settled, limit_s=120)
    swallowed_us = world.now_us
    world.delay_us = 1_000 * SECOND
    world.run(lambda: bool(world.closed_because), limit_s=12)
    assert world.closed_because == ["timeout"]
    assert world.now_us - swallowed_us >= 10 * SECOND - SECOND
    world.delay_us = 0
    world.run(lambda: world.is_settled, limit_s=120)
