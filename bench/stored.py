"""Bulk writes into a node that holds much, against the same into one that holds little.

Of all writes those in bulk leave the most of the time to the store, which is where a large store
could be slow. All of them insert new tuples, so the small node is a new one in each run; the large
one is filled once and only grows by what is measured. Both are filled alike, and while one is
measured the other has nothing to do.
"""

import asyncio
import shutil
from itertools import islice

from redis.asyncio import Redis

from bench.bulk import CONNECTIONS, PER_REQUEST
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


async def measure(plan: Plan) -> list[Figure]:
    """The one figure, in relationships."""
    sizes = plan.sizes
    little, much = [], []
    large = cluster(plan.place("stored-much"), 1)
    async with running(large, [0], plan.launch):
        await _fill(plan, large, sizes.stored_much)
        small = cluster(plan.place("stored-little"), 1)
        for run in range(sizes.runs):
            async with running(small, [0], plan.launch):
                await _fill(plan, small, sizes.stored_little)
                little.append(await _rate(plan, small, run))
            shutil.rmtree(small.nodes[0].folder)
            small.nodes[0].folder.mkdir()
            much.append(await _rate(plan, large, run))
            plan.say(f"bulk writes into a large store, run {run + 1} of {sizes.runs}")
    what = f"bulk writes at {sizes.stored_much:,} tuples"
    return [against_floor("stored", what, "relationships/s", little, much, bar=BAR)]


async def _fill(plan: Plan, product: Cluster, tuples: int) -> None:
    bodies = write_bodies("fill", tuples // FILL_PER_REQUEST, FILL_PER_REQUEST)
    done = 0
    while some := list(islice(bodies, _FILL_AT_ONCE)):
        await post_all(product.write_url(), some, FILL_CONNECTIONS)
        done += len(some) * FILL_PER_REQUEST
        if done < tuples or tuples == plan.sizes.stored_much:
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


async def _rate(plan: Plan, product: Cluster, run: int) -> float:
    sizes = plan.sizes
    answer = await answer_of(
        "bench.load",
        *(product.write_url(), "--connections", CONNECTIONS),
        *("--series", f"w{run}", "--per-request", PER_REQUEST, "--bodies", sizes.bulk_bodies),
        *("--warm-up", sizes.warm_up_s, "--measured", sizes.measured_s),
        log=plan.log,
    )
    return float(answer["rates"][0]) * PER_REQUEST
