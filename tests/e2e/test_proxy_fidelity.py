"""What a request is when it reaches the database, and an answer when it reaches the application.

A recorded set of both, through a node, in front of a database that says what it is told to say.
"""

import gzip
import json
import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.e2e.proxied_standin import Front, fronts
from tests.raw_http import Message, answer, ask, chunked, request

HOP_BY_HOP = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te"),
    *(b"trailer", b"transfer-encoding", b"upgrade", b"proxy-connection", b"content-length"),
}
OURS = {b"x-served-by", b"x-revision-token", b"x-request-id"}
"""What the sidecar adds to an answer; `Date` as well, where there is none (RFC 9110, 6.6.1)."""

PACKED = gzip.compress(b"packed" * 1_000, mtime=0)
ODD = bytes(range(256)) * 20
UPDATE = json.dumps(
    {
        "updates": [
            {
                "operation": "OPERATION_TOUCH",
                "relationship": {
                    "resource": {"objectType": "document", "objectId": "1"},
                    "relation": "viewer",
                    "subject": {"object": {"objectType": "user", "objectId": "ann"}},
                },
            }
        ]
    },
    indent=3,
).encode()
OK = answer("200 OK", "Content-Type: text/plain", body=b"fine")


class Recorded(NamedTuple):
    """A request, without its host, and the answer to it."""

    line: str | bytes
    fields: tuple[str | bytes, ...] = ()
    body: bytes = b""
    answer: bytes = OK

    @property
    def raw(self) -> bytes:
        return request(self.line, "X-Test: 1", *self.fields, body=self.body)


