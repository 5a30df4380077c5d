"""Write concern as a client sees it; what other regions have is told to the node by hand."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from sidecar.core.token import Token
from sidecar.core.vector import Vector
from tests.api.conftest import Answer, Api, numbered, running_api, tuple_of
from tests.servers import RealValkey

OTHERS = {"node2": "eu-central-1", "node3": "ap-southeast-1"}
ONE = {"relationships": [tuple_of("doc:1 viewer user:alice")]}
WRITE, DELETE, UPDATE = (f"relationships/{name}" for name in ("write", "delete", "update"))


@pytest.fixture
async def three(valkey: RealValkey) -> AsyncIterator[Api]:
    """A node of three regions; the two others say nothing by themselves."""
    async with running_api(valkey, others=OTHERS) as running:
        yield running


async def stored(api: Api, count: int) -> Vector:
    """The vector of the node when so many relationships are there; the answers may wait still."""
    while len(await api.listed()) != count:
        await asyncio.sleep(0.01)
    return api.store.vector


def unmet(answer: Answer, *missing: str) -> str:
    """The token of an answer that says that these regions have not acknowledged the write."""
    assert (answer.status, answer.error) == (504, "write_concern_timeout")
    assert "accepted on this node and goes on replicating" in answer.message
    assert f"no node of {', '.join(missing)} has" in answer.message
    assert answer.headers["X-Revision-Token"] == answer.body["token"]
    assert Token.decode(answer.body["token"]).revision == int(answer.body["revision"])
    return str(answer.body["token"])


async def test_the_answer_comes_when_enough_regions_have_the_write(three: Api) -> None:
    majority = asyncio.create_task(three.post(WRITE, ONE, x_write_concern="majority"))
    everywhere = asyncio.create_task(
        three.post(
            WRITE, {"relationships": [tuple_of("doc:2 viewer user:bob")]}, x_write_concern="all"
        )
    )
    vector = await stored(three, 2)
    assert not majority.done()
    three.concerns.heard("node3", vector)
    answer = await majority
    assert (answer.status, answer.body["relationships_written"]) == (200, 1)
    assert not everywhere.done()
    three.concerns.heard("node2", vector, "node3")
    assert (await everywhere).status == 200


async def test_a_write_that_too_few_regions_have_in_time_is_accepted_and_says_so(
    three: Api,
) -> None:
    limited = {"x_write_concern": "majority", "x_write_concern_timeout_ms": "50"}
    began = asyncio.get_running_loop().time()
    answer = await three.post(WRITE, ONE, **limited)
    assert 0.05 <= asyncio.get_running_loop().time() - began < 3
    token = unmet(answer, "eu-central-1", "ap-southeast-1")
    assert answer.body["relationships_written"] == 1
    assert await three.decides("doc:1", "viewer", "user:alice", x_revision_token=token)
    three.concerns.heard("node2", three.store.vector)
    limited = {"x_write_concern": "all", "x_write_concern_timeout_ms": "0"}
    update = {"updates": [{"operation": "delete", "relationship": ONE["relationships"][0]}]}
    answer = await three.post(UPDATE, update, **limited)
    unmet(answer, "eu-central-1", "ap-southeast-1")
    assert answer.body["relationships_deleted"] == 1
    assert await three.listed() == []


async def test_a_repeat_with_the_same_key_waits_for_the_write_of_the_first_time(three: Api) -> None:
    request = {"x_write_concern": "all", "idempotency_key": "k"}
    first = await three.post(WRITE, ONE, x_write_concern_timeout_ms="0", **request)
    await three.write("doc:2 viewer user:alice")
    vector = {origin: int(first.body["revision"]) for origin in three.store.vector}
    three.concerns.heard("node2", vector)
    second = await three.post(WRITE, ONE, x_write_concern_timeout_ms="20", **request)
    assert unmet(second, "ap-southeast-1") == first.body["token"]
    assert second.headers["Idempotency-Replayed"] == "true"
    repeat = asyncio.create_task(three.post(WRITE, ONE, **request))
    three.concerns.heard("node3", vector)
    third = await repeat
    assert (third.status, third.body["token"]) == (200, first.body["token"])
    assert third.headers["Idempotency-Replayed"] == "true"


async def test_a_delete_that_found_nothing_has_nothing_to_wait_for(three: Api) -> None:
    nothing = {"filter": {"resource": "doc:none"}}
    limited = {"x_write_concern": "all", "x_write_concern_timeout_ms": "20"}
    answer = await three.post(DELETE, nothing, **limited)
    assert (answer.status, answer.body["relationships_deleted"]) == (200, 0)
    await three.write(*numbered(3))
    answer = await three.post(DELETE, {"filter": {"subject": "user:alice"}}, **limited)
    unmet(answer, "eu-central-1", "ap-southeast-1")
    assert answer.body["relationships_deleted"] == 3


async def test_a_refused_write_is_refused_at_once(three: Api) -> None:
    await three.write("doc:1 viewer user:alice")
    answer = await three.post(WRITE, {**ONE, "expected_revision": "1"}, x_write_concern="all")
    assert (answer.status, answer.error) == (409, "revision_mismatch")


async def test_a_write_that_this_node_loses_meanwhile_does_not_go_on_replicating(
    three: Api,
) -> None:
    """Its Redis came back without it; whether it is lost everywhere is not known yet."""
    waiting = asyncio.create_task(
        three.post(WRITE, ONE, x_write_concern="majority", x_write_concern_timeout_ms="500")
    )
    await stored(three, 1)
    assert three.valkey.call("FLUSHALL").startswith(b"+OK")
    # The first that asks it for anything finds out.
    assert (await three.post("relationships/list", {})).status == 503
    answer = await waiting
    assert (answer.status, answer.error) == (503, "outcome_unknown")


async def test_a_repeat_of_a_write_that_was_lost_does_not_wait(valkey: RealValkey) -> None:
    lost: dict[str, int] = {}

    def lost_of(vector: Vector) -> str | None:
        return next((o for o, t in vector.items() if t > lost.get(o, t)), None)

    async with running_api(valkey, others=OTHERS, lost_of=lost_of) as api:
        await api.write("doc:1 viewer user:alice", idempotency_key="k")
        lost.update({origin: timestamp - 1 for origin, timestamp in api.store.vector.items()})
        answer = await api.post(WRITE, ONE, idempotency_key="k", x_write_concern="all")
        assert (answer.status, answer.error) == (410, "write_lost")


async def test_clients_that_wait_do_not_hold_up_the_end_of_the_node(three: Api) -> None:
    waiting = [
        asyncio.create_task(
            three.post(WRITE, body, x_write_concern="all", x_write_concern_timeout_ms="60000")
        )
        for body in (ONE, {"relationships": [tuple_of("doc:2 viewer user:bob")]})
    ]
    await stored(three, 2)
    began = asyncio.get_running_loop().time()
    await three.runner.cleanup()
    for answer in await asyncio.gather(*waiting):
        unmet(answer, "eu-central-1", "ap-southeast-1")
    assert asyncio.get_running_loop().time() - began < 4


async def test_a_client_that_goes_away_leaves_nothing_behind(three: Api) -> None:
    waiting = asyncio.create_task(three.post(WRITE, ONE, x_write_concern="all"))
    vector = await stored(three, 1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    three.concerns.heard("node2", vector)
    three.concerns.heard("node3", vector)
    assert await three.listed() == ["doc:1 viewer user:alice"]
