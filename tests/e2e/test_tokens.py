"""Tokens and write concern between real regions: what a client is told holds everywhere.

Three regions whose links take 50 ms each way. The third one runs a build in which reads do not
wait for their token, so that the same run shows what the wait is worth.
"""

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import aiohttp
import pytest

from sidecar.core.token import Token
from tests.chaos.variants import Patch, tree_with
from tests.e2e.conftest import MakeWorld
from tests.world import (
    LIST,
    UPDATE,
    WATCH,
    WRITE,
    Answer,
    Node,
    Pace,
    Triple,
    World,
    documents,
    triple_of,
)

CLIENTS = 16
FAR = Pace(there_s=0.05, back_s=0.05)
EVALUATION = "/access/v1/evaluation"
NAMES = ("resource", "relation", "subject")
QUESTION = {
    "resource": {"type": "document", "id": "1"},
    "action": {"name": "viewer"},
    "subject": {"type": "user", "id": "alice"},
}
NO_WAIT = Patch(
    "sidecar/api/waits.py",
    "    if consistency is None:\n        return\n    token",
    "    return\n    token",
)


@pytest.fixture(scope="module")
def world(make_shared_world: MakeWorld, tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_shared_world(3, replication={"probe_interval_max_s": 1})
    world.nodes[2].tree = tree_with(tmp_path_factory.mktemp("no-wait"), [NO_WAIT])
    return world.start()


@pytest.fixture(autouse=True)
def far_apart(world: World) -> Iterator[None]:
    for link in world.links:
        link.slow(FAR)
    yield
    world.heal()


# -- read your writes ------------------------------------------------------------------------------


class Reader:
    """Clients that write at one node, and read the same tuple with the token at another at once."""

    def __init__(self, writers: Sequence[Node], readers: Sequence[Node], times: int) -> None:
        self._pairs = [(w, r) for w in writers for r in readers if w is not r]
        self._left = iter(range(times))
        self.stale: list[str] = []

    async def run(self) -> None:
        headers = {"Content-Type": "application/json"}
        async with aiohttp.ClientSession(headers=headers) as session, asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._client(session, number, random.Random(number)))

    async def _client(
        self, session: aiohttp.ClientSession, number: int, dice: random.Random
    ) -> None:
        """Each client has tuples of its own, and toggles them: a stale answer is a wrong one."""
        is_there: dict[int, bool] = {}
        for _ in self._left:
            writer, reader = dice.choice(self._pairs)
            one = dice.randrange(5)
            is_there[one] = not is_there.get(one, False)
            named = {
                "resource": f"document:{number}",
                "relation": "viewer",
                "subject": f"user:{one}",
            }
            operation = "insert" if is_there[one] else "delete"
            body = {"updates": [{"operation": operation, "relationship": named}]}
            written = await self._ask(session, writer, UPDATE, body)
            asked = {
                "resource": {"type": "document", "id": str(number)},
                "action": {"name": "viewer"},
                "subject": {"type": "user", "id": str(one)},
            }
            token = written["token"]
            if dice.random() < 0.5:
                found = await self._ask(session, reader, EVALUATION, asked, token)
                is_seen = found["decision"]
            else:
                found = await self._ask(session, reader, LIST, named, token)
                is_seen = found["relationships"] == [named]
            if is_seen != is_there[one]:
                self.stale.append(f"{named} {operation} at {writer.name}, read at {reader.name}")

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        node: Node,
        path: str,
        body: object,
        token: str | None = None,
    ) -> dict[str, Any]:
        headers = {} if token is None else {"X-Revision-Token": token}
        headers["X-Consistency-Timeout-Ms"] = "30000"
        async with session.post(
            f"{node.url}{path}", data=json.dumps(body), headers=headers
        ) as answer:
            found: dict[str, Any] = await answer.json()
            assert answer.status == 200, found
            return found


@pytest.mark.parametrize("times", [400, pytest.param(10_000, marks=pytest.mark.soak)])
def test_a_read_with_the_token_of_a_write_is_never_stale_in_another_region(
    world: World, times: int
) -> None:
    first, second, without_wait = world.nodes
    reader = Reader([first, second, without_wait], [first, second], times)
    asyncio.run(reader.run())
    assert reader.stale == []
    broken = Reader([first, second], [without_wait], times)
    asyncio.run(broken.run())
    print(f"\n{times:,} reads: none stale; without the wait {len(broken.stale):,} of {times:,}")
    assert len(broken.stale) > times // 20


