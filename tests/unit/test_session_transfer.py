"""Scenes of a state transfer in a session: when it is asked for, page after page, and its ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.relationship import BUCKETS
from sidecar.core.sender import (
    TRANSFER_RETRY_US,
    Close,
    Established,
    Here,
    Limits,
    ReadStates,
    Send,
    Sender,
    Transferred,
)
from sidecar.core.session import heartbeat, welcome
from sidecar.core.wire import decode_frame, encode_vector
from sidecar.errors import Refused
from tests.unit.test_session import JSON, Head, ends_or_goes_on, head_of
from tests.unit.test_session_relay import AP, EU, ME, SA, TARGET, US, Entry, batches, own

S = 1_000_000
LIMITS = Limits(window=8, batch_size=100, timeout_us=10 * S)
HERE = Here({US: 9, AP: 8}, {US: 9, AP: 7}, {US: 5}, 10)
ASKED: Head = {"type": "transfer", "transfer": 1, "start": encode_vector(HERE.durable)}


def sender(has: dict[str, int] | None = None) -> Sender:
    """One that eu1 has just welcomed; what it has lies below the floor of the feed of us1."""
    one = Sender(ME, US, "eu1", LIMITS, ("us1", "ap1"))
    one.hello({}, now_us=0)
    facts = {"vector": encode_vector({US: 4} if has is None else has)}
    head = decode_frame(welcome(TARGET, EU, 1, facts))[0]
    assert one.on_frame(head, HERE, now_us=0) == [Established()]
    return one


def asked(one: Sender, now_us: int = S, here: Here = HERE) -> Head | None:
    """The transfer that is asked for as time passes, if one is."""
    heads = [head_of(action) for action in one.on_tick(here, {}, now_us)]
    return next((head for head in heads if head["type"] == "transfer"), None)


def begun(following: int = 0, start: dict[str, int] | None = None) -> Sender:
    one = sender()
    assert asked(one) == ASKED
    answer = {"start": encode_vector(start or dict(HERE.durable)), "next": following}
    said = one.on_frame({"type": "ready", "transfer": 1, **answer}, HERE, now_us=S)
    assert said == [Transferred(following), ReadStates(1, following)]
    return one


# -- when it is asked for -------------------------------------------------------------------------


def test_a_target_below_the_floor_is_asked_to_take_a_transfer() -> None:
    """It starts at what no crash here takes away, and the feed is kept from there."""
    one = sender()
    kept = [one.keeps_feed_after]
    assert asked(one) == ASKED
    kept.append(one.keeps_feed_after)
    assert kept == [None, HERE.revision]
    assert asked(one, 5 * S) is None, "once"


@pytest.mark.parametrize("has", [{US: 5}, {US: 9, AP: 8}, {US: 6, AP: 1}])
def test_a_target_that_the_feed_still_reaches_needs_none(has: dict[str, int]) -> None:
    assert asked(sender(has)) is None


def test_who_carries_an_origin_asks() -> None:
    here = Here({SA: 9, US: 9}, {SA: 9, US: 9}, {SA: 5}, 10)
    assert asked(sender({US: 9}), here=here) is None
    one = sender({US: 9})
    assert asked(one, 0, here=here) is None
    assert asked(one, 3 * S, here=here) is not None, "also who helps out"


def test_what_lies_behind_the_floor_is_not_streamed_before_and_other_origins_are() -> None:
    """Behind a gap nothing would be taken."""
    one = sender()
    feed = [own(6), Entry(8, AP, 7), own(9)]
    after = one.position
    following = [entry for entry in feed if entry.revision > after]
    assert batches(one.on_entries(after, following, HERE, 0)) == [f"{AP}@7"]


# -- how it goes ----------------------------------------------------------------------------------


def test_a_transfer_goes_from_page_to_page_and_then_the_feed_goes_on() -> None:
    one = begun()
    lines = [b'{"bucket":0}', b'{"bucket":1}']
    (page,) = one.on_states(ReadStates(1, 0), HERE.vector, 2, lines)
    assert isinstance(page, Send)
    head, sent = decode_frame(page.frame)
    assert head == {"type": "page", "transfer": 1, "first": 0, "next": 2}
    assert sent == b"\n".join(lines)
    acked: Head = {"type": "page_ack", "transfer": 1, "next": 2}
    assert one.on_frame(acked, HERE, now_us=2 * S) == [Transferred(2), ReadStates(1, 2)]
    one.on_states(ReadStates(1, 2), HERE.vector, BUCKETS, [])
    (end,) = one.on_frame({**acked, "next": BUCKETS}, HERE, now_us=3 * S)
    assert head_of(end) == {"type": "transfer_end", "transfer": 1}
    done: Head = {"type": "done", "transfer": 1, "vector": encode_vector({US: 8, AP: 7})}
    assert one.on_frame(done, HERE, now_us=3 * S) == [Transferred(BUCKETS)]
    assert one.keeps_feed_after is None
    assert (one.acknowledged, one.sent) == (8, 8)
    feed = [Entry(8, AP, 7), own(9), Entry(10, AP, 8)]
    following = [entry for entry in feed if entry.revision > one.position]
    assert batches(one.on_entries(one.position, following, HERE, 3 * S)) == [f"{US}@9 {AP}@8"]
    assert asked(one, 5 * S) is None


def test_a_transfer_that_was_cut_short_goes_on_where_it_was() -> None:
    """It is judged by the vector at which it began, which the source must still have."""
    one = begun(following=1_000, start={US: 6})
    (page,) = one.on_states(ReadStates(1, 1_000), {US: 6}, 1_200, [])
    assert head_of(page) == {"type": "page", "transfer": 1, "first": 1_000, "next": 1_200}


def test_a_source_that_has_lost_what_it_began_with_ends_the_session() -> None:
    one = begun()
    (close,) = one.on_states(ReadStates(1, 0), {US: 9, AP: 6}, 2, [])
    assert isinstance(close, Close)
    assert close.code == "source_lost"


def test_a_target_that_takes_in_another_transfer_is_asked_again_later() -> None:
    one = sender()
    asked(one)
    assert one.on_frame({"type": "busy", "transfer": 1}, HERE, now_us=2 * S) == []
    assert one.keeps_feed_after is None
    assert asked(one, 2 * S + TRANSFER_RETRY_US - 1) is None
    again = asked(one, 2 * S + TRANSFER_RETRY_US)
    assert again == {**ASKED, "transfer": 2}


def test_a_done_transfer_that_brought_too_little_is_asked_for_again() -> None:
    """The floor may have risen over its start while it was under way."""
    one = begun()
    done: Head = {"type": "done", "transfer": 1, "vector": encode_vector({US: 9, AP: 7})}
    one.on_frame(done, HERE, now_us=2 * S)
    risen = Here({US: 99, AP: 8}, {US: 99, AP: 8}, {US: 50}, 100)
    assert asked(one, 3 * S, risen) == {
        "type": "transfer",
        "transfer": 2,
        "start": encode_vector(risen.durable),
    }


# -- what goes wrong ------------------------------------------------------------------------------


def test_a_target_that_beats_and_does_not_go_on_is_given_up() -> None:
    one = begun()
    beat = decode_frame(heartbeat({"vector": encode_vector({US: 4})}))[0]
    for now_us in range(2 * S, 11 * S, S):
        one.on_frame(beat, HERE, now_us)
        assert not any(isinstance(action, Close) for action in one.on_tick(HERE, {}, now_us))
    one.on_frame(beat, HERE, 11 * S)
    (close,) = one.on_tick(HERE, {}, 11 * S + 1)
    assert isinstance(close, Close)
    assert close.code == "timeout"
    assert "state transfer" in close.message


@pytest.mark.parametrize("kind", ["ready", "page_ack", "done", "busy"])
@pytest.mark.parametrize("number", [0, 2, None, "1", [1]])
def test_a_word_about_another_transfer_is_ignored(kind: str, number: object) -> None:
    one = begun()
    head: Head = {"type": kind, "transfer": number, "next": 7, "vector": {}, "start": {}}
    assert one.on_frame(head, HERE, now_us=2 * S) == []
    assert one.keeps_feed_after == HERE.revision
    assert sender().on_frame({**head, "transfer": 1}, HERE, now_us=S) == []


@pytest.mark.parametrize("kind", ["ready", "page_ack"])
@pytest.mark.parametrize("bucket", [None, -1, BUCKETS + 1, "7", 7.0, [7]])
def test_a_bucket_that_is_none_is_a_bad_frame(kind: str, bucket: object) -> None:
    one = begun()
    head: Head = {"type": kind, "transfer": 1, "next": bucket, "start": {}}
    with pytest.raises(Refused) as refused:
        one.on_frame(head, HERE, now_us=2 * S)
    assert refused.value.code == "bad_frame"


def test_pages_that_were_read_for_a_transfer_that_is_over_are_not_sent() -> None:
    one = begun()
    one.on_frame({"type": "busy", "transfer": 1}, HERE, now_us=S)
    assert one.on_states(ReadStates(1, 0), HERE.vector, 2, []) == []


@pytest.mark.parametrize("request_", [ReadStates(1, 0), ReadStates(2, 2), ReadStates(1, 4)])
def test_pages_other_than_the_one_that_follows_are_not_sent(request_: ReadStates) -> None:
    one = begun()
    one.on_frame({"type": "page_ack", "transfer": 1, "next": 2}, HERE, now_us=S)
    assert one.on_states(request_, HERE.vector, 5, []) == []


@pytest.mark.parametrize("kind", ["ready", "page_ack"])
@pytest.mark.parametrize("bucket", [0, 1, 2])
def test_a_word_that_comes_twice_asks_for_nothing_again(kind: str, bucket: int) -> None:
    """Otherwise two rows of pages would be under way, each without what the other has."""
    one = begun()
    one.on_frame({"type": "page_ack", "transfer": 1, "next": 2}, HERE, now_us=S)
    again: Head = {"type": kind, "transfer": 1, "next": bucket, "start": {}}
    assert one.on_frame(again, HERE, now_us=S) == []


@given(
    st.sampled_from(["ready", "page_ack", "done", "busy", "ack", "heartbeat", "refuse"]),
    st.dictionaries(st.sampled_from(["next", "start", "vector", "durable", "parked"]), JSON),
)
def test_whatever_a_target_says_of_a_transfer_the_session_ends_or_goes_on(
    kind: str, changes: Head
) -> None:
    one = begun()
    good: Head = {"transfer": 1, "next": 7, "start": {}, "vector": {}}
    assert ends_or_goes_on(one, {**good, **changes, "type": kind})
