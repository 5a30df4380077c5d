"""The texts that travel come back as they were; garbage is refused and nothing else."""

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.relationship import Change, Operation, Relationship, bucket_of, tuple_hash
from sidecar.core.wire import (
    COMPRESS_ABOVE_BYTES,
    MAX_FRAME_BYTES,
    decode_frame,
    decode_transaction,
    decode_vector,
    encode_body,
    encode_frame,
    encode_vector,
)
from sidecar.errors import Refused

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
RELATIONSHIPS = st.builds(
    Relationship,
    st.just("acme"),
    st.builds("document:{}".format, st.text("aé漢🔑\"\\/:*'", min_size=1)),
    st.sampled_from(["viewer", "a/b-c_d"]),
    st.builds("group:{}#member".format, st.text('aé漢🔑"\\/:*', min_size=1)),
    st.none() | TEXT.map(json.dumps),
    st.none() | st.integers(1, 253_402_300_799_999_999),
)
CHANGES = st.lists(st.builds(Change, st.sampled_from(Operation), RELATIONSHIPS), max_size=5)
HEADS = st.dictionaries(
    TEXT, TEXT | st.integers() | st.booleans() | st.lists(TEXT), max_size=4
).map(lambda head: {**head, "type": "batch"})
LINE = '{"format":1,"origin":"node1.a","timestamp":"7","previous":"5","context":{},'


def as_stored(change: Change) -> Change:
    """A delete has no payload."""
    if change.operation is Operation.INSERT:
        return change
    return Change(Operation.DELETE, Relationship(*change.relationship.identity))


@given(CHANGES)
def test_a_transaction_comes_back(changes: list[Change]) -> None:
    text = LINE + encode_body("acme", changes)
    assert "\n" not in text  # it is one line of a frame
    back = decode_transaction(text.encode())
    assert (back.tenant, back.origin, back.timestamp) == ("acme", "node1.a", 7)
    assert back.changes == tuple(as_stored(change) for change in changes)


@given(CHANGES)
def test_there_are_no_nulls_and_no_numbers_that_lua_would_cut(changes: list[Change]) -> None:
    def look(value: object) -> None:
        assert value is not None
        assert not isinstance(value, int) or value < 2**53
        for inner in value if isinstance(value, list) else []:
            look(inner)

    look(json.loads("{" + encode_body("acme", changes))["changes"])


def test_a_change_carries_its_bucket_and_its_hash() -> None:
    one = Relationship("acme", "folder:é", "viewer", "user:a", '{"a":1}', 5)
    (row,) = json.loads("{" + encode_body("acme", [Change(Operation.INSERT, one)]))["changes"]
    assert row == [
        *("+", "folder:é", "viewer", "user:a"),
        *(bucket_of("acme", "folder:é"), tuple_hash(one.identity)),
        *('{"a":1}', "5"),
    ]


def test_what_became_visible_here_stands_in_for_what_was_written() -> None:
    """By number, from 1: left out, deleted instead, inserted with another payload instead."""
    rows = [
        Change(Operation.INSERT, Relationship("acme", f"doc:{n}", "viewer", "user:a"))
        for n in range(1, 6)
    ]
    text = (LINE + encode_body("acme", rows)).encode()
    effects = b'{"1":["="],"3":["-"],"4":["+","{\\"a\\":1}","77"],"5":["+","",""]}'
    seen = [
        (change.operation.value, *change.relationship.identity[1:2], *payload(change.relationship))
        for change in decode_transaction(text, effects).changes
    ]
    assert seen == [
        ("insert", "doc:2", None, None),
        ("delete", "doc:3", None, None),
        ("insert", "doc:4", '{"a":1}', 77),
        ("insert", "doc:5", None, None),
    ]


def payload(one: Relationship) -> tuple[str | None, int | None]:
    return one.condition, one.expires_at


@given(st.dictionaries(TEXT, st.integers(0, 2**53)))
def test_a_vector_comes_back(vector: dict[str, int]) -> None:
    assert decode_vector(json.loads(json.dumps(encode_vector(vector)))) == vector


