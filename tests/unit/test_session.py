"""Scenes of a session: hello, batches in flight, acknowledgements, and peers that talk nonsense."""

import dataclasses
import itertools
import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.sender import (
    HEARTBEAT_US,
    MAX_BATCH_BYTES,
    Acknowledged,
    Action,
    Close,
    Established,
    Here,
    Limits,
    Parked,
    ReadStates,
    Send,
    Sender,
    Transferred,
)
from sidecar.core.session import AckOutcome, Party, acknowledge, greet, refuse, welcome
from sidecar.core.wire import decode_frame, encode_vector
from sidecar.errors import Refused

ORIGIN, OTHER = "us1.mwsgf5bo35gt", "eu1.mwsgf5bo35gu"
REGIONS = {"us1": "us", "eu1": "eu", "ap1": "ap"}
US = Party("us1", "us", "global.0", 1, 1, "lww:123456")
EU = Party("eu1", "eu", "global.0", 1, 1, "lww:123456")
LIMITS = Limits(window=3, batch_size=10, timeout_us=10_000_000)
HERE = Here({ORIGIN: 99}, {ORIGIN: 99}, {}, 99)
FACTS: dict[str, object] = {"clock": "9", "vector": {ORIGIN: "5"}}
Head = dict[str, object]


@dataclass(frozen=True)
class Entry:
    """An entry of a feed that nobody stores."""

    revision: int
    changes: int = 1
    origin: str = ORIGIN
    text: bytes = b"{}"

    @property
    def timestamp(self) -> int:
        return self.revision


def head_of(action: Action) -> Head:
    assert isinstance(action, Send)
    return decode_frame(action.frame)[0]


def sender(limits: Limits = LIMITS, **vector: int) -> Sender:
    """One that the target has just welcomed, with this node's writes up to `own`."""
    one = Sender(US, ORIGIN, "eu1", limits)
    one.hello(FACTS, now_us=0)
    own = {ORIGIN: vector["own"]} if "own" in vector else {}
    (established,) = one.on_frame(welcoming(own), HERE, now_us=0)
    assert established == Established()
    return one


def welcoming(vector: dict[str, int]) -> Head:
    return decode_frame(welcome(EU, OTHER, 1, {"vector": encode_vector(vector)}))[0]


def answer(
    batch: object,
    own: int,
    outcome: AckOutcome = AckOutcome.APPLIED,
    parked: dict[str, str] | None = None,
) -> Head:
    vector = {ORIGIN: own, OTHER: 3}
    return decode_frame(acknowledge(batch, outcome, vector, vector, parked))[0]


def shipped(actions: list[Action]) -> list[tuple[object, int | None]]:
    """Number and changes of each batch."""
    return [(head_of(action)["batch"], getattr(action, "changes", None)) for action in actions]


def hello(**changes: object) -> Head:
    """The hello of us1 to eu1, changed; None leaves a field out."""
    (action,) = Sender(US, ORIGIN, "eu1", LIMITS).hello(FACTS, now_us=0)
    head = head_of(action) | changes
    return {name: value for name, value in head.items() if value is not None}


# -- hello ----------------------------------------------------------------------------------------


def test_a_hello_that_agrees_is_welcome() -> None:
    assert greet(hello(), EU, REGIONS) == ("us1", 1)
    assert hello()["vector"] == {ORIGIN: "5"}


@pytest.mark.parametrize("theirs", [[1, 1], [0, 1], [1, 2], [0, 7]])
def test_the_highest_common_protocol_is_spoken(theirs: list[int]) -> None:
    assert greet(hello(protocols=theirs), EU, REGIONS) == ("us1", 1)


