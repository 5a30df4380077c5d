"""The database of one region is away: the other serves, once, and nothing is lost on the way."""

import json
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.proxied_standin import Front, fronts
from tests.e2e.test_proxy_fidelity import ANY, OK, SPICEDB, UPDATE, WRITE, Recorded, end_to_end
from tests.e2e.test_proxy_streams import EVENTS, MIB, Turns, code_of, one_chunk
from tests.raw_http import BrokenOff, Client, answer, ask, chunked, read_chunk, request
from tests.standin import Exchange
from tests.waiting import wait_until

CHECK = "/v1/permissions/check"


def path_of(dialect: str) -> str:
    return CHECK if dialect == "spicedb" else "/a"


def wait_until_served_elsewhere(here: Front, path: str, *fields: str) -> None:
    """A node that was slow to start is asked again only when the next probe has found it."""
    own = f"{here.node.region}/{here.node.name}".encode()
    wait_until(
        lambda: here.post(path, *fields).one("X-Served-By") != own, "the other region serves"
    )


@pytest.fixture(scope="module", params=["passthrough", "spicedb"])
def pairs(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[Front]]]:
    with fronts(request.param, 2) as both:
        both[0].database.go()
        wait_until_served_elsewhere(both[0], path_of(request.param))
        yield request.param, both


@pytest.fixture
def pair(pairs: tuple[str, list[Front]]) -> tuple[Front, Front]:
    """The region that is asked, and the one that serves."""
    here, there = pairs[1]
    there.database.forget()
    return here, there


@pytest.fixture
def dialect(pairs: tuple[str, list[Front]]) -> str:
    return pairs[0]


# A method that the other listener takes for itself, and lines that just fit on the way here.
RECORDED = {
    "passthrough": {name: one for name, one in ANY.items() if name != "a large body"},
    "spicedb": {name: one for name, one in SPICEDB.items() if name != "its description"},
}


def test_what_is_forwarded_passes_as_it_came(pair: tuple[Front, Front], dialect: str) -> None:
    for name, recorded in RECORDED[dialect].items():
        assert_passes(pair, name, recorded)


def assert_passes(pair: tuple[Front, Front], name: str, recorded: Recorded) -> None:
    here, there = pair
    database, raw = there.database, recorded.raw
    database.on(raw.split(b" ")[1].partition(b"?")[0], recorded.answer)
    direct, asked_directly = ask(database.port, raw), database.next()
    passed, asked = here.ask(raw), database.next()
    assert asked.line == asked_directly.line, name
    assert end_to_end(asked) == end_to_end(asked_directly), name
    assert asked.body == asked_directly.body, name
    assert passed.line == direct.line, name
    assert end_to_end(passed) == end_to_end(direct), name
    assert passed.body == direct.body, name
    assert passed.one("X-Served-By") == f"{there.node.region}/{there.node.name}".encode()
    assert database.asked.empty(), f"{name}: sent once"


def test_large_bodies_are_forwarded_as_streams(pair: tuple[Front, Front], dialect: str) -> None:
    if dialect != "passthrough":
        pytest.skip("its bodies are looked into")
    here, there = pair
    large = b"x" * (20 * MIB)
    there.database.on("/large", answer("200 OK", body=large))
    assert here.ask(request("PUT /large", "X-Test: 1", body=large)).body == large
    assert there.database.next().body == large


def test_a_stream_is_forwarded_as_it_comes_and_ends_with_its_client(
    pair: tuple[Front, Front], dialect: str
) -> None:
    here, there = pair
    path = "/v1/watch" if dialect == "spicedb" else "/events"
    turns, left = Turns(), threading.Event()

    def say(exchange: Exchange) -> None:
        exchange.read()
        exchange.say(EVENTS + one_chunk(b"1"))
        turns.wait()
        exchange.say(one_chunk(b"2"))
        exchange.wait_until_left()
        left.set()

    there.database.on(path, say)
    client = Client(here.port)
    client.send(request(f"POST {path}", "X-Test: 1", "Content-Length: 0"))
    assert client.head().status == 200
    assert read_chunk(client.source) == b"1"
    turns.go_on()
    assert read_chunk(client.source) == b"2"
    client.close()
    assert left.wait(20)


