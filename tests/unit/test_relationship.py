"""What a relationship may be made of, its canonical payload, and the hashes that stand for it."""

import itertools
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.relationship import (
    BUCKETS,
    MAX_CONDITION_BYTES,
    MAX_CONDITION_DEPTH,
    bucket_of,
    canonical_condition,
    check_relation,
    check_resource,
    check_subject,
    check_tenant,
    check_type,
    format_expires_at,
    parse_expires_at,
    tuple_hash,
    type_of,
)
from sidecar.errors import Refused

LONGEST_NAME = "a" + "b" * 253
WHITE_SPACE = [c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace()]
CONTROLS = [chr(c) for c in (*range(0x20), 0x7F, *range(0x80, 0xA0))]
# 1,024 bytes each, of one, two, three and four bytes a character.
FULL_IDS = ["x" * 1024, "é" * 512, "漢" * 341 + "x", "🔑" * 256]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)

    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=20,
)  # fmt: skip

GOOD_RESOURCES = [
    "document:readme",
    "d:1",
    "Document:1",
    "org/team-a_1:x",
    "document:*",
    "document:a:b:c",
    "document:/etc/passwd",
    "document:a/b:c",
    "document::",
    "document:été-漢字-🔑",
    "document:\u200b",
    "document:{}\"'\\@|,%",
    f"{LONGEST_NAME}:1",
    *(f"document:{identifier}" for identifier in FULL_IDS),
]
BAD_RESOURCES = [
    "",
    ":",
    "document",
    "document:",
    ":readme",
    "1document:readme",
    "-document:readme",
    "/document:readme",
    "dœcument:readme",
    "doc ument:readme",
    "doc.ument:readme",
    f"{LONGEST_NAME}b:1",
    "document:a#b",
    "document:#",
    "document:a#viewer",
    "d" * 10_240,
    "document:" + "x" * 10_240,
    "d" * 10_240 + ":1",
    "document:\ud800",
    "document:a\udfff",
    *(f"document:{identifier}x" for identifier in FULL_IDS),
    *(f"document:a{c}b" for c in (*WHITE_SPACE, *CONTROLS)),
    *(f"document:{c}" for c in WHITE_SPACE),
    *(f"document:a{c}" for c in ("\n", "\r\n", " ")),
    *(f"{c}document:a" for c in ("\n", " ", "\ufeff")),
]
GOOD_NAMES = ["viewer", "v", "can_view", "a/b", "a-b", "A1", LONGEST_NAME]
BAD_NAMES = [
    *("", "1a", "_a", "*", "é", "a b", "a\n", "a#b", "a:b", "a.b", f"{LONGEST_NAME}b"),
    *("a\x00", "a\u2028", "x" * 10_240, "\ud800"),
]


@pytest.mark.parametrize("text", GOOD_RESOURCES)
def test_a_resource_is_a_type_and_an_id(text: str) -> None:
    assert check_resource(text) == text
    assert type_of(text) == text[: text.index(":")]


@pytest.mark.parametrize("text", BAD_RESOURCES)
def test_what_no_resource_may_be(text: str) -> None:
    with pytest.raises(Refused) as refused:
        check_resource(text)
    assert refused.value.code == "invalid_relationship"
    assert refused.value.status == 400
    assert len(refused.value.message) < 1_000
    refused.value.message.encode()  # it can be sent, whatever it quotes


@pytest.mark.parametrize("text", GOOD_RESOURCES)
@pytest.mark.parametrize("relation", ["", "#member", f"#{LONGEST_NAME}"])
def test_a_subject_is_a_resource_or_those_who_have_a_relation_to_it(
    text: str, relation: str
) -> None:
    assert check_subject(text + relation) == text + relation


@pytest.mark.parametrize("text", [one for one in BAD_RESOURCES if "#" not in one])
@pytest.mark.parametrize("relation", ["", "#member"])
def test_what_no_subject_may_be(text: str, relation: str) -> None:
    with pytest.raises(Refused):
        check_subject(text + relation)


@pytest.mark.parametrize(
    "text", ["user:a#", "user:a##member", "user:a#member#member", "user:a#1", "user:#m", "#member"]
)
def test_a_subject_has_one_relation_or_none(text: str) -> None:
    with pytest.raises(Refused):
        check_subject(text)


@pytest.mark.parametrize("check", [check_relation, check_type])
def test_names_of_relations_and_types(check: Callable[[str], str]) -> None:
    for text in GOOD_NAMES:
        assert check(text) == text
    for text in BAD_NAMES:
        with pytest.raises(Refused) as refused:
            check(text)
        assert refused.value.code == "invalid_relationship"


@pytest.mark.parametrize("text", ["default", "a", "A-b_9", "-", "x" * 64])
def test_a_tenant_is_up_to_64_plain_characters(text: str) -> None:
    assert check_tenant(text) == text