ANY = {
    "a path with escapes": Recorded("GET /a%2Fb%20c/%C3%A4%2e%2E/%zz?x=%20&y=1+2&&z"),
    "double slashes and dots": Recorded("GET //a//b/../c/./d/.."),
    "a path that looks like a host": Recorded("GET /@elsewhere.example:80/x"),
    "a query that is empty": Recorded("GET /a?"),
    "a query with question marks": Recorded("GET /a?b?c=/d?e#"),
    "odd characters": Recorded("GET /a|b\\c^`{}\"<>;,=:@!$&'()*+~?[x]=|"),
    "a long query": Recorded("GET /a?" + "q" * 20_000),
    "repeated headers": Recorded(
        "GET /a",
        ("Accept: a", "X-Many: 1", "X-Many: 2", "Cookie: a=1; b=2", "X-Many: 1", "X-Empty:"),
        answer=answer(
            "200 OK",
            "Set-Cookie: a=1; Path=/",
            "set-cookie: b=2; HttpOnly",
            "Set-Cookie: a=3",
            "X-Empty:",
            "WWW-Authenticate: one",
            "www-authenticate: two",
            body=b"x",
        ),
    ),
    "headers that name a client": Recorded(
        "GET /a",
        (
            *("User-Agent: curl/8", "Accept: */*", "Accept-Encoding: br, zstd"),
            *("Authorization: Bearer a.b.c", "Origin: http://o.example", "Range: bytes=0-1"),
            *("X-Forwarded-For: 10.0.0.1", "Via: 1.1 x", 'If-None-Match: W/"1"', "DNT: 1"),
        ),
        answer=answer("206 Partial Content", "Content-Range: bytes 0-1/9", 'ETag: "1"', body=b"ab"),
    ),
    "no type, no agent, no server": Recorded(
        "POST /a", body=b"x", answer=answer("200 OK", body=b"y")
    ),
    "a server and a date": Recorded(
        "GET /a",
        answer=answer("200 OK", "Server: db/1", "Date: Thu, 01 Jan 1970 00:00:01 GMT", body=b"x"),
    ),
    "headers about the link": Recorded(
        "POST /a",
        (
            *("Connection: keep-alive, X-Foo", "Connection: X-Bar", "Keep-Alive: timeout=5"),
            *("X-Foo: 1", "X-Bar: 1", "X-Kept: 1", "TE: trailers", "Proxy-Authorization: x"),
        ),
        b"x",
        answer(
            "200 OK",
            *("Connection: X-Baz", "X-Baz: 1", "X-Kept: 2", "Keep-Alive: timeout=9", "Trailer: T"),
            body=b"x",
        ),
    ),
    "an upgrade that is not made": Recorded(
        "GET /a", ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAA")
    ),
    "a websocket that is not made": Recorded(
        "GET /a",
        ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
        answer=answer("426 Upgrade Required", "Content-Length: 0"),
    ),
    "long header lines": Recorded(
        "GET /a",
        ("X-Long: " + "l" * 30_000, "Cookie: c=" + "c" * 30_000),
        answer=answer("200 OK", "X-Long: " + "m" * 30_000, body=b"x"),
    ),
    "many header lines": Recorded(
        "GET /a",
        tuple(f"X-{n}: {n}" for n in range(100)),
        answer=answer("200 OK", *(f"Y-{n}: {n}" for n in range(100)), body=b"x"),
    ),
    "text beyond ascii in a header": Recorded(
        "GET /a", ("X-Name: Jürgen",), answer=answer("200 OK", "X-Name: 日本", body=b"x")
    ),
    "bytes that are no text in an answer": Recorded(
        "GET /a", answer=answer("200 OK", b"X-Name: J\xfcrgen", body=b"x")
    ),
    "a chunked request": Recorded(
        "POST /a", ("Transfer-Encoding: chunked",), chunked(b"one", ODD, b"three")
    ),
    "a chunked request with trailers": Recorded(
        "POST /a",
        ("Transfer-Encoding: chunked", "Trailer: X-Sum"),
        chunked(b"one", trailers=[b"X-Sum: 1"]),
    ),
    "an empty chunked request": Recorded("POST /a", ("Transfer-Encoding: chunked",), chunked()),
    "a chunked answer with trailers": Recorded(
        "GET /a",
        answer=answer(
            "200 OK",
            *("Transfer-Encoding: chunked", "Trailer: X-Sum"),
            body=chunked(b"a", ODD, trailers=[b"X-Sum: 1"]),
        ),
    ),
    "an empty chunked answer": Recorded(
        "GET /a", answer=answer("200 OK", "Transfer-Encoding: chunked", body=chunked())
    ),
    "gzip both ways": Recorded(
        "POST /a",
        ("Content-Encoding: gzip", "Content-Type: text/plain", "Accept-Encoding: gzip"),
        PACKED,
        answer("200 OK", "Content-Encoding: gzip", "Content-Type: text/plain", body=PACKED),
    ),
    "said to be packed, and is not": Recorded(
        "POST /a",
        ("Content-Encoding: deflate",),
        ODD,
        answer("200 OK", "Content-Encoding: br", body=ODD),
    ),
    "bytes of every kind": Recorded("PUT /a", body=ODD, answer=answer("200 OK", body=ODD)),
    "a large body": Recorded("PUT /a", body=ODD * 2_000, answer=answer("200 OK", body=ODD * 1_000)),
    "head": Recorded(
        "HEAD /a", answer=answer("200 OK", "Content-Length: 12345", "Content-Type: a/b")
    ),
    "head without a length": Recorded("HEAD /a", answer=answer("200 OK", "X-A: 1")),
    "head of what is not there": Recorded(
        "HEAD /a", answer=answer("404 Not Found", "Content-Length: 9")
    ),
    "no content": Recorded("DELETE /a", answer=answer("204 No Content", "X-A: 1")),
    "not modified": Recorded(
        "GET /a", answer=answer("304 Not Modified", 'ETag: "1"', "Content-Length: 5")
    ),
    "not modified without a length": Recorded("GET /a", answer=answer("304 Not Modified")),
    "an empty body": Recorded("GET /a", answer=answer("200 OK", "Content-Length: 0")),
    "an empty body with a type": Recorded(
        "POST /a",
        ("Content-Length: 0",),
        answer=answer("201 Created", "Content-Length: 0", "Content-Type: a/b"),
    ),
    "a place elsewhere": Recorded(
        "GET /a",
        answer=answer("302 Found", "Location: /b?c=%2F", "Content-Length: 0"),
    ),
    "a place elsewhere for a write": Recorded(
        "POST /a", body=b"x", answer=answer("307 Over There", "Location: http://o/x", body=b"y")
    ),
    "a reason of its own": Recorded(
        "POST /a", body=b"x", answer=answer("299 Done, more or less", body=b"x")
    ),
    "no reason": Recorded("GET /a", answer=answer("200 ", body=b"x")),
    "a reason beyond ascii": Recorded("GET /a", answer=answer(b"200 Sch\xf6n", body=b"x")),
    "an unknown status": Recorded("GET /a", answer=answer("799 What", body=b"x")),
    "a teapot": Recorded("POST /a", body=b"x", answer=answer("418 I'm a teapot", body=ODD)),
    "a conflict": Recorded("POST /a", body=b"x", answer=answer("409 Conflict", body=b"\x00\xff")),
    "an error of its own": Recorded(
        "POST /a", body=b"x", answer=answer("500 Oh", "Content-Type: text/html", body=b"<h1>")
    ),
    "too busy": Recorded(
        "GET /a", answer=answer("503 Busy", "Retry-After: 77", body=b'{"error":"busy"}')
    ),
    "a get with a body": Recorded("GET /a", body=b"asked"),
    "a delete with a body": Recorded("DELETE /a", body=b"asked"),
    "patch": Recorded("PATCH /a", body=b"x"),
    "options": Recorded("OPTIONS /a", answer=answer("204 No Content", "Allow: GET")),
    "a method of webdav": Recorded("PROPFIND /a", body=b"<x/>"),
    "early hints": Recorded(
        "GET /a", answer=b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK
    ),
}
CHECK = "/v1/permissions/check"
WRITE = "/v1/relationships/write"
SPICEDB = {
    "a check": Recorded(
        f"POST {CHECK}",
        ("Authorization: Bearer secret", "content-type: application/json"),
        b'{ "consistency": {"minimizeLatency": true}, "x": "\xc3\xa4" }',
        answer("200 OK", "Grpc-Metadata-Content-Type: application/grpc", body=b'{"a" : 1}\n'),
    ),
    "a check that is no json": Recorded(
        f"POST {CHECK}", (), b'{"token": \xff', answer("400 Bad Request", body=b'{"code":3}')
    ),
    "a packed check": Recorded(
        f"POST {CHECK}", ("Content-Encoding: gzip",), gzip.compress(b'{"a": 1}', mtime=0)
    ),
    "a chunked check": Recorded(
        f"POST {CHECK}", ("Transfer-Encoding: chunked",), chunked(b'{"a"', b": 1}")
    ),
    "a path with escapes": Recorded("POST /v1/permissions%2Fcheck?pretty=true", (), b"{}"),
    "a stream of relationships": Recorded(
        "POST /v1/relationships/read",
        (),
        b"{}",
        answer("200 OK", "Transfer-Encoding: chunked", body=chunked(b'{"result":1}\n', b"{}\n")),
    ),
    "a write": Recorded(
        f"POST {WRITE}",
        ("Content-Type: application/json", "X-Odd: 1"),
        UPDATE,
        answer("200 All Good", "X-A: 1", "x-a: 2", "Set-Cookie: a", "Set-Cookie: b", body=b"{ }"),
    ),
    "a packed write": Recorded(
        f"POST {WRITE}",
        ("Content-Encoding: gzip",),
        gzip.compress(UPDATE, mtime=0),
        answer("200 OK", "Content-Encoding: gzip", body=gzip.compress(b"{}", mtime=0)),
    ),
    "a chunked write": Recorded(
        f"POST {WRITE}", ("Transfer-Encoding: chunked",), chunked(UPDATE[:9], UPDATE[9:])
    ),
    "a write that answers nothing": Recorded(
        f"POST {WRITE}", (), UPDATE, answer("204 No Content", "X-A: 1")
    ),
    "a write without a type": Recorded(f"POST {WRITE}", (), UPDATE, answer("200 OK", body=ODD)),
    "a refused write": Recorded(
        f"POST {WRITE}", (), UPDATE, answer("400 No Such Type", "X-A: 1", body=ODD)
    ),
    "a write that is there": Recorded(
        f"POST {WRITE}", (), UPDATE, answer("409 Conflict", body=b'{"code":6,\n"message":"\xc3"}')
    ),
    "a write that is no json": Recorded(
        f"POST {WRITE}", (), b'{"updates": [', answer("400 Bad Request", body=b"{}")
    ),
    "a write that went wrong": Recorded(
        f"POST {WRITE}", (), UPDATE, answer("500 Oh No", "Content-Type: text/html", body=b"<b>\x00")
    ),
    "a write it has no time for": Recorded(
        f"POST {WRITE}",
        (),
        UPDATE,
        answer("503 Later", "Retry-After: 7", body=b"").replace(
            b"\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n"
        ),
    ),
    "its description": Recorded("GET /openapi.json", answer=answer("200 OK", body=b"{}")),
}