def test_a_forwarded_answer_that_breaks_off_is_seen_to_be_broken(
    pair: tuple[Front, Front], dialect: str
) -> None:
    here, there = pair
    path = "/v1/relationships/read" if dialect == "spicedb" else "/half"

    def say(exchange: Exchange) -> None:
        exchange.read()
        exchange.say(EVENTS + one_chunk(b"1"))
        exchange.break_off()

    there.database.on(path, say)
    with pytest.raises(BrokenOff):
        here.post(path)


def test_a_forwarded_write_without_an_answer_is_sent_once(
    pair: tuple[Front, Front], dialect: str
) -> None:
    here, there = pair
    method, path, body = ("POST", WRITE, UPDATE) if dialect == "spicedb" else ("PUT", "/w", b"x")

    def end(exchange: Exchange) -> None:
        exchange.read()
        exchange.break_off()

    there.database.on(path, end)
    refused = here.ask(request(f"{method} {path}", "X-Test: 1", body=body))
    assert code_of(refused) == (503, "outcome_unknown")
    there.database.next()
    assert there.database.asked.empty()


def test_an_outage_that_the_database_tells_of_is_no_outage_of_its_node(
    pair: tuple[Front, Front], dialect: str
) -> None:
    """It may have been carried out: it is passed back and tried nowhere else."""
    here, there = pair
    path = WRITE if dialect == "spicedb" else "/w"
    said = answer("503 Not Now", "Retry-After: 9", body=b'{"error":"starting","message":"mine"}')
    there.database.on(path, said)
    passed = here.post(path, body=UPDATE)
    assert (passed.line, passed.one("Retry-After")) == (b"HTTP/1.1 503 Not Now", b"9")
    assert not [name for name, _ in passed.headers if name.lower().startswith(b"x-sidecar")]
    assert there.database.next().body == UPDATE
    assert there.database.asked.empty()


def test_native_headers_work_across(pair: tuple[Front, Front], dialect: str) -> None:
    if dialect != "spicedb":
        pytest.skip("nothing is replicated")
    here, there = pair
    there.database.on(WRITE, answer("200 OK", "Content-Type: application/json", body=b"{ }"))
    written = here.post(WRITE, "X-Write-Concern: all", body=UPDATE)
    assert (written.status, written.body) == (200, b"{ }")
    token = written.one("X-Revision-Token")
    assert token is not None
    there.database.on(CHECK, OK)
    read = here.post(CHECK, f"X-Revision-Token: {token.decode()}")
    assert (read.status, read.body) == (200, b"fine")
    refused = here.post(WRITE, "X-Write-Concern: most", body=UPDATE)
    assert code_of(refused) == (400, "invalid_header")
    refused = here.post(CHECK, "X-Revision-Token: nonsense")
    assert refused.status == 400, refused
    assert json.loads(refused.body)["error"]


def test_a_database_here_that_has_just_gone_is_replaced_at_once(dialect: str) -> None:
    """Before anybody has noticed: the request itself finds out, and is served all the same."""
    path = path_of(dialect)
    with fronts(dialect, 2) as (here, there):
        here.database.go()
        wait_until_served_elsewhere(here, path)
        here.database.come()
        wait_until(lambda: here.node.status == 200, "it is back")
        assert here.post(path).one("X-Served-By") == f"us-west-1/{here.node.name}".encode()
        there.database.forget()
        there.database.on(path, OK)
        here.database.go()
        head = request(f"POST {path}", "X-Test: 1", "Transfer-Encoding: chunked")
        passed = here.ask(head + chunked(b"{}"))
        assert (passed.status, passed.body) == (200, b"fine"), passed
        assert there.database.next().body == b"{}"
        write = WRITE if dialect == "spicedb" else "/w"
        there.database.on(write, answer("200 OK", body=b"done"))
        assert here.post(write, body=UPDATE).body == b"done"
        there.database.next()
        assert there.database.asked.empty(), "sent once"
