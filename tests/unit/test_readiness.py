"""Whether a node is ready and how late it may be, and how long those who ask are waited for."""

import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from sidecar.agent.lateness import ON_ITS_WAY_US, Lateness
from sidecar.agent.peers import PRESENT_US, Told
from sidecar.agent.probe import DRAINING
from sidecar.api.answers import Answers
from sidecar.core.vector import Vector
from sidecar.errors import Unavailable
from sidecar.health import Health
from sidecar.partition import Partition
from sidecar.readiness import LEAST_GRACE_S, MAX_ASKERS, RECENT_S, Askers, Readiness
from sidecar.store.calls import Phase
from sidecar.store.redis_store import RedisStore
from tests.unit.test_health import NODE, store_at

SECOND = 1_000_000
WALL = 1_790_000_000 * SECOND
EU = "eu1.aaaaaaaa0001"


class Clock:
    """Both clocks of a node, which a test moves."""

    def __init__(self) -> None:
        self.now_us = 1_000 * SECOND

    def move(self, us: int) -> None:
        self.now_us += us

    def told(self, vector: Vector) -> dict[str, Told]:
        """eu1 tells now what it has."""
        return {"eu1": Told(EU, Phase.SERVING, False, vector, self.now_us, ("eu1", "us1"), None)}

    def lateness(self) -> Lateness:
        return Lateness("us1", lambda: self.now_us, lambda: WALL + self.now_us)


def test_what_was_named_and_is_missing_makes_a_node_late() -> None:
    clock = Clock()
    late = clock.lateness()
    assert late.ms(clock.told({EU: 5}), {EU: 5}) == 0
    clock.move(SECOND)
    told = clock.told({EU: 9})
    assert late.ms(told, {EU: 5}) == 0, "it is on its way"
    clock.move(ON_ITS_WAY_US)
    assert late.ms(told, {EU: 5}) == 1_250, "nothing was missing a second and a quarter ago"
    clock.move(SECOND)
    assert late.ms(clock.told({EU: 20}), {EU: 8}) == 2_250
    assert late.ms(clock.told({EU: 20}), {EU: 9}) < 2_250, "it has come up to the second time"
    assert late.ms(clock.told({EU: 20}), {EU: 20}) == 0


def test_a_node_that_was_away_is_as_late_as_what_it_has() -> None:
    """It has never had everything since it started, so the timestamps have to tell."""
    clock = Clock()
    late = clock.lateness()
    had = WALL + clock.now_us - 600 * SECOND
    told = clock.told({EU: had + 599 * SECOND})
    clock.move(ON_ITS_WAY_US)
    assert late.ms(told, {EU: had}) == 600_250


def test_who_is_not_heard_of_makes_nobody_late() -> None:
    """A region that is lost for good must not take the others out of service."""
    clock = Clock()
    late = clock.lateness()
    late.ms(clock.told({EU: 5}), {EU: 5})
    told = clock.told({EU: 9})
    clock.move(PRESENT_US + 1)
    assert late.ms(told, {EU: 5}) == 0


def test_own_writes_and_those_of_dead_incarnations_are_not_waited_for() -> None:
    clock = Clock()
    late = clock.lateness()
    told = clock.told({"us1.aaaaaaaa0001": 9, "eu1.aaaaaaaa0000": 9, EU: 1})
    clock.move(SECOND)
    assert late.ms(told, {EU: 1}) == 0


def test_what_a_node_told_and_then_lost_is_not_waited_for() -> None:
    """It crashed with its last second: nobody has that, and it must not take this node out."""
    clock = Clock()
    late = clock.lateness()
    assert late.ms(clock.told({EU: 5}), {EU: 5}) == 0
    clock.move(SECOND)
    assert late.ms(clock.told({EU: 9}), {EU: 5}) == 0, "it is on its way"
    clock.move(SECOND)
    again = {EU: 5, "eu1.bbbbbbbb0000": 20}
    assert late.ms(clock.told(again), again) == 0


def test_nobody_asks_so_nobody_is_waited_for() -> None:
    askers = Askers()
    assert askers.grace_s(0.0) == 0.0
    askers.note("10.0.0.1", 100.0)
    assert askers.grace_s(100.0) == LEAST_GRACE_S
    assert askers.grace_s(100.0 + RECENT_S) == LEAST_GRACE_S
    assert askers.grace_s(100.1 + RECENT_S) == 0.0, "it has gone"