@pytest.mark.parametrize("text", ["", "x" * 65, "a/b", "a b", "a\n", "é", "a.b", "*", "\ud800"])
def test_what_no_tenant_may_be(text: str) -> None:
    with pytest.raises(Refused) as refused:
        check_tenant(text)
    assert refused.value.code == "invalid_tenant"


@given(st.text(st.characters(codec=None), max_size=20))
def test_any_text_is_allowed_or_refused(text: str) -> None:
    for check in (check_tenant, check_resource, check_subject, check_relation, check_type):
        try:
            assert check(text) == text
        except Refused as refused:
            refused.message.encode()


def test_conditions_that_are_equal_are_equal_texts() -> None:
    given_text = '{"name": "office", "context": {"to": 17, "from": 9}, "é": [1, {"b":0, "a":null}]}'
    turned = '{"é":[1,{"a":null,"b":0}],"context":{"from":9,"to":17},"name":"office"}'
    text = canonical_condition(json.loads(given_text))
    assert text == canonical_condition(json.loads(turned))
    assert text == '{"context":{"from":9,"to":17},"name":"office","é":[1,{"a":null,"b":0}]}'


@given(JSON)
def test_a_canonical_condition_is_its_own_canonical_form(condition: object) -> None:
    text = canonical_condition(condition)
    assert canonical_condition(json.loads(text)) == text


@pytest.mark.parametrize(
    "condition",
    [
        float("nan"),
        float("inf"),
        {"a": [float("-inf")]},
        {"a": "\ud800"},
        {"\udc00": 1},
        {1, 2},
        object(),
        {"a": b"bytes"},
        {("a", "b"): 1},
        {1: 2, "1": 3},
        10**5000,
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_json_cannot_carry_is_no_condition(condition: object) -> None:
    with pytest.raises(Refused) as refused:
        canonical_condition(condition)
    assert refused.value.code == "invalid_relationship"


def nested(levels: int) -> object:
    condition: object = 1
    for level in range(levels):
        condition = [condition] if level % 2 else {"a": condition}
    return condition


def test_a_condition_is_not_nested_deeper_than_every_reader_can_follow() -> None:
    """Whoever reads JSON stops somewhere between some hundred and some thousand levels."""
    deepest = canonical_condition(nested(MAX_CONDITION_DEPTH))
    assert json.loads(deepest) == nested(MAX_CONDITION_DEPTH)
    endless: list[object] = []
    endless.append(endless)
    for condition in (nested(MAX_CONDITION_DEPTH + 1), nested(900), nested(100_000), endless):
        with pytest.raises(Refused, match="deep"):
            canonical_condition(condition)


@pytest.mark.parametrize("character", ["x", "é", "🔑"])
def test_a_condition_has_at_most_32_kib(character: str) -> None:
    """Counted in bytes of UTF-8, with the quotes around the text."""
    size = len(character.encode())
    count, padding = divmod(MAX_CONDITION_BYTES - 2, size)
    largest = character * count + "x" * padding
    assert len(canonical_condition(largest).encode()) == MAX_CONDITION_BYTES == 32_768
    with pytest.raises(Refused, match="32769 bytes"):
        canonical_condition(largest + "x")


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("2027-01-31T12:00:00Z", "2027-01-31T12:00:00Z"),
        ("2027-01-31t12:00:00z", "2027-01-31T12:00:00Z"),
        ("2027-01-31T12:00:00+00:00", "2027-01-31T12:00:00Z"),
        ("2027-01-31T12:00:00-00:00", "2027-01-31T12:00:00Z"),
        ("2027-01-31T12:00:00+05:30", "2027-01-31T06:30:00Z"),
        ("2027-01-01T00:30:00+01:00", "2026-12-31T23:30:00Z"),
        ("2026-12-31T23:30:00-01:00", "2027-01-01T00:30:00Z"),
        ("2028-02-29T00:00:00Z", "2028-02-29T00:00:00Z"),
        ("2000-02-29T23:59:59Z", "2000-02-29T23:59:59Z"),
        ("2027-01-31T12:00:00.5Z", "2027-01-31T12:00:00.500000Z"),
        ("2027-01-31T12:00:00.000001Z", "2027-01-31T12:00:00.000001Z"),
        ("2027-01-31T12:00:00.123456+02:00", "2027-01-31T10:00:00.123456Z"),
        ("1970-01-01T00:00:00.000001Z", "1970-01-01T00:00:00.000001Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
        ("9999-12-31T23:59:59+00:01", "9999-12-31T23:58:59Z"),
    ],
)
def test_a_time_is_kept_as_microseconds_of_utc(text: str, same_as: str) -> None:
    assert format_expires_at(parse_expires_at(text)) == same_as


def test_microseconds_are_exact() -> None:
    assert parse_expires_at("1970-01-01T00:00:01.000001Z") == 1_000_001
    assert parse_expires_at("2027-01-31T12:00:00.999999Z") == 1_801_396_800_999_999


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "2027", "2027-01-31", "1801396800", "2027-01-31T12:00Z"),
        "2027-01-31T12:00:00",
        "2027-01-31 12:00:00Z",
        "2027-01-31T12:00:00 Z",
        "2027-01-31T12:00:00Z\n",
        " 2027-01-31T12:00:00Z",
        "2027-1-31T12:00:00Z",
        "2027-02-29T00:00:00Z",
        "2100-02-29T00:00:00Z",
        "2027-13-01T00:00:00Z",
        "2027-00-01T00:00:00Z",
        "2027-01-32T00:00:00Z",
        "2027-01-31T24:00:00Z",
        "2027-01-31T12:60:00Z",
        "2016-12-31T23:59:60Z",
        "2027-01-31T12:00:00.Z",
        "2027-01-31T12:00:00+24:00",
        "2027-01-31T12:00:00+0100",
        "2027-01-31T12:00:00+01",
        "2027-W05-1T12:00:00Z",
        "20270131T120000Z",
        "+2027-01-31T12:00:00Z",
        "-2027-01-31T12:00:00Z",
        "10000-01-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "٢٠٢٧-01-31T12:00:00Z",
        "2027-01-31T12:00:00Z" * 1000,
        "\ud800",
    ],
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(Refused, match="not an RFC 3339 time") as refused:
        parse_expires_at(text)
    assert refused.value.code == "invalid_relationship"
    assert len(refused.value.message) < 1_000


