"""The id of a request: whose it is, what is taken for one, and that it comes back once."""

import asyncio
from collections.abc import Mapping

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from sidecar import logs, request_ids
from sidecar.hops import Head, Passed
from sidecar.request_ids import FROM_NODE, MAX_ID, REQUEST_ID


async def taken(headers: Mapping[str, str], name: str = REQUEST_ID) -> str:
    async def serve() -> str:
        request_ids.take(make_mocked_request("GET", "/", headers=headers), name)
        return logs.request_id()

    return await asyncio.create_task(serve())


async def test_an_application_names_its_request() -> None:
    assert await taken({"x-request-id": "order-17/retry 2"}) == "order-17/retry 2"
    assert await taken({"X-Request-Id": "a" * MAX_ID}) == "a" * MAX_ID


@pytest.mark.parametrize("given", ["", "a" * (MAX_ID + 1), "a\tb", "a\x1b[31mb", "é"])
async def test_what_is_no_id_is_not_taken(given: str) -> None:
    """It would be written into every line of the log; the request itself is served all the same."""
    made = await taken({"X-Request-Id": given})
    assert made
    assert made != given


async def test_ids_that_are_made_here_differ() -> None:
    made = [await taken({}) for _ in range(100)]
    assert len(set(made)) == 100


async def test_between_nodes_only_their_own_header_counts_and_none_is_made() -> None:
    assert await taken({"X-Request-Id": "a"}, FROM_NODE) == ""
    assert await taken({"X-Sidecar-Request-Id": "a"}, FROM_NODE) == "a"


async def test_an_id_comes_back_once() -> None:
    """A database that gives one itself keeps its own: it is one of the headers that pass."""
    logs.speak_of_request("mine")
    plain = web.Response()
    request_ids.give_back(plain)
    assert plain.headers["X-Request-Id"] == "mine"
    head: Head = [(b"A", b"b")]
    request_ids.give_back(Passed(200, "OK", head, 0, b""))
    assert head == [(b"A", b"b"), (b"X-Request-Id", b"mine")]
    theirs: Head = [(b"x-request-id", b"theirs")]
    request_ids.give_back(Passed(200, "OK", theirs, 0, b""))
    assert theirs == [(b"x-request-id", b"theirs")]
