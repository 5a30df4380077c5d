"""The specification, the scripts and the model say the same about random histories."""

import os
import random
from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest
import redis

from sidecar.core.conflict import ConflictResolutionStrategy
from tests import twins
from tests.lua.histories import STRATEGIES, run_history
from tests.servers import RealValkey

ON_REAL, ON_REAL_SOAK = 150, 10_000
ON_FAKE, ON_FAKE_SOAK = 10, 500


@pytest.fixture
def real(valkey: RealValkey) -> Iterator[Any]:
    with redis.Redis.from_url(valkey.url, protocol=2) as client:
        yield client


def first_seed() -> int:
    """SEED=n replays from there; otherwise every run looks elsewhere."""
    seed = int(os.environ.get("SEED", random.SystemRandom().randrange(10**9)))
    print(f"first seed {seed}; again with SEED={seed}")
    return seed


def on_real(server: Any, strategy: ConflictResolutionStrategy, count: int) -> None:
    first = first_seed()
    for seed in range(first, first + count):
        run_history(server, seed, strategy)
        if seed % 20 == 0:
            server.flushall()


def on_fake(strategy: ConflictResolutionStrategy, count: int) -> None:
    first = first_seed()
    for seed in range(first, first + count):
        # A fresh one each time: a script that sets a global would break all that follow.
        run_history(fakeredis.FakeRedis(), seed, strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_random_histories_on_a_real_server(real: Any, strategy: ConflictResolutionStrategy) -> None:
    on_real(real, strategy, ON_REAL)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_random_histories_on_fakeredis(strategy: ConflictResolutionStrategy) -> None:
    on_fake(strategy, ON_FAKE)


@pytest.mark.parametrize("kind", ["real", "fake"])
def test_overrides_and_a_custom_script_agree_with_their_twins(kind: str, real: Any) -> None:
    rules = twins.mixed()
    first = first_seed()
    for seed in range(first, first + (60 if kind == "real" else 10)):
        server = real if kind == "real" else fakeredis.FakeRedis()
        run_history(server, seed, rules.strategy, given=(rules, twins.MAJORITY))


@pytest.mark.soak
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_many_histories_on_a_real_server(real: Any, strategy: ConflictResolutionStrategy) -> None:
    on_real(real, strategy, ON_REAL_SOAK)


@pytest.mark.soak
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_many_histories_on_fakeredis(strategy: ConflictResolutionStrategy) -> None:
    on_fake(strategy, ON_FAKE_SOAK)