@pytest.mark.parametrize(
    "theirs",
    [
        *([2, 3], [0, 0], [2, 1], [], [1], [1, 1, 1], 1, "1", "11", {"1": 1}, None, [True, True]),
        *([1.0, 1.0], ["1", "1"], [None, None], [[1], [1]], "\ud800", ["\ud800"]),
    ],
    ids=repr,
)
def test_without_a_common_protocol_both_ranges_are_named(theirs: object) -> None:
    with pytest.raises(Refused) as refused:
        greet(hello(protocols=theirs), EU, REGIONS)
    assert refused.value.code == "protocol_mismatch"
    assert "[1, 1]" in refused.value.message
    if isinstance(theirs, list) and "\ud800" not in theirs:
        assert str(theirs) in refused.value.message
    assert decode_frame(refuse(refused.value.code, refused.value.message))


@pytest.mark.parametrize(
    ("field", "theirs", "code"),
    [
        ("region", "eu", "region_mismatch"),
        ("partition", "eu-only.0", "partition_mismatch"),
        ("partitions", 4, "partitions_mismatch"),
        ("format", 2, "format_mismatch"),
        ("rules", "delete_wins:654321", "rules_mismatch"),
        ("to", "ap1", "wrong_node"),
    ],
)
def test_nodes_that_would_disagree_part_and_both_values_are_named(
    field: str, theirs: object, code: str
) -> None:
    mine = {**EU.to_json(), "region": "us", "to": "eu1"}[field]
    for value, shown in ((theirs, str(theirs)), (None, "None"), ([], "[]"), ("\ud800", "")):
        with pytest.raises(Refused) as refused:
            greet(hello(**{field: value}), EU, REGIONS)
        assert refused.value.code == code
        assert shown in refused.value.message
        assert str(mine) in refused.value.message
        # Whatever it quotes, it can be sent.
        assert decode_frame(refuse(refused.value.code, refused.value.message))


@pytest.mark.parametrize("node", ["eu1", "gone", "", None, 5, ["us1"], {"us1": 1}, "\ud800"])
def test_only_other_nodes_of_the_topology_are_welcome(node: object) -> None:
    with pytest.raises(Refused) as refused:
        greet(hello(node=node), EU, REGIONS)
    assert refused.value.code == "unknown_node"
    assert decode_frame(refuse(refused.value.code, refused.value.message))


