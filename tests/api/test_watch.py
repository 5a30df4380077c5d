"""`watch`: every change once, in order, grouped, also for readers that come and go."""

import asyncio
import contextlib
import json
import random
import re
import socket
from collections.abc import Mapping
from itertools import islice

import pytest

from sidecar.agent.tail import READ_COUNT
from sidecar.api.cursors import Place
from sidecar.api.watch import WatchLimits
from tests.api.conftest import Api, Event, numbered, running_api, tuple_of
from tests.servers import RealValkey


def texts(events: list[Event]) -> list[str]:
    return [event.text for event in events]


async def test_a_watcher_sees_what_is_written_after_it_came(api: Api) -> None:
    await api.write("doc:0 viewer user:alice")
    async with api.watch() as events:
        written = await api.write("doc:1 viewer user:alice")
        await api.delete("doc:1 viewer user:alice")
        first, second = await events.changes(2)
    assert texts([first, second]) == ["+doc:1 viewer user:alice", "-doc:1 viewer user:alice"]
    assert first.data == {
        "operation": "insert",
        "relationship": tuple_of("doc:1 viewer user:alice"),
        "revision": written["revision"],
        "transaction": {"origin": api.store.origin, "timestamp": written["revision"]},
        "cursor": first.cursor,
        "last": True,
    }


async def test_an_event_carries_condition_and_expiration(api: Api) -> None:
    one = {
        **tuple_of("doc:1 viewer user:alice"),
        "condition": {"text": "line\nline\r\u2028"},
        "expires_at": "2999-01-01T00:00:00Z",
    }
    async with api.watch() as events:
        await api.post("relationships/write", {"relationships": [one]})
        (event,) = await events.changes(1)
    assert event.data["relationship"] == one


async def test_the_events_of_a_transaction_are_grouped(api: Api) -> None:
    async with api.watch() as events:
        await api.update("+doc:1 a user:x", "-doc:2 a user:x", "+doc:3 a user:x")
        await api.write("doc:4 a user:x")
        found = await events.changes(4)
    assert [event.data["last"] for event in found] == [False, False, True, True]
    assert len({json.dumps(event.data["transaction"]) for event in found[:3]}) == 1
    assert found[3].data["transaction"] != found[2].data["transaction"]


async def test_a_group_ends_with_the_last_change_that_passes_the_filter(api: Api) -> None:
    async with api.watch({"resource_types": ["doc"]}) as events:
        await api.update("+doc:1 a user:x", "+doc:2 a user:x", "+folder:3 a user:x")
        await api.write("folder:4 a user:x")
        await api.write("doc:5 a user:x")
        found = await events.changes(3)
    assert texts(found) == ["+doc:1 a user:x", "+doc:2 a user:x", "+doc:5 a user:x"]
    assert [event.data["last"] for event in found] == [False, True, True]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"resource_types": ["folder", "team"]}, ["+folder:1 a user:x", "-folder:1 a user:x"]),
        ({"relations": ["b"]}, ["+doc:1 b user:x"]),
        ({"operations": ["delete"]}, ["-folder:1 a user:x"]),
        ({"operations": ["insert"], "relations": ["a"]}, ["+folder:1 a user:x"]),
        ({}, ["+folder:1 a user:x", "+doc:1 b user:x", "-folder:1 a user:x"]),
    ],
)
async def test_filters(api: Api, wanted: dict[str, list[str]], expected: list[str]) -> None:
    await api.write("folder:1 a user:x")
    await api.write("doc:1 b user:x")
    await api.delete("folder:1 a user:x")
    async with api.watch({**wanted, "cursor": "start"}) as events:
        assert texts(await events.changes(len(expected))) == expected


async def test_a_watcher_sees_its_own_tenant_only(api: Api) -> None:
    async with api.watch(x_tenant="acme") as events:
        await api.write("doc:1 a user:x")
        await api.write("doc:2 a user:x", x_tenant="acme")
        assert texts(await events.changes(1)) == ["+doc:2 a user:x"]


async def test_resuming_at_every_single_change_has_no_gap_and_no_repeat(api: Api) -> None:
    await api.update(*(f"+doc:{number} a user:x" for number in range(3)))
    await api.write("doc:3 a user:x")
    await api.update(*(f"+doc:{number} a user:x" for number in range(4, 6)))
    expected = [f"+doc:{number} a user:x" for number in range(6)]
    async with api.watch({"cursor": "start"}) as events:
        everything = await events.changes(6)
    assert texts(everything) == expected
    for index, event in enumerate(everything):
        if index == 5:
            break
        async with api.watch({"cursor": event.cursor}) as events:
            rest = await events.changes(5 - index)
        assert [(one.text, one.cursor) for one in rest] == [
            (one.text, one.cursor) for one in everything[index + 1 :]
        ]
        # As a browser's library does it: the same body again, and the newer place in the header.
        async with api.watch({"cursor": "start"}, last_event_id=event.cursor) as events:
            assert texts(await events.changes(1)) == [expected[index + 1]]


