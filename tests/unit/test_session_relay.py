"""Scenes of a session that carries what others wrote: relays, help, parked origins, cursors."""

from dataclasses import dataclass

import pytest

from sidecar.core.sender import (
    ADOPT_US,
    PARKED_RETRY_US,
    Acknowledged,
    Action,
    Established,
    Here,
    Limits,
    Parked,
    Send,
    Sender,
)
from sidecar.core.session import TRANSFER, AckOutcome, Party, acknowledge, heartbeat, welcome
from sidecar.core.wire import decode_frame, encode_vector

S = 1_000_000
US, EU, EU_OLD = "us1.00000002xxxx", "eu1.00000002xxxx", "eu1.00000001xxxx"
AP, SA = "ap1.00000001xxxx", "sa1.00000001xxxx"
ME = Party("us1", "us", "global.0", 1, 1, "lww:123456")
TARGET = Party("eu1", "eu", "global.0", 1, 1, "lww:123456")
Vector = dict[str, int]


@dataclass(frozen=True)
class Entry:
    """An entry of a feed. Of what others wrote the revision is above the timestamp."""

    revision: int
    origin: str
    timestamp: int
    changes: int = 1

    @property
    def text(self) -> bytes:
        return f"{self.origin}@{self.timestamp}".encode()


def own(timestamp: int) -> Entry:
    return Entry(timestamp, US, timestamp)


class Scene:
    """A sender on us1 whose feed is `feed`, and what its target eu1 answers."""

    def __init__(
        self,
        feed: list[Entry],
        *,
        has: Vector | None = None,
        durable: Vector | None = None,
        carried: tuple[str, ...] = ("us1", "ap1"),
        floor: Vector | None = None,
        batch_size: int = 100,
    ) -> None:
        self.feed, self.floor, self.now_us = feed, floor or {}, 0
        limits = Limits(window=8, batch_size=batch_size, timeout_us=60 * S)
        self.sender = Sender(ME, US, "eu1", limits, carried)
        self.sender.hello({}, now_us=0)
        facts = {"vector": encode_vector(has or {})}
        if durable is not None:
            facts["durable"] = encode_vector(durable)
        head = decode_frame(welcome(TARGET, EU, 1, facts))[0]
        assert self.sender.on_frame(head, self.here, now_us=0) == [Established()]

    @property
    def here(self) -> Here:
        vector: Vector = {}
        for entry in self.feed:
            if entry.origin != TRANSFER:
                vector[entry.origin] = entry.timestamp
        revision = self.feed[-1].revision if self.feed else 0
        return Here(vector, vector, self.floor, revision)

    def ship(self) -> list[str]:
        """Bring what follows in the feed; what is sent of it, a text per batch."""
        after = self.sender.position
        following = [entry for entry in self.feed if entry.revision > after]
        return batches(self.sender.on_entries(after, following, self.here, self.now_us))

    def acknowledge(
        self,
        number: int,
        has: Vector,
        durable: Vector | None = None,
        parked: dict[str, str] | None = None,
    ) -> list[Action]:
        reached = has if durable is None else durable
        frame = acknowledge(number, AckOutcome.APPLIED, has, reached, parked)
        return self.sender.on_frame(decode_frame(frame)[0], self.here, self.now_us)

    def beat(self, has: Vector, durable: Vector | None = None) -> None:
        facts = {"vector": encode_vector(has), "durable": encode_vector(durable or has)}
        self.sender.on_frame(decode_frame(heartbeat(facts))[0], self.here, self.now_us)

    def pass_us(self, duration_us: int) -> None:
        self.now_us += duration_us
        self.sender.on_tick(self.here, {}, self.now_us)


def batches(actions: list[Action]) -> list[str]:
    frames = [decode_frame(a.frame) for a in actions if isinstance(a, Send)]
    return [lines.decode().replace("\n", " ") for head, lines in frames if head["type"] == "batch"]


# -- relays ---------------------------------------------------------------------------------------


def test_what_is_carried_is_shipped_in_the_order_of_the_feed() -> None:
    scene = Scene([own(1), Entry(5, AP, 2), Entry(6, SA, 3), own(7), Entry(9, AP, 8)])
    assert not scene.sender.ships_only_own
    assert scene.ship() == [f"{US}@1 {AP}@2 {US}@7 {AP}@8"]