@pytest.fixture(scope="module")
def plain_all_along() -> Iterator[Front]:
    with fronts("passthrough") as (one,):
        yield one


@pytest.fixture
def plain(plain_all_along: Front) -> Front:
    plain_all_along.database.forget()
    return plain_all_along


@pytest.fixture(scope="module")
def spicedb() -> Iterator[Front]:
    with fronts("spicedb") as (one,):
        yield one


@pytest.mark.parametrize("name", ANY)
def test_anything_passes_as_it_came(plain: Front, name: str) -> None:
    assert_passes(plain, ANY[name])


@pytest.mark.parametrize("name", SPICEDB)
def test_calls_of_spicedb_pass_as_they_came(spicedb: Front, name: str) -> None:
    assert_passes(spicedb, SPICEDB[name])


def assert_passes(front: Front, recorded: Recorded) -> None:
    """Compare what arrives through the node with what arrives without it."""
    database = front.database
    raw = recorded.raw
    path = raw.split(b" ")[1].partition(b"?")[0]
    database.on(path, recorded.answer)
    database.forget()
    direct = ask(database.port, raw)
    asked_directly = database.next()
    with front.connected() as client:
        passed = client.ask(raw)
        asked = database.next()
        assert asked.line == asked_directly.line
        assert end_to_end(asked) == end_to_end(asked_directly)
        assert asked.one("Host") == f"127.0.0.1:{database.port}".encode()
        assert asked.body == asked_directly.body
        assert not asked.trailers
        assert passed.line == direct.line
        added = {name.lower() for name, _ in passed.headers if name.lower() in OURS}
        assert added >= {b"x-served-by"}
        assert end_to_end(passed) == end_to_end(direct)
        assert passed.body == direct.body
        assert not passed.trailers
        if direct.status == 304 or asked.method == b"HEAD":
            assert passed.one("Content-Length") == direct.one("Content-Length")
        # The connection is as good as before.
        assert client.ask(request("GET /after", "X-Test: 1")).status in {200, 501}
        assert database.asked.empty() or database.next().target == b"/after"