async def test_nothing_left_of_a_transaction_is_said(api: Api) -> None:
    """The reader narrows its filter in the middle of a transaction: it must still see its end."""
    await api.update("+doc:1 a user:x", "+folder:2 a user:x")
    async with api.watch({"cursor": "start"}) as events:
        (first,) = await events.changes(1)
    assert not first.data["last"]
    async with api.watch({"cursor": first.cursor, "resource_types": ["doc"]}) as events:
        ending = await events.next()
    assert ending.name == "checkpoint"
    assert ending.data["revision"] == first.data["revision"]


async def test_readers_that_come_and_go_under_concurrent_writes_miss_nothing(api: Api) -> None:
    """Transactions of 1 to 5 changes by four writers; a reader that leaves at random changes."""
    randomness = random.Random(20)
    total = 400
    transactions: list[list[str]] = []
    numbers = iter(range(total))

    def batch() -> list[str]:
        return [f"+doc:{n} a user:x" for n in islice(numbers, randomness.randint(1, 5))]

    async def write() -> None:
        while changes := batch():
            transactions.append(changes)
            await api.update(*changes)

    writers = asyncio.gather(*(write() for _ in range(4)))
    seen: list[Event] = []
    cursor: str = "start"
    while len(seen) < total:
        async with api.watch({"cursor": cursor}) as events:
            wanted = min(randomness.randint(1, 40), total - len(seen))
            seen += await events.changes(wanted)
            cursor = seen[-1].cursor
    await writers
    assert len(set(texts(seen))) == total, "a repeat"
    groups: list[list[str]] = [[]]
    for event in seen:
        groups[-1].append(event.text)
        if event.data["last"]:
            groups.append([])
    assert groups.pop() == []
    assert sorted(groups) == sorted(transactions)
    assert [e.data["revision"] for e in seen] == sorted(e.data["revision"] for e in seen)


async def test_a_cursor_survives_a_restart_of_the_sidecar(valkey: RealValkey) -> None:
    async with running_api(valkey) as api, api.watch() as events:
        await api.write("doc:1 a user:x")
        (event,) = await events.changes(1)
    async with running_api(valkey) as api:
        await api.write("doc:2 a user:x")
        async with api.watch({"cursor": event.cursor}) as events:
            assert texts(await events.changes(1)) == ["+doc:2 a user:x"]


async def test_the_opening_checkpoint_is_a_place_to_resume_from(api: Api) -> None:
    async with api.watch() as events:
        cursor = events.cursor
    await api.write("doc:1 a user:x")
    async with api.watch({"cursor": cursor}) as events:
        assert texts(await events.changes(1)) == ["+doc:1 a user:x"]


async def test_a_cursor_of_another_node_is_refused(api: Api) -> None:
    elsewhere = Place("node2.abc123", 5).encode()
    refused = await api.post("watch", {"cursor": elsewhere})
    assert (refused.status, refused.error) == (410, "cursor_elsewhere")
    assert "node2.abc123" in refused.message


async def test_a_cursor_from_the_future_is_refused(api: Api) -> None:
    ahead = Place(api.store.origin, api.store.revision + 10**6).encode()
    refused = await api.post("watch", {"cursor": ahead})
    assert (refused.status, refused.error) == (410, "cursor_expired")


async def test_a_feed_that_no_longer_reaches_back_says_so(api: Api) -> None:
    async with api.watch() as events:
        beginning = events.cursor
    first = await api.write("doc:1 a user:x")
    second = await api.write("doc:2 a user:x")
    third = await api.write("doc:3 a user:x")
    await api.store.trim(int(second["revision"]), 100)
    inside = Place(api.store.origin, int(second["revision"]), 0).encode()
    for place in (beginning, place_behind(api, first), inside):
        refused = await api.post("watch", {"cursor": place})
        assert (refused.status, refused.error) == (410, "cursor_expired")
    inside = Place(api.store.origin, int(third["revision"]), 0).encode()
    for place in (place_behind(api, second), inside):
        async with api.watch({"cursor": place}) as events:
            assert texts(await events.changes(1)) == ["+doc:3 a user:x"]
    async with api.watch({"cursor": "start"}) as events:
        assert texts(await events.changes(1)) == ["+doc:3 a user:x"]
    async with api.watch(
        {"cursor": Place(api.store.origin, int(third["revision"])).encode()}
    ) as events:
        await api.write("doc:4 a user:x")
        assert texts(await events.changes(1)) == ["+doc:4 a user:x"]


async def test_a_watcher_resumes_at_the_tip_of_a_feed_that_is_empty(valkey: RealValkey) -> None:
    """Also after a restart of the sidecar; a cursor before the tip is refused."""
    async with running_api(valkey) as api:
        first = await api.write("doc:1 a user:x")
        second = await api.write("doc:2 a user:x")
        assert (await api.store.trim(api.store.revision, 100)).gone == 3
    async with running_api(valkey) as api:
        assert await api.store.feed_length() == 0
        refused = await api.post("watch", {"cursor": place_behind(api, first)})
        assert (refused.status, refused.error) == (410, "cursor_expired")
        async with (
            api.watch({"cursor": place_behind(api, second)}) as resumed,
            api.watch({"cursor": "start"}) as from_start,
            api.watch() as from_now,
        ):
            await api.write("doc:3 a user:x")
            for events in (resumed, from_start, from_now):
                assert texts(await events.changes(1)) == ["+doc:3 a user:x"]


