"""Bodies that come bit by bit, ends that go away, and a database that is slow, broken or busy."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.proxied_standin import Front, fronts
from tests.e2e.test_proxy_fidelity import OK, UPDATE, WRITE
from tests.raw_http import (
    BrokenOff,
    Client,
    Message,
    answer,
    chunked,
    read_body,
    read_chunk,
    request,
)
from tests.standin import Exchange
from tests.waiting import wait_until

MIB = 1024 * 1024
CHUNKED = "Transfer-Encoding: chunked"
EVENTS = answer("200 OK", "Content-Type: text/event-stream", CHUNKED)
PATIENCE_S = 1


@pytest.fixture(scope="module")
def plain_all_along() -> Iterator[Front]:
    with fronts("passthrough", patience_s=PATIENCE_S) as (one,):
        yield one


@pytest.fixture
def plain(plain_all_along: Front) -> Front:
    plain_all_along.database.forget()
    return plain_all_along


@pytest.fixture(scope="module")
def spicedb_all_along() -> Iterator[Front]:
    with fronts("spicedb", patience_s=PATIENCE_S) as (one,):
        yield one


@pytest.fixture
def spicedb(spicedb_all_along: Front) -> Front:
    spicedb_all_along.database.forget()
    return spicedb_all_along


class Turns:
    """Lets a test and the database take turns: `say` waits until it is told to go on."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self.reached = threading.Semaphore(0)

    def wait(self) -> None:
        assert self._permits.acquire(timeout=20)

    def go_on(self) -> None:
        self._permits.release()


def code_of(refused: Message) -> tuple[int, str]:
    return refused.status, str(json.loads(refused.body)["error"])


def one_chunk(text: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(text), text)


# -- bit by bit


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_events_pass_while_the_answer_is_open_and_silence_does_not_end_it(
    plain: Front, method: str
) -> None:
    turns = Turns()

    def say(exchange: Exchange) -> None:
        exchange.read()
        exchange.say(EVENTS)
        for number in range(3):
            turns.wait()
            exchange.say(one_chunk(b"data: %d\n\n" % number))
        exchange.say(b"0\r\n\r\n")

    plain.database.on("/events", say)
    with plain.connected() as client:
        client.send(request(f"{method} /events", "X-Test: 1", "Content-Length: 0"))
        head = client.head()
        assert head.one("Content-Type") == b"text/event-stream"
        turns.go_on()
        assert read_chunk(client.source) == b"data: 0\n\n"
        # Longer than the database may be silent before an answer begins.
        slow = threading.Timer(PATIENCE_S + 0.5, turns.go_on)
        slow.start()
        assert read_chunk(client.source) == b"data: 1\n\n"
        turns.go_on()
        assert read_chunk(client.source) == b"data: 2\n\n"
        assert read_chunk(client.source) == b""


def test_a_watch_may_begin_late(spicedb: Front) -> None:
    turns = Turns()

    def say(exchange: Exchange) -> None:
        exchange.read()
        turns.wait()
        exchange.say(EVENTS + one_chunk(b'{"result":{}}\n'))
        turns.wait()

    spicedb.database.on("/v1/watch", say)
    with spicedb.connected() as client:
        client.send(request("POST /v1/watch", "X-Test: 1", body=b"{}"))
        late = threading.Timer(PATIENCE_S + 0.5, turns.go_on)
        late.start()
        assert client.head().status == 200
        assert read_chunk(client.source) == b'{"result":{}}\n'
    turns.go_on()


def test_an_upload_passes_while_it_comes(plain: Front) -> None:
    came = threading.Event()

    def say(exchange: Exchange) -> None:
        assert read_chunk(exchange.source) == b"first"
        came.set()
        read_body(exchange.source, exchange.asked, is_answer=False)
        exchange.say(OK)

    plain.database.on("/up", say)
    with plain.connected() as client:
        client.send(request("PUT /up", "X-Test: 1", CHUNKED) + one_chunk(b"first"))
        assert came.wait(20)
        client.send(chunked(b"last"))
        assert client.answer().status == 200


def test_large_bodies_are_not_kept_in_memory() -> None:
    large = b"x" * (100 * MIB)
    # With the usual patience: the stand-in needs its time for that much.
    with fronts("passthrough") as (front,):
        front.database.on("/large", answer("200 OK", body=large))
        front.get("/large")
        before = peak_bytes(front)
        assert len(front.ask(request("PUT /large", "X-Test: 1", body=large)).body) == len(large)
        assert peak_bytes(front) - before < 20 * MIB


