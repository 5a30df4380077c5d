"""Scenes of a session after a change of the conflict rules: who gives whose states to whom."""

import pytest

from sidecar.core.relationship import BUCKETS
from sidecar.core.sender import Here, Sender, Transferred
from sidecar.core.session import joined_of, welcome
from sidecar.core.wire import decode_frame, encode_vector
from sidecar.errors import Refused
from tests.unit.test_session import Head
from tests.unit.test_session_relay import EU, ME, TARGET, US
from tests.unit.test_session_transfer import LIMITS, S, asked

Nodes = set[str] | None


def here(joined: Nodes) -> Here:
    nodes = None if joined is None else frozenset(joined)
    return Here({US: 9}, {US: 9}, {US: 5}, 9, joined=nodes)


def told(joined: Nodes) -> dict[str, object]:
    return {} if joined is None else {"joined": sorted(joined)}


def sender(theirs: Nodes) -> Sender:
    """One whose target has all writes."""
    one = Sender(ME, US, "eu1", LIMITS)
    one.hello({}, now_us=0)
    facts = {"vector": encode_vector({US: 9}), **told(theirs)}
    one.on_frame(decode_frame(welcome(TARGET, EU, 1, facts))[0], here(None), now_us=0)
    return one


@pytest.mark.parametrize(
    ("mine", "theirs", "is_asked"),
    [
        (None, None, False),
        ({"us1"}, None, False),
        ({"us1"}, {"eu1"}, True),
        ({"us1", "eu1"}, {"eu1", "us1"}, False),
        ({"us1", "ap1"}, {"eu1", "us1"}, True),
        (None, {"eu1"}, True),
    ],
)
def test_states_go_to_who_has_not_joined_them(mine: Nodes, theirs: Nodes, is_asked: bool) -> None:
    """Although the target has every write: what was settled by the old rules is in no feed."""
    head = asked(sender(theirs), here=here(mine))
    assert (head is not None) == is_asked
    if head is not None:
        assert head.get("joined") == told(mine).get("joined")


def test_what_is_joined_is_not_given_again() -> None:
    one = sender({"eu1"})
    mine = here({"us1"})
    assert asked(one, here=mine) is not None
    ready: Head = {"type": "ready", "transfer": 1, "start": encode_vector({US: 9})}
    one.on_frame({**ready, "next": BUCKETS}, mine, now_us=S)
    done: Head = {"type": "done", "transfer": 1, "vector": encode_vector({US: 9})}
    said = one.on_frame({**done, "joined": ["eu1", "us1"]}, mine, now_us=S)
    assert said == [Transferred(BUCKETS)]
    assert asked(one, 5 * S, mine) is None
    assert asked(one, 6 * S, here({"us1", "ap1"})) is not None, "unless there is more now"


def test_what_a_heartbeat_says_counts() -> None:
    one = sender(None)
    vector = encode_vector({US: 9})
    one.on_frame({"type": "heartbeat", "vector": vector, "joined": ["eu1"]}, here(None), S)
    assert asked(one, here=here(None)) is not None


def test_joined_is_a_list_of_nodes() -> None:
    assert joined_of({}) is None
    assert joined_of({"joined": ["a"]}) == frozenset({"a"})
    for wrong in ("a", [1], {"a": 1}, None):
        with pytest.raises(Refused, match="joined is a list of node ids"):
            joined_of({"joined": wrong})
