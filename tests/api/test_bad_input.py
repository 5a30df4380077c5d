"""Bad input is refused with a word and a place, costs no data, and never answers 500."""

import asyncio
import gzip
import json
import string
import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.api.cursors import seal
from sidecar.store.calls import Filter
from tests.api.bad_bodies import BAD_BODIES, DELETE, LIST, UPDATE, WRITE, one
from tests.api.conftest import Api, numbered


async def test_every_bad_body_is_refused_where_it_is_wrong(api: Api) -> None:
    kept = await api.write("doc:kept viewer user:alice")
    for path, body, status, code, message in BAD_BODIES:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await api.send("POST", path, raw, {"Content-Type": "application/json"})
        shown = (path, raw[:120], answer.body)
        assert (answer.status, answer.error) == (status, code), shown
        assert message in answer.message, shown
        assert len(answer.message) <= 600, shown
    assert await api.listed() == ["doc:kept viewer user:alice"]
    assert (await api.write("doc:last viewer user:bob"))["revision"] > kept["revision"]


BAD_HEADERS: list[tuple[str, dict[str, str], int, str]] = [
    (WRITE, {"X-Tenant": ""}, 400, "invalid_tenant"),
    (WRITE, {"X-Tenant": "a b"}, 400, "invalid_tenant"),
    (WRITE, {"X-Tenant": "x" * 65}, 400, "invalid_tenant"),
    (WRITE, {"X-Tenant": "tenant/other"}, 400, "invalid_tenant"),
    (WRITE, {"X-Tenant": "ümlaut"}, 400, "invalid_tenant"),
    (WRITE, {"Idempotency-Key": ""}, 400, "invalid_header"),
    (WRITE, {"Idempotency-Key": "x" * 256}, 400, "invalid_header"),
    (WRITE, {"Idempotency-Key": "schlüssel"}, 400, "invalid_header"),
    (WRITE, {"X-Write-Concern": "some"}, 400, "invalid_header"),
    (WRITE, {"X-Write-Concern": ""}, 400, "invalid_header"),
    (WRITE, {"X-Write-Concern": "Majority"}, 400, "invalid_header"),
    (WRITE, {"X-Write-Concern-Timeout-Ms": "60001"}, 400, "invalid_header"),
    (WRITE, {"X-Write-Concern-Timeout-Ms": "-1"}, 400, "invalid_header"),
    (WRITE, {"X-Write-Concern-Timeout-Ms": "soon"}, 400, "invalid_header"),
    (WRITE, {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
    (WRITE, {"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
    (WRITE, {"Content-Type": "application/json; charset=latin-1"}, 415, "unsupported_media_type"),
    (WRITE, {"Content-Encoding": "rot13"}, 415, "unsupported_encoding"),
    (WRITE, {"Content-Encoding": "gzip"}, 400, "bad_body"),
    (WRITE, {"Expect": "a-miracle"}, 417, "expectation_failed"),
    (LIST, {"X-Revision-Token": ""}, 400, "invalid_token"),
    (LIST, {"X-Revision-Token": "1abc"}, 400, "invalid_token"),
    (LIST, {"X-Revision-Token": "x" * 7000}, 400, "invalid_token"),
    (LIST, {"X-Consistency": "strong"}, 400, "invalid_header"),
    (LIST, {"X-Consistency-Timeout-Ms": "-1"}, 400, "invalid_header"),
    (LIST, {"X-Consistency-Timeout-Ms": "60001"}, 400, "invalid_header"),
    (LIST, {"X-Consistency-Timeout-Ms": "1e3"}, 400, "invalid_header"),
    ("evaluation", {"X-Revision-Token": "?"}, 400, "invalid_token"),
    ("watch", {"Last-Event-ID": "?"}, 400, "invalid_cursor"),
    ("watch", {"X-Revision-Token": "?"}, 400, "invalid_token"),
    (LIST, {"X-Long": "x" * 9000}, 400, "bad_http"),
]


@pytest.mark.parametrize(("path", "headers", "status", "code"), BAD_HEADERS)
async def test_a_bad_header_is_refused(
    api: Api, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    body = {
        WRITE: one(),
        LIST: {},
        "watch": {},
        "evaluation": {
            "subject": {"type": "user", "id": "a"},
            "action": {"name": "viewer"},
            "resource": {"type": "doc", "id": "1"},
        },
    }[path]
    answer = await api.send("POST", path, json.dumps(body).encode(), headers)
    assert (answer.status, answer.error) == (status, code), answer.body
    assert await api.listed() == []


async def test_a_tenant_named_twice_is_refused(api: Api) -> None:
    request = (
        b"POST /access/v1/relationships/list HTTP/1.1\r\nHost: x\r\nX-Tenant: a\r\n"
        b"X-Tenant: b\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    )
    status, body = await spoken(api, request)
    assert (status, body["error"]) == (400, "invalid_header")


async def spoken(api: Api, request: bytes) -> tuple[int, dict[str, Any]]:
    """The answer to bytes on a bare connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert "X-Served-By: us-west-1/node1" in lines, answer
    assert "Content-Type: application/json" in lines, answer
    return int(lines[0].split()[1]), json.loads(body)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nBad Header: x\r\n\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /access/v1/relationships/list HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /access/v1/relationships/list HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ],
)
async def test_what_is_not_http_gets_json_too(api: Api, request_bytes: bytes) -> None:
    status, body = await spoken(api, request_bytes)
    assert (status, body["error"]) == (400, "bad_http")
    assert body["message"]


async def test_a_broken_chunk_is_refused(api: Api) -> None:
    request = (
        b"POST /access/v1/relationships/list HTTP/1.1\r\nHost: x\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"
    )
    status, body = await spoken(api, request)
    assert status == 400
    assert body["error"] in {"bad_http", "bad_body"}


async def test_unknown_paths_say_which_there_are(api: Api) -> None:
    for path in ("/", "/access/v1/relationships", "/access/v2/x", "/health/", "/%ff"):
        answer = await api.send("GET", path)
        assert (answer.status, answer.error) == (404, "not_found"), path
        assert "/access/v1/watch" in answer.message


async def test_a_body_above_the_limit_is_refused(api: Api) -> None:
    raw = json.dumps(one()).encode()
    for headers in ({}, {"Expect": "100-continue"}):
        answer = await api.send("POST", WRITE, raw + b" " * (5 * 1024 * 1024), headers)
        assert (answer.status, answer.error) == (413, "body_too_large")
        assert "4194304" in answer.message
    assert await api.listed() == []


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_body_that_swells_is_stopped_at_the_limit(api: Api, encoding: str) -> None:
    """100 MiB that travel as 100 KiB."""
    swollen = b" " * (100 * 1024 * 1024)
    bomb = gzip.compress(swollen) if encoding == "gzip" else zlib.compress(swollen)
    answer = await api.send("POST", WRITE, bomb, {"Content-Encoding": encoding})
    assert (answer.status, answer.error) == (413, "body_too_large")


async def test_a_list_cursor_fits_only_where_it_was_given(api: Api) -> None:
    await api.write(*numbered(10))
    first = await api.post(LIST, {"subject": "user:alice", "limit": 3})
    cursor = first.body["cursor"]
    assert (await api.post(LIST, {"subject": "user:alice", "cursor": cursor})).status == 200
    for wanted, tenant in [
        ({"subject": "user:bob"}, "default"),
        ({}, "default"),
        ({"subject": "user:alice"}, "acme"),
    ]:
        refused = await api.post(LIST, {**wanted, "cursor": cursor}, x_tenant=tenant)
        assert (refused.status, refused.error) == (400, "invalid_cursor")
    tampered = cursor[:-2] + ("AA" if cursor[-2:] != "AA" else "BB")
    body = {"subject": "user:alice", "cursor": tampered}
    assert (await api.post(LIST, body)).error == "invalid_cursor"


@pytest.mark.parametrize(
    "inside",
    [
        "x",
        "[]",
        "[1,2,3]",
        '["","","@x"]',
        '["-1e300","",""]',
        '["nan","",""]',
        '["0x7","","q"]',
        '["","","@99999999999999999999"]',
    ],
)
async def test_a_cursor_with_a_true_seal_and_a_false_inside_does_no_harm(
    api: Api, inside: str
) -> None:
    await api.write(*numbered(10))
    for wanted in ({}, {"subject": "user:alice"}, {"resource": "doc:1"}):
        cursor = seal(inside, "node1", Filter("default", **wanted))
        answer = await api.post(LIST, {**wanted, "cursor": cursor})
        assert answer.status in {200, 400}, answer.body


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
NAMES = st.text(string.ascii_lowercase + ":#*\x00\u2028ü /", max_size=8)
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "resource": NAMES | st.just("doc:1") | ANYTHING,
        "relation": NAMES | st.just("viewer") | ANYTHING,
        "subject": NAMES | st.just("user:a") | ANYTHING,
        "condition": ANYTHING,
        "expires_at": ANYTHING | st.datetimes().map(lambda at: at.isoformat() + "Z"),
    },
)
BODIES = st.one_of(
    ANYTHING,
    st.fixed_dictionaries({"relationships": st.lists(NEARLY, max_size=4)}),
    st.fixed_dictionaries(
        {
            "updates": st.lists(
                st.fixed_dictionaries(
                    {
                        "operation": st.sampled_from(["insert", "delete", "x"]),
                        "relationship": NEARLY,
                    }
                ),
                max_size=4,
            )
        }
    ),
    st.fixed_dictionaries({"filter": NEARLY}, optional={"limit": ANYTHING}),
    st.fixed_dictionaries({}, optional={"cursor": st.text(), "limit": ANYTHING}),
)


async def test_no_body_at_all_answers_500(api: Api) -> None:
    """Random bodies, nearly right and wholly wrong, on every call that answers once."""
    paths = (WRITE, DELETE, UPDATE, LIST, "evaluation")
    loop = asyncio.get_running_loop()
    seen: set[int] = set()

    @settings(
        max_examples=150,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(paths), BODIES, st.binary(max_size=3))
    def fuzz(path: str, body: object, dirt: bytes) -> None:
        raw = json.dumps(body).encode() + dirt.strip(b"\x00")
        answer = asyncio.run_coroutine_threadsafe(api.send("POST", path, raw), loop).result(20)
        seen.add(answer.status)
        assert answer.status in {200, 400, 413}, (path, raw, answer.body)

    await asyncio.to_thread(fuzz)
    assert 400 in seen


async def test_an_event_source_that_was_never_given_is_refused_before_the_stream(api: Api) -> None:
    answer = await api.post("watch", {"cursor": "d25v"})
    assert (answer.status, answer.error) == (400, "invalid_cursor")