@pytest.mark.parametrize("kind", ["batch", "welcome", "", "HELLO", None])
def test_a_session_begins_with_hello(kind: str | None) -> None:
    with pytest.raises(Refused) as refused:
        greet(hello(type=kind), EU, REGIONS)
    assert refused.value.code == "bad_frame"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats()
    | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["type", "protocols", "node", "region", "partition", "partitions", "format", "rules", "to"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_hello_is_understood_or_refused(changes: Head) -> None:
    try:
        node, protocol = greet({**hello(), **changes}, EU, REGIONS)
    except Refused as refused:
        frame = refuse(refused.code, refused.message)
    else:
        frame = welcome(EU, OTHER, protocol, FACTS)
        assert node == "us1"
    assert decode_frame(frame)


def test_another_node_at_the_endpoint_is_named() -> None:
    one = Sender(US, ORIGIN, "ap1", LIMITS)
    one.hello({}, now_us=0)
    (close,) = one.on_frame(welcoming({}), HERE, now_us=0)
    assert isinstance(close, Close)
    assert close.code == "wrong_node"
    assert "ap1" in close.message
    assert "eu1" in close.message
    assert not one.is_established
    assert one.room == 0


def test_the_reason_of_a_refusal_is_handed_on() -> None:
    one = Sender(US, ORIGIN, "eu1", LIMITS)
    one.hello({}, now_us=0)
    head = decode_frame(refuse("rules_mismatch", "eu1 says lww, us1 says delete_wins"))[0]
    assert one.on_frame(head, HERE, now_us=0) == [
        Close("rules_mismatch", "eu1 says lww, us1 says delete_wins")
    ]


# -- batches --------------------------------------------------------------------------------------


def test_the_vector_of_the_target_says_where_to_start() -> None:
    one = sender(own=7)
    assert (one.position, one.acknowledged) == (7, 7)
    assert sender().position == 0


def test_batches_hold_whole_transactions_up_to_the_limit() -> None:
    one = sender()
    feed = [Entry(n, changes) for n, changes in enumerate([4, 6, 1, 10, 11, 2], 1)]
    actions = one.on_entries(0, feed, HERE, now_us=0)
    assert shipped(actions) == [(1, 10), (2, 1), (3, 10)]
    assert (one.position, one.room) == (4, 0)
    one.on_frame(answer(3, own=4), HERE, now_us=1)
    assert shipped(one.on_entries(4, feed[4:], HERE, now_us=1)) == [(4, 11), (5, 2)]


def test_batches_hold_up_to_a_mebibyte_or_one_transaction() -> None:
    one = sender(Limits(window=9, batch_size=100, timeout_us=1))
    half = b"x" * (MAX_BATCH_BYTES // 2)
    texts = [half, half, b"y", b"z" * (MAX_BATCH_BYTES + 1), b"y", b"y"]
    actions = one.on_entries(
        0, [Entry(n, 1, ORIGIN, t) for n, t in enumerate(texts, 1)], HERE, now_us=0
    )
    assert shipped(actions) == [(1, 2), (2, 1), (3, 1), (4, 2)]


def test_a_batch_holds_the_transactions_as_they_are() -> None:
    one = sender()
    texts = [b'{"a":1}', '{"é":2}'.encode()]
    (action,) = one.on_entries(0, [Entry(n, 1, ORIGIN, t) for n, t in enumerate(texts, 1)], HERE, 0)
    assert isinstance(action, Send)
    assert decode_frame(action.frame)[1] == b"\n".join(texts)


def test_empty_transactions_travel_too() -> None:
    """The first of an incarnation is empty, and the next one continues it."""
    one = sender()
    assert shipped(one.on_entries(0, [Entry(1, 0), Entry(2, 1)], HERE, now_us=0)) == [(1, 1)]


def test_what_others_wrote_is_left_to_them_and_what_is_there_is_not_sent_again() -> None:
    one = sender(own=3)
    feed = [Entry(4, 1, OTHER), Entry(5), Entry(6, 1, OTHER), Entry(7), Entry(8, 1, OTHER)]
    actions = one.on_entries(3, feed, HERE, now_us=0)
    assert shipped(actions) == [(1, 2)]
    assert one.position == 8
    assert one.oldest_in_flight == 5
    assert sender(own=5).on_entries(5, [Entry(6, 1, OTHER)], HERE, now_us=0) == []


def test_entries_that_do_not_continue_the_session_are_left_alone() -> None:
    """They were asked for before the session went back."""
    one = sender()
    one.on_entries(0, [Entry(1), Entry(2)], HERE, now_us=0)
    assert one.on_entries(0, [Entry(1), Entry(2)], HERE, now_us=0) == []
    assert one.position == 2
    unwelcome = Sender(US, ORIGIN, "eu1", LIMITS)
    assert unwelcome.on_entries(0, [Entry(1)], HERE, now_us=0) == []


def test_an_acknowledgement_is_also_one_for_the_batches_before() -> None:
    one = sender(Limits(window=3, batch_size=1, timeout_us=10_000_000))
    one.on_entries(0, [Entry(1), Entry(2), Entry(3)], HERE, now_us=100)
    had_shipped = one.has_shipped
    assert one.on_frame(answer(2, own=2), HERE, now_us=350) == [Acknowledged(1, 250)] * 2
    assert (had_shipped, one.has_shipped) == (False, True)
    assert (one.acknowledged, one.oldest_in_flight, one.room) == (2, 3, 2)


def test_an_acknowledgement_of_nothing_is_ignored() -> None:
    one = sender()
    one.on_entries(0, [Entry(1)], HERE, now_us=0)
    before = (one.position, one.acknowledged, one.room)
    strange: list[object] = [0, 2, -1, None, "1", [], 10**30]
    for number in strange:
        assert one.on_frame({**answer(1, own=99), "batch": number}, HERE, now_us=1) == []
    assert (one.position, one.acknowledged, one.room) == before
    one.on_frame(answer(1, own=1), HERE, now_us=1)
    assert one.on_frame(answer(1, own=1), HERE, now_us=1) == []
    assert one.acknowledged == 1


def test_a_gap_takes_the_session_back_to_what_the_target_has() -> None:
    one = sender(Limits(window=3, batch_size=1, timeout_us=10_000_000), own=1)
    feed = [Entry(n) for n in range(2, 7)]
    one.on_entries(1, feed, HERE, now_us=0)
    assert one.on_frame(answer(2, own=2, outcome=AckOutcome.GAP), HERE, now_us=1) == []
    assert (one.position, one.acknowledged, one.room) == (2, 2, 3)
    # The answers to what was in flight behind it come too late to mean anything.
    assert one.on_frame(answer(3, own=2, outcome=AckOutcome.GAP), HERE, now_us=1) == []
    assert shipped(one.on_entries(2, feed[1:], HERE, now_us=2)) == [(4, 1), (5, 1), (6, 1)]


def test_what_is_held_back_at_the_target_is_told_once_and_ends_nothing() -> None:
    one = sender(Limits(window=3, batch_size=1, timeout_us=10_000_000))
    one.on_entries(0, [Entry(1), Entry(2)], HERE, now_us=0)
    held = {ORIGIN: "ahead"}
    assert one.on_frame(answer(1, own=0, parked=held), HERE, now_us=1) == [
        Parked(ORIGIN, "ahead"),
        Acknowledged(1, 1),
    ]
    assert one.on_frame(answer(2, own=0, parked=held), HERE, now_us=2) == [Acknowledged(1, 2)]
    assert (one.acknowledged, one.room) == (0, 3)


# -- time -----------------------------------------------------------------------------------------


def test_a_heartbeat_each_second_at_the_tip_or_not() -> None:
    one = sender()
    beats = [now_us for now_us in range(0, 5_000_000, 250_000) if one.on_tick(HERE, FACTS, now_us)]
    assert [b - a for a, b in itertools.pairwise(beats)] == [HEARTBEAT_US] * 3
    one.on_entries(0, [Entry(1)], HERE, now_us=5_000_000)
    (beat,) = one.on_tick(HERE, FACTS, 6_000_000)
    assert head_of(beat) == {"type": "heartbeat", "clock": "9", "vector": {ORIGIN: "5"}}


def test_a_silent_target_is_given_up() -> None:
    one = Sender(US, ORIGIN, "eu1", LIMITS)
    one.hello({}, now_us=1_000)
    assert one.on_tick(HERE, FACTS, 10_001_000) == []
    (close,) = one.on_tick(HERE, FACTS, 10_001_001)
    assert isinstance(close, Close)
    assert close.code == "timeout"


def test_a_target_that_beats_and_never_acknowledges_is_given_up() -> None:
    one = sender()
    one.on_entries(0, [Entry(1)], HERE, now_us=0)
    beat: Head = {"type": "heartbeat", "clock": "9", "vector": {}}
    assert one.on_frame(beat, HERE, now_us=9_999_999) == []
    assert not any(isinstance(a, Close) for a in one.on_tick(HERE, FACTS, 10_000_000))
    (close,) = one.on_tick(HERE, FACTS, 10_000_001)
    assert isinstance(close, Close)
    assert "acknowledged nothing" in close.message


def test_a_target_that_beats_is_kept_while_nothing_is_in_flight() -> None:
    one = sender()
    for now_us in range(0, 60_000_000, 1_000_000):
        one.on_frame({"type": "heartbeat", "clock": "9", "vector": {}}, HERE, now_us)
        assert not any(isinstance(a, Close) for a in one.on_tick(HERE, FACTS, now_us))


# -- peers that talk nonsense ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hello", "batch", "", "WELCOME", "\ud800"])
def test_an_unexpected_frame_ends_the_session(kind: str) -> None:
    (close,) = sender().on_frame({"type": kind}, HERE, now_us=1)
    assert isinstance(close, Close)
    assert close.code == "bad_frame"


@pytest.mark.parametrize("kind", ["ack", "heartbeat"])
def test_nothing_is_acknowledged_before_the_welcome(kind: str) -> None:
    one = Sender(US, ORIGIN, "eu1", LIMITS)
    one.hello({}, now_us=0)
    (close,) = one.on_frame({**answer(1, own=1), "type": kind}, HERE, now_us=1)
    assert isinstance(close, Close)
    assert close.code == "bad_frame"


def test_a_second_welcome_ends_the_session() -> None:
    """It would take the session back under batches that are in flight."""
    one = sender()
    one.on_entries(0, [Entry(1)], HERE, now_us=0)
    (close,) = one.on_frame(welcoming({}), HERE, now_us=1)
    assert isinstance(close, Close)
    assert close.code == "bad_frame"


def ends_or_goes_on(one: Sender, head: Head) -> bool:
    try:
        actions = one.on_frame(head, HERE, now_us=1)
    except Refused as refused:
        return refused.code == "bad_frame"
    known = Close | Established | Acknowledged | Parked | Send | ReadStates | Transferred
    return all(isinstance(action, known) for action in actions)


@pytest.mark.parametrize(
    "changes",
    [
        *([{"outcome": ""}, {"outcome": "APPLIED"}, {"outcome": "lost"}, {"outcome": None}]),
        *([{"outcome": 5}, {"outcome": ["applied"]}, {"outcome": "\ud800"}]),
        *([{"vector": None}, {"vector": 5}, {"vector": "x"}, {"vector": []}]),
        *([{"vector": {ORIGIN: 5}}, {"vector": {ORIGIN: "-1"}}, {"vector": {ORIGIN: "9" * 5_000}}]),
    ],
    ids=str,
)
def test_an_acknowledgement_that_is_none_is_a_bad_frame(changes: Head) -> None:
    one = sender()
    one.on_entries(0, [Entry(1)], HERE, now_us=0)
    with pytest.raises(Refused) as refused:
        one.on_frame({**answer(1, own=1), **changes}, HERE, now_us=1)
    assert refused.value.code == "bad_frame"
    assert (one.acknowledged, one.room) == (0, 2)


@given(
    st.sampled_from(
        ["welcome", "refuse", "ack", "heartbeat", "batch", "ready", "page_ack", "done", "busy", "x"]
    ),
    st.dictionaries(
        st.sampled_from(
            [
                *("node", "vector", "batch", "outcome", "code", "message", "clock"),
                *("durable", "parked", "origin", "transfer", "start", "next"),
            ]
        ),
        JSON,
    ),
    st.booleans(),
)
def test_whatever_a_target_says_the_session_ends_or_goes_on(
    kind: str, changes: Head, is_established: bool
) -> None:
    one = sender() if is_established else Sender(US, ORIGIN, "eu1", LIMITS)
    if is_established:
        one.on_entries(0, [Entry(1)], HERE, now_us=0)
    assert ends_or_goes_on(one, {**answer(1, own=1), **changes, "type": kind})


@given(JSON)
def test_a_batch_is_called_by_a_number_or_refused(number: object) -> None:
    if isinstance(number, int):
        assert json.loads(acknowledge(number, AckOutcome.APPLIED, {}, {}))["batch"] == number
        return
    with pytest.raises(Refused) as refused:
        acknowledge(number, AckOutcome.APPLIED, {}, {})
    assert refused.value.code == "bad_frame"


def test_a_node_in_doubt_begins_no_transfer_until_it_is_trusted_again() -> None:
    """What it lacks would read as deleted at the target."""
    one = sender()
    here = Here({ORIGIN: 99}, {ORIGIN: 99}, {ORIGIN: 50}, 99)
    doubted = dataclasses.replace(here, is_in_doubt=True)

    def began(known: Here, now_us: int) -> bool:
        sent = one.on_tick(known, FACTS, now_us)
        return any(head_of(action)["type"] == "transfer" for action in sent)

    assert not began(doubted, HEARTBEAT_US)
    assert began(here, 2 * HEARTBEAT_US)