def peak_bytes(front: Front) -> int:
    for line in Path(f"/proc/{front.node.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def test_the_database_may_answer_before_it_has_the_body(plain: Front) -> None:
    """And what is left of the body must not be taken for the next request."""

    def say(exchange: Exchange) -> None:
        assert read_chunk(exchange.source) == b"first"
        exchange.say(answer("413 Too Large", body=b"no"))
        exchange.wait_until_left()

    plain.database.on("/early", say)
    with plain.connected() as client:
        client.send(request("POST /early", "X-Test: 1", CHUNKED) + one_chunk(b"first"))
        assert client.answer().line == b"HTTP/1.1 413 Too Large"
        client.send(chunked(b"rest"))
        assert client.ask(request("GET /after", "X-Test: 1")).status == 200
    assert [plain.database.next().target, plain.database.next().target] == [b"/early", b"/after"]


# -- who goes away


def endless_head(exchange: Exchange) -> None:
    exchange.say(EVENTS)


def nothing(_: Exchange) -> None:
    pass


@pytest.mark.parametrize("begin", [endless_head, nothing], ids=["answering", "silent"])
@pytest.mark.parametrize("call", ["GET /leave", "POST /leave", "POST /v1/watch"])
def test_a_client_that_goes_away_ends_its_request(
    plain: Front, spicedb: Front, call: str, begin: object
) -> None:
    front = spicedb if "/v1/" in call else plain
    came, left = threading.Event(), threading.Event()

    def say(exchange: Exchange) -> None:
        exchange.read()
        if begin is endless_head:
            endless_head(exchange)
        came.set()
        exchange.wait_until_left()
        left.set()

    front.database.on(call.split(" ")[1], say)
    client = Client(front.port)
    client.send(request(call, "X-Test: 1", "Content-Length: 0"))
    assert came.wait(20)
    if begin is endless_head:
        client.head()
    client.close()
    assert left.wait(PATIENCE_S * 0.8), "within less than the database may be silent"


def test_a_replicated_write_is_carried_out_also_for_a_client_that_has_gone(spicedb: Front) -> None:
    turns, came, ended = Turns(), threading.Event(), threading.Event()

    def say(exchange: Exchange) -> None:
        exchange.read()
        came.set()
        turns.wait()
        exchange.say(answer("200 OK", body=b"{}"))
        ended.set()

    spicedb.database.on(WRITE, say)
    before = spicedb.node.feed_length()
    client = Client(spicedb.port)
    client.send(request(f"POST {WRITE}", "X-Test: 1", body=UPDATE))
    assert came.wait(20)
    client.close()
    turns.go_on()
    assert ended.wait(20)
    wait_until(lambda: spicedb.node.feed_length() > before, "the write is in the feed")


def test_an_upload_that_breaks_off_is_not_taken_for_a_whole_one(plain: Front) -> None:
    ends: list[object] = []
    ended = threading.Event()

    def say(exchange: Exchange) -> None:
        try:
            ends.append(exchange.read().body)
        except BrokenOff as broken:
            ends.append(broken)
        ended.set()

    plain.database.on("/broken", say)
    client = Client(plain.port)
    client.send(request("PUT /broken", "X-Test: 1", CHUNKED) + one_chunk(b"first"))
    plain.database.next()
    client.close()
    assert ended.wait(20)
    assert isinstance(ends[0], BrokenOff), ends


def test_a_body_that_is_none_is_refused(plain: Front) -> None:
    with plain.connected() as client:
        client.send(request("PUT /a", "X-Test: 1", CHUNKED) + one_chunk(b"first") + b"zz\r\n")
        refused = client.answer()
    assert code_of(refused) in {(400, "bad_body"), (400, "bad_http")}


@pytest.mark.parametrize("framing", [CHUNKED, f"Content-Length: {MIB}"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_an_answer_that_breaks_off_is_seen_to_be_broken(
    plain: Front, framing: str, version: str
) -> None:
    def say(exchange: Exchange) -> None:
        exchange.say(answer("200 OK", framing) + one_chunk(b"x" * 1_000))
        exchange.break_off()

    plain.database.on("/half", say)
    with plain.connected() as client:
        client.send(f"GET /half HTTP/{version}\r\nHost: x\r\nX-Test: 1\r\n\r\n".encode())
        with pytest.raises((BrokenOff, ConnectionResetError)):
            client.answer()


def test_a_small_answer_that_breaks_off_is_none(plain: Front, spicedb: Front) -> None:
    def say(exchange: Exchange) -> None:
        exchange.read()
        exchange.say(answer("200 OK", "Content-Length: 10") + b"x")
        exchange.break_off()

    plain.database.on("/half", say)
    assert code_of(plain.get("/half")) == (503, "database_unavailable")
    assert code_of(plain.post("/half")) == (503, "outcome_unknown")
    spicedb.database.on(WRITE, say)
    assert code_of(spicedb.post(WRITE, body=UPDATE)) == (503, "outcome_unknown")


# -- slow, gone, busy


def test_a_database_that_says_nothing_is_not_waited_for_long(plain: Front, spicedb: Front) -> None:
    def say(exchange: Exchange) -> None:
        exchange.read()
        exchange.wait_until_left()

    for front, path, body, code in (
        (plain, "GET /slow", b"", "database_unavailable"),
        (plain, "POST /slow", b"x", "outcome_unknown"),
        (spicedb, "POST /v1/permissions/check", b"{}", "database_unavailable"),
        (spicedb, f"POST {WRITE}", UPDATE, "outcome_unknown"),
    ):
        front.database.on(path.split(" ")[1], say)
        refused = front.ask(request(path, "X-Test: 1", body=body))
        assert code_of(refused) == (503, code), path
        assert refused.one("Retry-After") == b"1"
        front.database.next()
        assert front.database.asked.empty(), "sent once"


def test_a_database_that_stops_in_the_middle_is_not_waited_for(plain: Front) -> None:
    def stop_answering(exchange: Exchange) -> None:
        exchange.say(answer("200 OK", f"Content-Length: {MIB}") + b"x" * 1_000)
        exchange.wait_until_left()

    plain.database.on("/stops", stop_answering)
    with pytest.raises(BrokenOff):
        plain.get("/stops")

    left = threading.Event()

    def stop_reading(_: Exchange) -> None:
        left.wait(20)

    plain.database.on("/stops", stop_reading)
    with plain.connected() as client:
        client.send(request("PUT /stops", "X-Test: 1", f"Content-Length: {64 * MIB}"))
        sender = threading.Thread(target=_send_what_it_takes, args=(client, 64 * MIB), daemon=True)
        sender.start()
        refused = client.answer()
    left.set()
    sender.join()
    assert code_of(refused) == (503, "outcome_unknown")


def _send_what_it_takes(client: Client, size: int) -> None:
    try:
        for _ in range(size // MIB):
            client.send(b"x" * MIB)
    except OSError:
        pass


def test_a_client_may_take_its_time_with_an_upload(plain: Front) -> None:
    plain.database.on("/patient", OK)
    with plain.connected() as client:
        client.send(request("PUT /patient", "X-Test: 1", CHUNKED) + one_chunk(b"first"))
        late = threading.Timer(PATIENCE_S + 0.5, client.send, (chunked(b"last"),))
        late.start()
        assert client.answer().status == 200
        late.join()


def test_a_write_is_sent_once_also_when_its_connection_ends(plain: Front) -> None:
    """On a connection that has served before, where the HTTP client would try again."""

    def end(exchange: Exchange) -> None:
        exchange.read()
        exchange.break_off()

    plain.database.on("/ends", end)
    for method in ("PUT", "DELETE", "POST", "PATCH"):
        assert plain.get("/a").status == 200
        plain.database.forget()
        assert code_of(plain.ask(request(f"{method} /ends", "X-Test: 1"))) == (
            503,
            "outcome_unknown",
        )
        assert plain.database.next().method == method.encode()
        assert plain.database.asked.empty()


def test_a_read_is_repeated_when_its_connection_ends(plain: Front) -> None:
    ended: list[int] = []

    def end_once(exchange: Exchange) -> None:
        exchange.read()
        ended.append(exchange.connection)
        if len(ended) == 1:
            exchange.break_off()
        else:
            exchange.say(OK)

    plain.database.on("/ends", end_once)
    assert plain.get("/ends").status == 200
    assert len(ended) == 2


def test_a_database_that_is_gone(plain: Front) -> None:
    plain.database.go()
    try:
        for raw in (request("GET /a", "X-Test: 1"), request("POST /a", "X-Test: 1", body=b"x")):
            refused = plain.ask(raw)
            assert code_of(refused) == (503, "database_unavailable")
            assert refused.one("Retry-After") == b"1"
        wait_until(lambda: plain.node.status == 503, "the node says so")
    finally:
        plain.database.come()
    wait_until(lambda: plain.node.status == 200, "it is back")
    assert plain.get("/a").status == 200


def test_beyond_the_most_connections_requests_wait() -> None:
    turns = Turns()

    def say(exchange: Exchange) -> None:
        exchange.read()
        turns.wait()
        exchange.say(OK)

    with fronts("passthrough", patience_s=PATIENCE_S, max_connections=2) as (front,):
        front.database.on("/held", say)
        clients = [Client(front.port) for _ in range(3)]
        for client in clients:
            client.send(request("POST /held", "X-Test: 1"))
        for _ in range(2):
            front.database.next()
        turns.go_on()
        front.database.next()  # the third has its turn when one is answered
        turns.go_on()
        turns.go_on()
        assert [client.answer().status for client in clients] == [200] * 3

        for client in clients[:2]:
            client.send(request("GET /held", "X-Test: 1"))
        for _ in range(2):
            front.database.next()
        refused = front.post("/a")
        assert code_of(refused) == (503, "database_unavailable")
        assert b"max_connections" in refused.body
        assert front.node.status == 200, "the node's own question does not wait"
        assert front.database.asked.empty(), "it was not sent"
        turns.go_on()
        turns.go_on()
        for client in clients:
            client.close()