# -- write concern ---------------------------------------------------------------------------------


def write(node: Node, *triples: Triple, **headers: str) -> Answer:
    body = {"relationships": [dict(zip(NAMES, one, strict=True)) for one in triples]}
    return node.post(WRITE, body, **headers)


def test_what_the_answer_to_a_write_with_concern_promises_is_so(world: World) -> None:
    """Read without a token, in the very moment of the answer."""
    first, second, third = world.nodes
    for number in range(10):
        (one,) = documents([1_000 + number])
        began = time.monotonic()
        answer = write(first, one, X_Write_Concern="all")
        assert answer.status == 200, answer
        assert time.monotonic() - began > 0.1, "the link is as long as this"
        assert one in second.triples() & third.triples()
        answer = write(second, *documents([2_000 + number]), X_Write_Concern="majority")
        assert answer.status == 200, answer
        assert set(documents([2_000 + number])) <= first.triples() | third.triples()
    world.settle()


def test_a_region_that_is_away_holds_up_all_and_not_the_majority(world: World) -> None:
    first, second, third = world.nodes
    for other in (first, second):
        world.link(other.name, third.name).cut()
        world.link(third.name, other.name).cut()
    one, two = documents([3_000, 3_001])
    assert write(first, one, X_Write_Concern="majority").status == 200
    limited = {"X_Write_Concern": "all", "X_Write_Concern_Timeout_Ms": "600"}
    for replayed in (None, "true"):
        answer = write(first, two, **limited, Idempotency_Key="once")
        assert (answer.status, answer.body["error"]) == (504, "write_concern_timeout")
        assert "no node of ap-southeast-1 has acknowledged it" in answer.body["message"]
        assert answer.headers.get("Idempotency-Replayed") == replayed
    token = answer.headers["X-Revision-Token"]
    # It was accepted, and goes where it can.
    found = second.post(LIST, {"resource": two[0]}, X_Revision_Token=token)
    assert [triple_of(found_one) for found_one in found.body["relationships"]] == [two]
    world.heal()
    limited["X_Write_Concern_Timeout_Ms"] = "20000"
    answer = write(first, two, **limited, Idempotency_Key="once")
    assert (answer.status, answer.headers["X-Revision-Token"]) == (200, token)
    assert two in third.triples()


def test_an_acknowledgement_comes_also_by_way_of_another_region(world: World) -> None:
    """Where there is no session, the rows in the heartbeats of others tell who has what."""
    first, second, third = world.nodes
    world.link(first.name, third.name).cut()
    world.link(third.name, first.name).cut()
    (one,) = documents([4_000])
    answer = write(first, one, X_Write_Concern="all", X_Write_Concern_Timeout_Ms="30000")
    assert answer.status == 200, answer
    assert one in second.triples() & third.triples()
    world.heal()
    world.settle()


# -- tokens ----------------------------------------------------------------------------------------


def test_tokens_of_nowhere_are_refused_and_those_of_a_node_that_is_gone_stay_good(
    world: World,
) -> None:
    first, second, _ = world.nodes
    (one,) = documents([5_000])
    token = write(first, one, X_Write_Concern="majority").body["token"]
    foreign = Token("node9", 5, {"node9.mwsgf5bo35gt": 5}).encode()
    for bad in (foreign, token[:-3], token + token, "1" + token, "x"):
        for path, body in ((LIST, {}), (WATCH, {}), (EVALUATION, QUESTION)):
            answer = second.post(path, body, X_Revision_Token=bad)
            assert (answer.status, answer.body["error"]) == (400, "invalid_token"), (path, bad)
    first.kill()
    try:
        found = second.post(LIST, {"resource": one[0]}, X_Revision_Token=token)
        assert [triple_of(found_one) for found_one in found.body["relationships"]] == [one]
        # What the third region may have and this one has not: it says so, in time.
        ahead = Token.decode(token)
        later = {origin: t + 60_000_000 for origin, t in ahead.vector.items()}
        answer = second.post(
            LIST,
            {},
            X_Revision_Token=Token(first.name, ahead.revision, later).encode(),
            X_Consistency_Timeout_Ms="300",
        )
        assert (answer.status, answer.body["error"]) == (409, "token_not_reached")
    finally:
        first.start()