def end_to_end(message: Message) -> list[tuple[bytes, bytes]]:
    """Its headers that are not about the link, without the sidecar's own; in their order."""
    named = {
        name.strip().lower() for value in message.all("Connection") for name in value.split(b",")
    }
    without = HOP_BY_HOP | OURS | named | {b"host", b"expect"}
    if message.line.startswith(b"HTTP/") and not message.all("Server"):
        without |= {b"date"}
    return [(name, value) for name, value in message.headers if name.lower() not in without]


def test_an_absolute_target_is_taken_for_its_path(plain: Front) -> None:
    for target in ("http://app.example:81/b%2F?c", "HTTP://x/b%2F?c", "http://@o.example/b%2F?c"):
        assert plain.get(target).status == 200
        asked = plain.database.next()
        assert asked.target == b"/b%2F?c"
        assert asked.one("Host") == f"127.0.0.1:{plain.database.port}".encode()


def test_what_is_no_target_is_refused(plain: Front) -> None:
    for line in ("OPTIONS *", "CONNECT elsewhere.example:443", "GET elsewhere", "GET /ä"):
        refused = plain.ask(request(line, "X-Test: 1"))
        assert refused.status in {400, 404, 405, 501}, refused
        assert json.loads(refused.body)["error"], refused
    assert plain.database.asked.empty()


