"""Trimming in Lua: the oldest go, the floor says what is gone, and nothing else is touched."""

import json
from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest
import redis

from sidecar.core.conflict import ConflictResolutionStrategy, Rules
from sidecar.core.relationship import Operation
from tests.lua.replicas import LuaNode, change_of
from tests.servers import RealValkey

LWW = Rules.of(ConflictResolutionStrategy.LAST_WRITE_WINS)
BEGIN_US = 1_790_000_000_000_000


@pytest.fixture(params=["real", "fake"])
def server(request: pytest.FixtureRequest, valkey: RealValkey) -> Iterator[Any]:
    is_real = request.param == "real"
    client = redis.Redis.from_url(valkey.url, protocol=2) if is_real else fakeredis.FakeRedis()
    with client:
        yield client


class Feed:
    """A node of two origins: its own writes, and those of another one merged in between."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.us, self.eu = LuaNode(server, "us1", LWW, ""), LuaNode(server, "eu1", LWW, "")
        self.us.open(BEGIN_US)
        self.eu.open(BEGIN_US + 1)
        for number in range(3):
            change = change_of(("default", f"doc:{number}", "viewer", "user:a"), Operation.INSERT)
            self.us.write([change], BEGIN_US + 100 * number)
            self.eu.write([change], BEGIN_US + 100 * number + 50)
            self.us.receive(self.eu.log, BEGIN_US + 100 * number + 60)

    def trim(self, up_to: int, count: int, known: int = 0) -> tuple[str, int, str, int, Any]:
        outcome, gone, more, trimmed, floor = self.us.run("trim", known, up_to, count)
        timestamps = {origin: int(text) for origin, text in json.loads(floor).items()}
        return outcome.decode(), int(gone), more.decode(), int(trimmed), timestamps

    def entries(self) -> list[tuple[int, str, int]]:
        """Revision, origin and timestamp of each."""
        return [
            (int(name.split(b"-")[0]), entry[b"origin"].decode(), int(entry[b"timestamp"]))
            for name, entry in self.server.xrange("{us1:global.0}:feed")
        ]

    def stored(self) -> tuple[int, dict[str, int]]:
        trimmed = self.server.hget("{us1:global.0}:meta", "trimmed")
        floor = self.server.hgetall("{us1:global.0}:floor")
        return int(trimmed or 0), {name.decode(): int(text) for name, text in floor.items()}


def floor_of(entries: list[tuple[int, str, int]]) -> dict[str, int]:
    """What the floor must be when these are gone."""
    return {origin: timestamp for _, origin, timestamp in entries}


def test_the_oldest_go_and_the_floor_of_each_origin_rises(server: Any) -> None:
    feed = Feed(server)
    whole, vector, tuples = feed.entries(), feed.us.vector(), feed.us.tuples()
    assert {origin for _, origin, _ in whole} == {"us1.1", "eu1.1"}
    for index in range(0, len(whole) - 1, 2):
        up_to = whole[index + 1][0]
        floor = floor_of(whole[: index + 2])
        assert feed.trim(up_to, 100) == ("trimmed", 2, "", up_to, floor)
        assert feed.entries() == whole[index + 2 :]
        assert feed.stored() == (up_to, floor)
    assert feed.us.vector() == vector
    assert feed.us.tuples() == tuples


def test_a_count_limits_a_call_and_says_that_more_is_left(server: Any) -> None:
    feed = Feed(server)
    whole = feed.entries()
    up_to = whole[4][0]
    assert feed.trim(up_to, 3)[:4] == ("trimmed", 3, "more", whole[2][0])
    assert feed.trim(up_to, 2)[:4] == ("trimmed", 2, "", whole[4][0])
    assert feed.trim(up_to, 2)[:4] == ("trimmed", 0, "", whole[4][0])
    assert feed.trim(up_to, 0)[:4] == ("trimmed", 0, "", whole[4][0])
    assert feed.entries() == whole[5:]


def test_what_is_not_there_changes_nothing(server: Any) -> None:
    feed = Feed(server)
    whole = feed.entries()
    assert feed.trim(whole[0][0] - 1, 100) == ("trimmed", 0, "", 0, {})
    assert feed.entries() == whole
    assert feed.stored() == (0, {})


def test_an_empty_feed_goes_on(server: Any) -> None:
    feed = Feed(server)
    whole = feed.entries()
    assert feed.trim(whole[-1][0] + 5, 100)[:4] == ("trimmed", len(whole), "", whole[-1][0])
    assert feed.entries() == []
    change = change_of(("default", "doc:9", "viewer", "user:a"), Operation.INSERT)
    feed.us.write([change], BEGIN_US)  # the clock has not moved
    ((revision, origin, _),) = feed.entries()
    assert (revision > whole[-1][0], origin) == (True, "us1.1")


def test_what_came_by_transfer_raises_no_floor(server: Any) -> None:
    feed = Feed(server)
    newest = feed.entries()[-1][0]
    fields = {"origin": "transfer", "timestamp": newest + 1, "changes": 0, "transaction": "{}"}
    server.xadd("{us1:global.0}:feed", fields, id=f"{newest + 1}-0")
    floor = floor_of(feed.entries()[:-1])
    assert feed.trim(newest + 1, 100)[3:] == (newest + 1, floor)


def test_the_floor_never_falls(server: Any) -> None:
    """Entries of an origin come in its order; the floor does not rest on that."""
    feed = Feed(server)
    newest = feed.entries()[-1][0]
    fields = {"origin": "eu1.1", "timestamp": 5, "changes": 0, "transaction": "{}"}
    server.xadd("{us1:global.0}:feed", fields, id=f"{newest + 1}-0")
    floor = floor_of(feed.entries()[:-1])
    assert feed.trim(newest + 1, 100)[3:] == (newest + 1, floor)


def test_a_call_ends_early_where_entries_are_large(server: Any) -> None:
    """Redis must not stand still, nor Lua take gigabytes, for a feed of the largest requests."""
    feed = Feed(server)
    small, text = feed.entries(), "x" * 1_000_000
    newest = small[-1][0]
    for number in range(1, 61):
        fields = {"origin": "us1.1", "timestamp": newest, "changes": 0, "transaction": text}
        server.xadd("{us1:global.0}:feed", fields, id=f"{newest + number}-0")
    _, gone, more, trimmed, _ = feed.trim(newest + 60, 1_000)
    assert more == "more"
    assert 8 < gone < 40
    assert len(feed.entries()) == len(small) + 60 - gone
    assert trimmed == feed.entries()[0][0] - 1


def test_a_store_that_has_lost_writes_is_not_trimmed(server: Any) -> None:
    feed = Feed(server)
    whole = feed.entries()
    clock = int(server.hget("{us1:global.0}:meta", "clock"))
    assert feed.trim(whole[-1][0], 100, known=clock + 1) == ("lost", 0, "", 0, {})
    assert feed.entries() == whole
    assert feed.trim(whole[-1][0], 100, known=clock)[0] == "trimmed"
    server.delete("{us1:global.0}:meta")
    assert feed.trim(whole[-1][0], 100)[0] == "lost"


def test_opening_says_what_is_gone(server: Any) -> None:
    feed = Feed(server)
    reply = feed.us.run("open", BEGIN_US, 0, "us1", "2", 1, 1, LWW.fingerprint)
    assert reply[7:9] == [b"0", b"{}"]
    *_, trimmed, floor = feed.trim(feed.entries()[3][0], 100)
    reply = feed.us.run("open", BEGIN_US, 0, "us1", "2", 1, 1, LWW.fingerprint)
    assert int(reply[7]) == trimmed
    assert {name: int(text) for name, text in json.loads(reply[8]).items()} == floor


def test_a_cursor_is_kept(server: Any) -> None:
    us = LuaNode(server, "us1", LWW, "")
    for revision in (5, 2**53 - 1):
        assert us.run("cursor", "eu1", revision) == [b"stored"]
        assert server.hgetall("{us1:global.0}:cursors") == {b"eu1": str(revision).encode()}
