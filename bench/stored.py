"""Writes into a node that holds much, against the same writes into one that holds little.

Single writes over 64 connections, as most applications make them, and bulk writes, which leave the
most of the time to the store, where size could matter. All of them insert new tuples, so the small
node is a new one in each run; the large one is filled once and only grows by what is measured. Both
are filled alike, one load generator drives them in turn, and while one of them is measured the
other has nothing to do.
"""

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from redis.asyncio import Redis

from bench import bulk, single
from bench.children import answer_of
from bench.figure import Figure, against_floor
from bench.load import post_all
from bench.nodes import Cluster, cluster, running
from bench.plan import Plan
from bench.texts import write_bodies

BAR = 0.9
FILL_PER_REQUEST = 5_000
FILL_CONNECTIONS = 2
_FILL_AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class _Load:
    """One way to write, and the relationships per second that it made of little and of much."""

    name: str
    what: str
    connections: int
    per_request: int
    bodies: int
    little: list[float] = field(default_factory=list)
    much: list[float] = field(default_factory=list)


async def measure(plan: Plan) -> list[Figure]:
    """A figure for each way to write, in relationships."""
    sizes = plan.sizes
    loads = (
        _Load("stored_single", "single writes", single.CONNECTIONS, 1, sizes.single_bodies),
        _Load("stored_bulk", "bulk writes", bulk.CONNECTIONS, bulk.PER_REQUEST, sizes.bulk_bodies),
    )
    large = cluster(plan.place("stored-much"), 1)
    async with running(large, [0], plan.launch):
        await _fill(plan, large, sizes.stored_much)
        small = cluster(plan.place("stored-little"), 1)
        for run in range(sizes.runs):
            async with running(small, [0], plan.launch):
                await _fill(plan, small, sizes.stored_little)
                for load in loads:
                    little, much = await _rates(plan, load, (small, large), run)
                    load.little.append(little)
                    load.much.append(much)
            shutil.rmtree(small.nodes[0].folder)
            small.nodes[0].folder.mkdir()
            found = ", ".join(
                f"{load.what} {load.little[-1]:,.0f} and {load.much[-1]:,.0f}" for load in loads
            )
            plan.say(f"a small and a large store, run {run + 1} of {sizes.runs}: {found}")
    return [
        against_floor(
            load.name,
            f"{load.what} at {sizes.stored_much:,} tuples",
            "relationships/s",
            load.little,
            load.much,
            bar=BAR,
        )
        for load in loads
    ]


async def _fill(plan: Plan, product: Cluster, tuples: int) -> None:
    bodies = write_bodies("fill", tuples // FILL_PER_REQUEST, FILL_PER_REQUEST)
    done = 0
    while some := list(islice(bodies, _FILL_AT_ONCE)):
        await post_all(product.write_url(), some, FILL_CONNECTIONS)
        done += len(some) * FILL_PER_REQUEST
        if tuples == plan.sizes.stored_much:
            plan.say(f"filling a store: {done:,} of {tuples:,} tuples")
    await _until_rewritten(product.store_url())


async def _until_rewritten(url: str) -> None:
    """Wait until the store has done with its append-only file, which grew with what was filled."""
    async with Redis.from_url(url) as store:
        while True:
            state = await store.info("persistence")
            if not state["aof_rewrite_in_progress"] and not state["aof_rewrite_scheduled"]:
                return
            await asyncio.sleep(0.1)


async def _rates(plan: Plan, load: _Load, products: Sequence[Cluster], run: int) -> list[float]:
    """Relationships per second of each, in turn."""
    answer = await answer_of(
        "bench.load",
        *(*(each.write_url() for each in products), "--connections", load.connections),
        *("--series", f"w{run}-{load.per_request}"),
        *("--per-request", load.per_request, "--bodies", load.bodies),
        *("--warm-up", plan.sizes.warm_up_s, "--measured", plan.sizes.measured_s),
        log=plan.log,
    )
    return [float(rate) * load.per_request for rate in answer["rates"]]