def test_a_relay_begins_behind_what_the_target_lacks_of_any_origin() -> None:
    feed = [own(1), Entry(5, AP, 2), own(6), Entry(9, AP, 8), own(10)]
    assert Scene(feed, has={US: 6, AP: 2}).ship() == [f"{AP}@8 {US}@10"]
    assert Scene(feed, has={US: 10}).ship() == [f"{AP}@2 {AP}@8"]
    scene = Scene(feed, has={US: 10, AP: 8})
    assert (scene.sender.position, scene.ship()) == (10, [])


def test_a_node_that_carries_nothing_for_others_need_not_read_what_they_wrote() -> None:
    assert Scene([own(1), Entry(5, AP, 2)], carried=("us1",)).sender.ships_only_own


def test_the_target_is_not_sent_what_its_present_incarnation_wrote() -> None:
    scene = Scene([Entry(5, EU, 3), own(6)], carried=("us1", "eu1"))
    assert scene.ship() == [f"{US}@6"]


def test_the_target_gets_back_what_its_older_incarnations_wrote() -> None:
    """From every node that has it, whoever carries what to whom: it may be the only one."""
    scene = Scene([Entry(5, EU_OLD, 3), own(6)], has={EU: 9, US: 6}, carried=("us1",))
    assert not scene.sender.ships_only_own
    assert scene.ship() == [f"{EU_OLD}@3"]
    scene.acknowledge(1, {EU: 9, US: 6, EU_OLD: 3})
    assert scene.sender.ships_only_own, "from now on nothing of others needs to be read"


def test_what_an_older_incarnation_of_the_target_wrote_may_come_here_during_the_session() -> None:
    scene = Scene([own(6)], has={EU: 9, US: 6}, carried=("us1",))
    ships_only_own = [scene.sender.ships_only_own]
    scene.feed.append(Entry(7, EU_OLD, 3))
    scene.pass_us(S)
    ships_only_own.append(scene.sender.ships_only_own)
    assert ships_only_own == [True, False]
    assert scene.ship() == [f"{EU_OLD}@3"]


def test_what_a_transfer_changed_here_is_told_to_watchers_only() -> None:
    scene = Scene([own(1), Entry(5, TRANSFER, 5), own(6)])
    assert scene.ship() == [f"{US}@1 {US}@6"]


# -- helping out ----------------------------------------------------------------------------------


def test_a_target_that_stands_still_at_an_origin_is_helped_until_it_has_it() -> None:
    """Whoever carries it there has failed, or the way to there."""
    scene = Scene([Entry(5, SA, 3), own(6)], has={US: 6})
    assert scene.ship() == []
    scene.pass_us(0)
    scene.pass_us(ADOPT_US - 1)
    assert scene.ship() == []
    scene.pass_us(1)
    assert scene.ship() == [f"{SA}@3"]
    # As long as it is behind it gets what follows as well.
    scene.feed.append(Entry(8, SA, 7))
    assert scene.ship() == [f"{SA}@7"]
    scene.acknowledge(2, {US: 6, SA: 7})
    scene.pass_us(S)
    scene.feed.append(Entry(10, SA, 9))
    assert scene.ship() == [], "its carrier has its time again"


def test_a_target_that_goes_on_by_itself_is_not_helped() -> None:
    feed = [Entry(5 + 2 * n, SA, 4 + 2 * n) for n in range(9)]
    scene = Scene(feed)
    for entry in feed[:-1]:
        scene.pass_us(ADOPT_US - 1)
        scene.beat({SA: entry.timestamp})
    scene.pass_us(ADOPT_US - 1)
    assert scene.ship() == []


def test_the_clock_of_help_begins_anew_after_the_target_had_everything() -> None:
    scene = Scene([Entry(5, SA, 3)])
    scene.pass_us(0)
    scene.pass_us(ADOPT_US - 1)
    scene.beat({SA: 3})
    scene.pass_us(S)
    scene.feed.append(Entry(8, SA, 7))
    scene.pass_us(S)
    assert scene.ship() == []
    scene.pass_us(ADOPT_US)
    assert scene.ship() == [f"{SA}@7"]


# -- parked at the target -------------------------------------------------------------------------


def test_a_parked_origin_waits_and_the_others_go_on() -> None:
    scene = Scene([Entry(5, AP, 2), own(6)])
    scene.ship()
    parked = {AP: "ahead"}
    told = scene.acknowledge(1, {US: 6}, parked=parked)
    assert told == [Parked(AP, "ahead"), Acknowledged(2, 0)]
    scene.feed += [Entry(8, AP, 7), own(9)]
    assert scene.ship() == [f"{US}@9"]
    assert scene.acknowledge(2, {US: 9}) == [Acknowledged(1, 0)]