def test_the_longest_pause_of_those_who_ask_counts_three_times() -> None:
    askers = Askers()
    for tenth in range(50):
        askers.note("10.0.0.1", 100 + tenth / 10)
    assert askers.grace_s(105.0) == LEAST_GRACE_S
    for second in (100, 102, 104):
        askers.note("10.0.0.2", second)
    assert askers.grace_s(105.0) == 6.0


def test_one_question_and_another_much_later_is_no_habit() -> None:
    askers = Askers()
    askers.note("10.0.0.1", 100)
    askers.note("10.0.0.1", 100 + RECENT_S + 1)
    assert askers.grace_s(100 + RECENT_S + 1) == LEAST_GRACE_S


def test_so_many_askers_are_remembered_and_no_more() -> None:
    askers = Askers()
    askers.note("slow", 100)
    askers.note("slow", 110)
    for number in range(MAX_ASKERS):
        askers.note(f"10.0.{number}", 110)
    assert askers.grace_s(110) == LEAST_GRACE_S


@pytest.fixture
async def store(valkey_url: str) -> AsyncIterator[RedisStore]:
    async with store_at(valkey_url) as store:
        await store.opened()
        yield store


def readiness_of(health: Health, store: RedisStore) -> Readiness:
    one = SimpleNamespace(
        name="global.0",
        me=SimpleNamespace(node="us1"),
        store=store,
        peers=SimpleNamespace(told={}, joins=""),
        regions=None,
    )
    return Readiness(health, [cast("Partition", one)], Answers(NODE), lambda: WALL)


async def ask(readiness: Readiness, path: str) -> tuple[int, dict[str, Any]]:
    route = readiness.routes()[path.partition("?")[0]]
    answer = await route(make_mocked_request("GET", path))
    assert isinstance(answer, web.Response)
    return answer.status, json.loads(str(answer.text))


async def test_a_node_that_serves_is_ready(store: RedisStore) -> None:
    readiness = readiness_of(Health(NODE, store, []), store)
    status, body = await ask(readiness, "/readyz")
    assert (status, body["status"], body["reasons"]) == (200, "ready", [])
    status, body = await ask(readiness, "/readyz?max_lag_ms=0")
    assert (status, body["lag_ms"]) == (200, 0)


async def test_a_node_without_redis_lives_and_is_not_ready() -> None:
    away = store_at("unix:///nowhere/valkey.sock")
    readiness = readiness_of(Health(NODE, away, []), away)
    status, body = await ask(readiness, "/readyz")
    assert (status, body["error"]) == (503, "not_ready")
    assert body["message"] == "store: Redis has not answered yet"
    assert (await ask(readiness, "/livez"))[0] == 200


async def test_a_node_that_refuses_writes_is_not_ready(store: RedisStore) -> None:
    readiness = readiness_of(Health(NODE, store, []), store)
    store.refuse(None, Unavailable("clock_ahead", "the clock is ahead"))
    status, body = await ask(readiness, "/readyz")
    assert (status, body["reasons"]) == (503, ["writes are refused: the clock is ahead"])


async def test_a_node_that_goes_is_not_ready_and_still_serves(store: RedisStore) -> None:
    """Who asks for its health hears that it means it; its own router goes on."""
    health = Health(NODE, store, [])
    readiness = readiness_of(health, store)
    before = health.seen_by_router()
    health.drains()
    status, body = await ask(readiness, "/readyz")
    assert (status, body["reasons"]) == (503, ["draining: this node is about to end"])
    is_serving, shown = health.check()
    assert not is_serving
    assert shown["error"] == DRAINING
    assert health.seen_by_router() is before


async def test_a_partition_that_is_not_open_yet_holds_a_node_back(store: RedisStore) -> None:
    alone = Health(NODE, store_at("unix:///nowhere/valkey.sock"), [])
    health = Health(NODE, store, [], restricted={"eu-central-1": alone})
    status, body = await ask(readiness_of(health, store), "/readyz")
    assert status == 503
    assert body["reasons"] == ["tenants of eu-central-1: store: Redis has not answered yet"]


BAD = [
    *("max_lag_ms=", "max_lag_ms=-1", "max_lag_ms=1.5", "max_lag_ms=ten", "max_lag_ms=3600001"),
    *("max_lag_ms=1&max_lag_ms=2", "max_lag=5", "max_lag_ms=%D9%A3"),
]


@pytest.mark.parametrize("query", BAD)
async def test_a_bad_parameter_is_refused(store: RedisStore, query: str) -> None:
    """An operator who mistypes it would otherwise believe that it holds."""
    status, body = await ask(readiness_of(Health(NODE, store, []), store), f"/readyz?{query}")
    assert (status, body["error"]) == (400, "invalid_parameter")
    assert "max_lag_ms" in body["message"]
