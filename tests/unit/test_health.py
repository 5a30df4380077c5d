"""What a node says of itself while its store opens, serves and goes, and its targets come."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp.test_utils import make_mocked_request

from sidecar.agent.ship import Target
from sidecar.core.conflict import ConflictResolutionStrategy, Rules
from sidecar.core.topology import Node, NodeId, RegionId, ZoneId
from sidecar.health import RELEASE, Health
from sidecar.metrics import Metrics
from sidecar.store.redis_store import RedisStore

NODE = Node(NodeId("us1"), RegionId("us-west-1"), ZoneId("us-west-1a"), "127.0.0.1:1")


def store_at(url: str) -> RedisStore:
    return RedisStore(
        url,
        prefix="sidecar",
        node="us1",
        rules=Rules.of(ConflictResolutionStrategy.LAST_WRITE_WINS),
        metrics=Metrics(),
        now_us=lambda: 1_790_000_000_000_000,
        random_bits=lambda bits: 7,
    )


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RedisStore]:
    async with store_at(url) as store:
        await store.opened()
        yield store


async def status_of(health: Health) -> int:
    answer = await health.answer(make_mocked_request("GET", "/health"))
    assert json.loads(str(answer.text)) == health.check()[1]
    return answer.status


async def test_a_node_without_redis_is_unhealthy() -> None:
    health = Health(NODE, store_at("unix:///nowhere/valkey.sock"), [Target("eu1", "127.0.0.1:1")])
    is_serving, shown = health.check()
    assert not is_serving
    assert shown["status"] == "unhealthy"
    assert shown["reasons"] == [
        "store: Redis has not answered yet",
        "target eu1 is not connected: no session yet",
    ]
    assert await status_of(health) == 503


async def test_a_node_that_serves_and_ships_is_healthy(valkey_url: str) -> None:
    target = Target("eu1", "127.0.0.1:1")
    async with opened(valkey_url) as store:
        health = Health(NODE, store, [target])
        target.is_connected = True
        assert health.check() == (
            True,
            {
                "status": "healthy",
                "reasons": [],
                "node": "us1",
                "region": "us-west-1",
                "release": RELEASE,
            },
        )
        assert await status_of(health) == 200


async def test_a_node_without_its_targets_is_degraded_and_serves(valkey_url: str) -> None:
    """A load balancer must not take it away because another region is gone."""
    targets = [Target("eu1", "127.0.0.1:1"), Target("ap1", "127.0.0.1:2")]
    async with opened(valkey_url) as store:
        health = Health(NODE, store, targets)
        targets[0].is_connected = True
        targets[1].last_error = "ap1 cannot be reached"
        is_serving, shown = health.check()
        assert is_serving
        assert shown["status"] == "degraded"
        assert shown["reasons"] == ["target ap1 is not connected: ap1 cannot be reached"]
        assert await status_of(health) == 200


async def test_a_partition_that_does_not_serve_degrades_the_node_and_no_more(
    valkey_url: str,
) -> None:
    """The others are independent of it; what is the same for all is said once."""
    target = Target("eu1", "127.0.0.1:1")
    async with opened(valkey_url) as store:
        alone = Health(NODE, store_at("unix:///nowhere/valkey.sock"), [target])
        health = Health(NODE, store, [target], restricted={"eu-central-1, us-west-1": alone})
        is_serving, shown = health.check()
        assert is_serving
        assert shown["status"] == "degraded"
        assert shown["reasons"] == [
            "target eu1 is not connected: no session yet",
            "tenants of eu-central-1, us-west-1: store: Redis has not answered yet",
        ]
        assert await status_of(health) == 200


class Telling:
    """A database whose own words name what is stored."""

    away_because = ""

    def reasons(self) -> list[str]:
        return ["the database is not told what is merged: no type 'patient' in store secret-eu"]

    def facts(self) -> dict[str, object]:
        return {"dialect": "of the tests"}


async def test_the_peer_listener_says_nothing_that_may_name_what_is_stored(valkey_url: str) -> None:
    """Anybody in any region may ask there, and some tenants may not be known in all of them."""
    target = Target("eu1", "127.0.0.1:1")
    async with opened(valkey_url) as store:
        alone = Health(NODE, store_at("unix:///nowhere/valkey.sock"), [target])
        health = Health(NODE, store, [], restricted={"eu-central-1": alone})
        told = json.loads(str((await health.answer_nodes(make_mocked_request("GET", "/"))).text))
        restricted = "tenants of eu-central-1"
        assert told["reasons"] == [restricted] * 2
        health.behind_stands(Telling())
        told = json.loads(str((await health.answer_nodes(make_mocked_request("GET", "/"))).text))
        why = "the database is not told what is merged"
        assert told["reasons"] == [why, restricted, restricted]
        assert "secret-eu" in str(health.check()[1])


async def test_a_node_alone_is_healthy(valkey_url: str) -> None:
    async with opened(valkey_url) as store:
        assert Health(NODE, store, []).check()[1]["status"] == "healthy"
    assert Health(NODE, store, []).check()[1]["status"] == "unhealthy"