def test_bytes_that_are_no_text_in_a_request_are_refused_and_not_lost(plain: Front) -> None:
    refused = plain.ask(request("GET /a", "X-Test: 1", b"X-Name: J\xfcrgen"))
    assert (refused.status, json.loads(refused.body)["error"]) == (400, "not_utf8"), refused
    assert plain.database.asked.empty()


def test_repetitions_in_a_request_are_kept_however_they_are_spelled(plain: Front) -> None:
    assert plain.get("/a", "X-Many: 1", "x-many: 2", "Other: x", "X-MANY: 3").status == 200
    assert plain.database.next().all("X-Many") == [b"1", b"2", b"3"]


def test_lines_beyond_the_limit_are_refused(plain: Front) -> None:
    refused = plain.get("/a", "X-Long: " + "l" * 40_000)
    assert (refused.status, json.loads(refused.body)["error"]) == (400, "bad_http")
    plain.database.on("/long", answer("200 OK", "X-Long: " + "l" * 40_000, body=b"x"))
    refused = plain.get("/long")
    assert (refused.status, json.loads(refused.body)["error"]) == (503, "database_unavailable")


def test_a_body_is_asked_for_when_a_client_waits_for_that(plain: Front) -> None:
    with plain.connected() as client:
        client.send(request("POST /e", "X-Test: 1", "Content-Length: 3", "Expect: 100-continue"))
        assert client.source.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert client.source.readline() == b"\r\n"
        client.send(b"abc")
        assert client.answer().status == 200
    asked = plain.database.next()
    assert (asked.body, asked.one("Expect")) == (b"abc", None)


def test_requests_in_a_row_on_one_connection_are_answered_in_order(plain: Front) -> None:
    for number in range(5):
        plain.database.on(f"/r{number}", answer("200 OK", body=b"%d" % number))
    with plain.connected() as client:
        client.send(b"".join(request(f"GET /r{number}", "X-Test: 1") for number in range(5)))
        assert [client.answer().body for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
    plain.database.forget()


def test_a_client_of_http_1_0_gets_its_answer_and_the_end(plain: Front) -> None:
    plain.database.on("/old", answer("200 OK", "Transfer-Encoding: chunked", body=chunked(ODD)))
    with plain.connected() as client:
        client.send(b"GET /old HTTP/1.0\r\nX-Test: 1\r\n\r\n")
        found = client.answer()
    assert (found.status, found.body, found.all("Transfer-Encoding")) == (200, ODD, [])
    plain.database.forget()


def test_nothing_of_one_client_reaches_another(plain: Front) -> None:
    """Over kept connections of both sides, in front of a database that sets cookies."""

    def say(exchange) -> None:  # type: ignore[no-untyped-def]
        asked = exchange.read()
        names = [value for name, value in asked.headers if name == b"X-Name"]
        cookies = asked.all("Cookie")
        body = b"|".join([*names, *cookies, asked.target, asked.body])
        exchange.say(
            answer("200 OK", b"Set-Cookie: id=" + names[0], b"X-Name: " + names[0], body=body)
        )

    plain.database.on("/mine", say)
    wrong: list[object] = []

    def be(number: int) -> None:
        name = b"client-%d" % number
        with plain.connected() as client:
            for turn in range(40):
                own_cookie = [b"Cookie: own=" + name] if turn % 3 == 0 else []
                body = name * (turn + 1) if turn % 2 else b""
                method = "POST" if turn % 2 else "GET"
                target = f"/mine?{number}.{turn}"
                found = client.ask(
                    request(
                        f"{method} {target}",
                        "X-Test: 1",
                        b"X-Name: " + name,
                        *own_cookie,
                        body=body,
                    )
                )
                cookie = [b"own=" + name] if own_cookie else []
                wanted = b"|".join([name, *cookie, target.encode(), body])
                if (found.body, found.all("Set-Cookie")) != (wanted, [b"id=" + name]):
                    wrong.append((number, turn, found))

    clients = [threading.Thread(target=be, args=(number,)) for number in range(24)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    assert not wrong, wrong[:3]
    plain.database.forget()