@pytest.mark.parametrize(
    "value",
    [
        *(None, 5, "text", [], [["n.1", "5"]], {"n.1": 5}, {"n.1": None}, {"n.1": ""}),
        *({"n.1": "-5"}, {"n.1": "5.0"}, {"n.1": " 5"}, {"n.1": "٥"}, {"n.1": ["5"]}),
        *({"n.1": "9" * 5_000}, {"n.1": True}, {"n.1": "5", "n.2": "x"}),
    ],
    ids=str,
)
def test_what_is_no_vector(value: object) -> None:
    with pytest.raises(Refused) as refused:
        decode_vector(value)
    assert refused.value.code == "bad_frame"


@given(HEADS, st.lists(st.builds(encode_body, st.just("acme"), CHANGES), max_size=3))
def test_a_frame_comes_back(head: dict[str, object], bodies: list[str]) -> None:
    lines = [(LINE + body).encode() for body in bodies]
    got, transactions = decode_frame(encode_frame(head, lines))
    assert got == head
    assert transactions == b"\n".join(lines)


def test_small_frames_are_text_and_large_ones_are_compressed() -> None:
    head = {"type": "batch"}
    bare = len(json.dumps(head, separators=(",", ":"))) + 1
    largest_text = b"x" * (COMPRESS_ABOVE_BYTES - bare)
    frame = encode_frame(head, [largest_text])
    assert isinstance(frame, str)
    assert decode_frame(frame) == (head, largest_text)
    frame = encode_frame(head, [largest_text + b"x"])
    assert isinstance(frame, bytes)
    assert len(frame) < 1_000
    assert decode_frame(frame) == (head, largest_text + b"x")


def test_a_frame_of_the_largest_size_passes_and_a_larger_one_does_not() -> None:
    """A few kilobytes must not become more memory than a frame may take."""
    begin = b'{"type":"batch"}\n'
    largest = begin + b" " * (MAX_FRAME_BYTES - len(begin))
    assert decode_frame(zlib.compress(largest, 1))[0] == {"type": "batch"}
    for bomb in (largest + b" ", b" " * (4 * MAX_FRAME_BYTES)):
        with pytest.raises(Refused, match="at most") as refused:
            decode_frame(zlib.compress(bomb, 1))
        assert refused.value.code == "bad_frame"


@pytest.mark.parametrize(
    "message",
    [
        *("", "\n", "hello", "null", "5", "[]", "{}", '{"type":null}', '{"type":5}', '{"type"'),
        *('"type"', '\n{"type":"hello"}', "[" * 100_000, '{"type":"a","b":' + "9" * 5_000 + "}"),
        *("\ud800", '{"type":"batch"}\n\ud800'),
        *(b"", b"\x00", b"hello", b'{"type":"hello"}', b"\x78\x9c", b"\xff" * 100),
        zlib.compress(b'{"type":"hello"}')[:-4],
        zlib.compress(b""),
        zlib.compress(b"[]"),
        zlib.compress(b"\xff\xfe"),
        zlib.compress('{"type":"hello"}'.encode("utf-16")),
        # The lines behind the head go to the store as they are: they must be text as well.
        zlib.compress(b'{"type":"batch"}\n{"tenant":"\xff"}'),
        zlib.compress(b'{"type":"batch"}\n{"tenant":"\xed\xa0\x80"}'),
        zlib.compress(b'{"type":"batch"}\n{"tenant":"\xc0\xaf"}'),
        zlib.compress(b'{"type":"hello"}') + b"more",
    ],
    ids=lambda message: repr(message[:30]),
)
def test_garbage_is_a_bad_frame(message: str | bytes) -> None:
    with pytest.raises(Refused) as refused:
        decode_frame(message)
    assert refused.value.code == "bad_frame"


def what_it_is(message: str | bytes) -> str:
    try:
        head, _ = decode_frame(message)
    except Refused as refused:
        return refused.code
    return "frame" if isinstance(head["type"], str) else "no frame"


@given(TEXT | st.binary() | st.binary().map(zlib.compress))
def test_whatever_comes_is_a_frame_or_a_bad_frame(message: str | bytes) -> None:
    assert what_it_is(message) in {"frame", "bad_frame"}


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 255))
def test_a_frame_with_a_fault_is_a_frame_or_a_bad_frame(body: bytes, at: int, byte: int) -> None:
    frame = bytearray(zlib.compress(b'{"type":"batch","batch":1}\n' + body))
    frame[at % len(frame)] ^= byte
    assert what_it_is(bytes(frame)) in {"frame", "bad_frame"}