async def test_a_watcher_that_is_overtaken_is_told(api: Api) -> None:
    """The feed is trimmed while it reads: it must not see what lies behind the gap."""
    pattern = f"doc:{{}} viewer user:{'x' * 800}"
    names = [f"{round_}-{{}}" for round_ in range(READ_COUNT + 50)]
    for name in names:
        await api.write(*numbered(20, pattern.format(name)))
    raw = begin_to_watch(api, receive_bytes=4096)
    begun = b""
    while b"event: change" not in begun:
        begun += await asyncio.wait_for(asyncio.get_running_loop().sock_recv(raw, 4096), 5)
    # It has read the first part of the feed, which is far more than its connection takes.
    while (await api.store.trim(api.store.revision - 1, 1_000)).is_more:
        pass
    received = begun + await left_in(raw)
    seen = re.findall(rb'"resource":"doc:(\d+)-(\d+)"', received)
    assert [(int(r), int(n)) for r, n in seen] == [
        (r, n) for r in range(READ_COUNT - 1) for n in range(20)
    ], "what it has seen has no gap; the first transaction of a feed is empty"
    (error,) = re.findall(rb"event: error\ndata: (.*)\n", received)
    assert json.loads(error)["error"] == "cursor_expired"


def begin_to_watch(api: Api, receive_bytes: int) -> socket.socket:
    """A reader from the start of the feed whose connection takes no more than this at once."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    raw.connect(("127.0.0.1", api.port))
    raw.setblocking(False)
    body = b'{"cursor":"start"}'
    raw.send(
        b"POST /access/v1/watch HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    return raw


def place_behind(api: Api, written: Mapping[str, str]) -> str:
    return Place(api.store.origin, int(written["revision"])).encode()


async def test_an_idle_stream_gives_a_sign_of_life(valkey: RealValkey) -> None:
    async with running_api(valkey, WatchLimits(idle_s=0.05)) as api, api.watch() as events:
        assert (await events.next()).name == ":"
        assert (await events.next()).name == ":"
        await api.write("doc:1 a user:x")
        assert texts(await events.changes(1)) == ["+doc:1 a user:x"]


async def test_what_the_filter_left_out_moves_the_cursor(valkey: RealValkey) -> None:
    limits, wanted = WatchLimits(idle_s=0.05), {"relations": ["b"]}
    async with running_api(valkey, limits) as api, api.watch(wanted) as events:
        written = await api.write("doc:1 a user:x")
        while (event := await events.next()).name == ":":
            pass
        assert event.name == "checkpoint"
        assert event.data["revision"] == written["revision"]
        assert (await events.next()).name == ":"


async def test_more_watchers_than_allowed_are_turned_away(valkey: RealValkey) -> None:
    async with running_api(valkey, WatchLimits(watchers=1, idle_s=0.05)) as api:
        async with api.watch() as events:
            await events.next()
            refused = await api.post("watch", {})
            assert (refused.status, refused.error) == (503, "too_many_watchers")
            assert refused.headers["Retry-After"]
        # The place is free again as soon as the node notices that the reader has gone.
        while await status_of_watch(api) == 503:
            await asyncio.sleep(0.01)


async def test_a_reader_that_does_not_read_is_cut_off_and_resumes(
    valkey: RealValkey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with running_api(valkey, WatchLimits(write_s=0.3)) as api:
        raw = begin_to_watch(api, receive_bytes=4096)
        for round_ in range(2):
            await api.write(*numbered(5000, f"doc:{{}}-{round_} viewer user:{'x' * 700}"))
        while "watcher cut off: it reads too slowly" not in caplog.messages:
            await asyncio.sleep(0.01)
        cursors = re.findall(rb"id: ([\w-]+)\nevent: change\n.*\n\n", await left_in(raw))
        assert 0 < len(cursors) < 10_000, "cut off in the middle"
        async with api.watch({"cursor": cursors[-1].decode()}) as events:
            rest = await events.changes(10_000 - len(cursors))
        assert rest[-1].text.startswith("+doc:4999-1 ")


async def status_of_watch(api: Api) -> int:
    async with api.session.post(f"{api.url}/access/v1/watch", json={}) as response:
        return response.status


async def left_in(connection: socket.socket) -> bytes:
    """What a reader that slept finds in its socket; the stream must have ended."""
    received = bytearray()
    loop = asyncio.get_running_loop()
    with connection, contextlib.suppress(ConnectionResetError):
        while part := await asyncio.wait_for(loop.sock_recv(connection, 1 << 20), 5):
            received += part
    return bytes(received)


async def test_streams_end_when_the_node_ends(valkey: RealValkey) -> None:
    async with running_api(valkey) as api, api.watch() as events:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await api.runner.cleanup()
        assert loop.time() - began < 2, "a stream must not hold up the end"
        with pytest.raises(EOFError):
            await events.next()
