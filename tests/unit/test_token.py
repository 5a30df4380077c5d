"""Tokens come back as they were given; anything else is refused, never an accident."""

import base64
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.token import MAX_ORIGINS, MAX_TOKEN_BYTES, Token
from sidecar.errors import Refused

NODES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True)
INCARNATIONS = st.from_regex(r"[a-z0-9]{12}", fullmatch=True)
ORIGINS = st.builds("{}.{}".format, NODES, INCARNATIONS)
TIMES = st.integers(0, 2**53 - 1)
TOKENS = st.builds(Token, NODES, TIMES, st.dictionaries(ORIGINS, TIMES, max_size=20))
ONE = Token("node1", 1_790_000_000_000_000, {"node1.mwsgf5bo35gt": 1_790_000_000_000_000})
TEXT_OF_ONE = "2bm9kZTF8MTc5MDAwMDAwMDAwMDAwMHxub2RlMS5td3NnZjVibzM1Z3Q6MTc5MDAwMDAwMDAwMDAwMPHj7Dk"


def is_refused(text: str) -> bool:
    try:
        Token.decode(text)
    except Refused as refused:
        return (refused.code, refused.status) == ("invalid_token", 400)
    return False


def spelled(inner: str) -> str:
    """A token whose inside is this text, with a true checksum."""
    raw = inner.encode()
    marked = raw + zlib.crc32(raw).to_bytes(4, "big")
    return "2" + base64.urlsafe_b64encode(marked).decode().rstrip("=")


@given(TOKENS)
def test_a_token_comes_back(token: Token) -> None:
    text = token.encode()
    assert Token.decode(text) == token
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_the_format_is_the_one_that_clients_hold() -> None:
    assert ONE.encode() == TEXT_OF_ONE
    assert Token.decode(TEXT_OF_ONE) == ONE


@given(st.text(st.characters(codec=None)))
def test_any_text_is_a_token_or_refused(text: str) -> None:
    for spelling in (text, "2" + text):
        assert is_refused(spelling) or Token.decode(spelling)


@given(st.binary())
def test_any_bytes_inside_are_a_token_or_refused(raw: bytes) -> None:
    for marked in (raw, raw + zlib.crc32(raw).to_bytes(4, "big")):
        text = "2" + base64.urlsafe_b64encode(marked).decode().rstrip("=")
        assert is_refused(text) or Token.decode(text)


@given(TOKENS, st.data())
def test_a_token_with_a_fault_is_refused(token: Token, data: st.DataObject) -> None:
    text = token.encode()
    place = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(place, len(text)))
    faulty = text[:place] + data.draw(st.text(max_size=5)) + text[end:]
    # The last character has bits that mean nothing.
    assert is_refused(faulty) or Token.decode(faulty) == token


@given(TOKENS)
def test_a_token_that_was_cut_short_does_not_ask_for_less(token: Token) -> None:
    text = token.encode()
    assert all(is_refused(text[:length]) for length in range(len(text)))


@pytest.mark.parametrize(
    "text",
    [
        *("", "2", "0", "token", "null", "2====", "2=", "2AA", "2\n", " " + TEXT_OF_ONE),
        TEXT_OF_ONE + "\n",
        TEXT_OF_ONE[1:],
        "1" + TEXT_OF_ONE[1:],
        TEXT_OF_ONE[:-1],
        TEXT_OF_ONE + "é",
        TEXT_OF_ONE.replace("b", "%"),
        "2\ud800",
        "x" * 10_000,
        "2" + "A" * 10_000_000,
    ],
)
def test_what_is_no_token(text: str) -> None:
    assert is_refused(text)


@pytest.mark.parametrize(
    "inner",
    [
        "",
        "node1",
        "node1|",
        "|5",
        "node1|-5",
        "node1|5.0",
        "node1|5|",
        "node1|5|node1.a",
        "node1|5|node1.a:",
        "node1|5|node1:5",
        "node1|5|.a:5",
        "node1|5|node1.a:5|",
        "node1|5|node1.a:5\n",
        "node1|5 |node1.a:5",
        "Node1|5",
        "node1|" + "9" * 17,
        f"node1|{2**53}",
        f"node1|5|node1.a:{2**53}",
        "n" * 33 + "|5",
        "node1|٥|node1.a:5",
        "node1|5|node1.a:٥",
        "node1|५",
        "node1|5|node1.a:5\x00",
    ],
)
def test_what_no_token_holds(inner: str) -> None:
    assert is_refused(spelled(inner))


def test_a_token_has_at_most_6_kib() -> None:
    """So that it fits into a header line."""
    assert MAX_TOKEN_BYTES == 6144
    vector = {f"node{n:03}.mwsgf5bo{n:04}": 1_790_000_000_000_000 for n in range(120)}
    largest = Token("node1", 5, vector).encode()
    assert 6_000 < len(largest) <= MAX_TOKEN_BYTES
    assert Token.decode(largest).vector == vector
    too_many = {**vector, **{f"more{n}.mwsgf5bo0000": 1 for n in range(9)}}
    assert is_refused(Token("node1", 5, too_many).encode())


def test_a_token_stays_short_however_often_nodes_have_begun_anew() -> None:
    """What ended the longest ago goes; the newest incarnation of every node stays."""
    vector = {
        f"node{n}.mwsgf{i:03}o35gt": 1_790_000_000_000_000 + i for n in (1, 2) for i in range(200)
    }
    text = Token("node1", 1_790_000_000_000_000, vector).encode()
    assert len(text) <= MAX_TOKEN_BYTES
    kept = Token.decode(text).vector
    assert len(kept) == MAX_ORIGINS
    assert kept.items() <= vector.items()
    oldest = sorted({origin.partition(".")[2] for origin in kept})[0]
    assert oldest == "mwsgf168o35gt"
    assert {"node1.mwsgf199o35gt", "node2.mwsgf199o35gt"} <= kept.keys()