def test_a_parked_origin_is_tried_again_from_where_the_target_is() -> None:
    scene = Scene([Entry(5, AP, 2), own(6), Entry(8, AP, 7)])
    scene.ship()
    scene.acknowledge(1, {US: 6}, parked={AP: "ahead"})
    scene.pass_us(PARKED_RETRY_US - 1)
    assert scene.ship() == []
    scene.pass_us(1)
    assert scene.ship() == [f"{AP}@2 {AP}@7"]
    scene.acknowledge(2, {US: 6, AP: 2}, parked={AP: "ahead"})
    scene.pass_us(PARKED_RETRY_US)
    assert scene.ship() == [f"{AP}@7"]
    assert scene.acknowledge(3, {US: 6, AP: 7}) == [Acknowledged(1, 0)]
    scene.feed.append(Entry(10, AP, 9))
    assert scene.ship() == [f"{AP}@9"]


def test_the_writes_of_this_node_are_parked_and_tried_again_like_others() -> None:
    scene = Scene([own(6), own(7)], carried=("us1",))
    scene.ship()
    scene.acknowledge(1, {US: 6}, parked={US: "ahead"})
    assert (scene.sender.acknowledged, scene.sender.sent) == (6, 6)
    scene.pass_us(PARKED_RETRY_US)
    assert scene.ship() == [f"{US}@7"]


def test_the_cursor_stays_before_what_is_parked() -> None:
    """Or the feed would be trimmed of it."""
    scene = Scene([own(4), Entry(5, AP, 2), own(6)], batch_size=1)
    scene.ship()
    scene.acknowledge(3, {US: 6}, parked={AP: "ahead"})
    assert scene.sender.cursor == 4
    scene.pass_us(PARKED_RETRY_US)
    scene.ship()
    scene.acknowledge(4, {US: 6, AP: 2})
    assert scene.sender.cursor == 6


# -- what has been lost on the way ----------------------------------------------------------------


def test_a_batch_that_went_missing_is_found_out_by_the_answer_to_a_later_one() -> None:
    """The later one is of another origin, so the target has met no gap."""
    scene = Scene([own(1), Entry(5, AP, 2), own(6)], batch_size=1)
    assert len(scene.ship()) == 3
    assert scene.acknowledge(2, {AP: 2}) == []
    assert (scene.sender.position, scene.sender.oldest_in_flight) == (0, None)
    assert scene.sender.cursor == 0
    assert scene.ship() == [f"{US}@1", f"{US}@6"]


def test_what_came_before_the_missing_batch_is_acknowledged() -> None:
    scene = Scene([own(1), own(4), Entry(5, AP, 2)], batch_size=1)
    scene.ship()
    assert scene.acknowledge(3, {US: 1, AP: 2}) == [Acknowledged(1, 0)]
    assert scene.ship() == [f"{US}@4"]


# -- the cursor -----------------------------------------------------------------------------------


def test_the_cursor_moves_with_what_is_durable_at_the_target() -> None:
    scene = Scene([own(1), own(2)], durable={}, batch_size=1)
    scene.ship()
    scene.acknowledge(2, {US: 2}, durable={})
    assert (scene.sender.acknowledged, scene.sender.cursor) == (2, 0)
    scene.beat({US: 2}, durable={US: 1})
    scene.pass_us(S)
    assert scene.sender.cursor == 1
    scene.beat({US: 2}, durable={US: 2})
    scene.pass_us(S)
    assert scene.sender.cursor == 2


def test_a_session_that_begins_anew_claims_nothing_that_is_not_durable() -> None:
    scene = Scene([own(1), own(2)], has={US: 2}, durable={US: 1})
    scene.pass_us(S)
    assert scene.sender.cursor == 0
    scene.beat({US: 2})
    scene.pass_us(S)
    assert scene.sender.cursor == 2


def test_what_is_nothing_to_the_target_does_not_hold_its_cursor() -> None:
    scene = Scene([own(1), Entry(5, SA, 2), Entry(6, EU, 3)], has={US: 1})
    scene.pass_us(S)
    assert scene.sender.cursor == 6


@pytest.mark.parametrize(
    ("entry", "holds"), [(Entry(5, AP, 2), True), (Entry(5, EU_OLD, 2), True), (own(5), True)]
)
def test_what_is_owed_to_the_target_holds_its_cursor(entry: Entry, holds: bool) -> None:
    scene = Scene([own(1), entry, Entry(9, SA, 8)], has={US: 1})
    scene.pass_us(S)
    assert (scene.sender.cursor < 5) is holds
    scene.ship()
    scene.acknowledge(1, {**scene.here.vector, SA: 0})
    assert scene.sender.cursor == 9