@pytest.mark.parametrize(
    "text",
    [
        "1970-01-01T00:00:00Z",
        "1969-12-31T23:59:59.999999Z",
        "1970-01-01T00:59:59+01:00",
        "0001-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59",
    ],
)
def test_nothing_expires_before_1970(text: str) -> None:
    with pytest.raises(Refused, match="before 1970"):
        parse_expires_at(text)


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-00:01", "9999-12-31T23:00:00-01:00"])
def test_a_time_that_could_not_be_shown_again_is_refused(text: str) -> None:
    """In its zone it is in the year 9999, in UTC it is not."""
    with pytest.raises(Refused, match="9999"):
        parse_expires_at(text)


@given(
    st.integers(86_400_000_000, 253_402_214_400_000_000),
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
)
def test_times_come_back_from_any_zone(microseconds: int, offset_minutes: int) -> None:
    assert parse_expires_at(format_expires_at(microseconds)) == microseconds
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    there = moment.astimezone(timezone(timedelta(minutes=offset_minutes)))
    assert parse_expires_at(there.isoformat()) == microseconds


def test_hashes_are_what_they_have_always_been() -> None:
    """They are stored and travel: a change would make nodes of two releases disagree."""
    assert tuple_hash(("default", "document:readme", "viewer", "user:alice")) == 962_016_301_146
    assert tuple_hash(("t", "doc:1", "r", "user:é")) == 723_117_426_010
    assert bucket_of("default", "document:readme") == 1397
    assert bucket_of("acme", "folder:é") == 1995


def test_hashes_are_blake2b_over_the_length_prefixed_parts() -> None:
    """The lengths are those of the bytes."""
    identity = ("acme", "folder:é", "viewer", "user:ét")
    text = "4:acme9:folder:é6:viewer8:user:ét"
    assert tuple_hash(identity) == int.from_bytes(blake2b(text.encode(), digest_size=5).digest())
    text = "4:acme9:folder:é"
    digest = blake2b(text.encode(), digest_size=5).digest()
    assert bucket_of("acme", "folder:é") == int.from_bytes(digest) % BUCKETS


def test_parts_that_shift_do_not_collide() -> None:
    """The same characters, parted otherwise, are another tuple."""
    text = "a:1a:1a:1"
    seen = set()
    cuts = list(itertools.combinations(range(1, len(text)), 3))
    for i, j, k in cuts:
        seen.add(tuple_hash((text[:i], text[i:j], text[j:k], text[k:])))
    assert len(seen) == len(cuts)


@given(st.lists(st.text("a:#1é", min_size=1, max_size=4), min_size=8, max_size=8))
def test_different_tuples_have_different_hashes(parts: list[str]) -> None:
    one, two = tuple(parts[:4]), tuple(parts[4:])
    assert len(one) == len(two) == 4
    assert (tuple_hash(one) == tuple_hash(two)) == (one == two)


@given(st.text("abc123", min_size=1), st.text("abcé:1", min_size=1))
def test_there_are_4096_buckets(tenant: str, resource: str) -> None:
    assert 0 <= bucket_of(tenant, resource) < BUCKETS == 4096
