"""Memory of a tuple in Redis, ten tuples to a resource, without the feed.

`used_memory` of the node's Valkey when it is empty and when it holds the tuples, written through
the app listener as users do; the feed is deleted before the second look, with everything else in
place: states, indexes by subject, by type and by bucket, digests.
"""

import asyncio

from redis.asyncio import Redis

from bench.bulk import CONNECTIONS, PER_REQUEST
from bench.figure import Figure, at_most
from bench.load import post_all
from bench.nodes import cluster, running
from bench.plan import Plan
from bench.texts import write_bodies
from sidecar.config import Config
from sidecar.store.keys import Keys

BAR = 300.0


async def measure(plan: Plan) -> list[Figure]:
    """The one figure, in bytes. Memory does not depend on what else runs: one run."""
    product = cluster(plan.place("memory"), 1)
    tuples = plan.sizes.memory_tuples
    async with (
        running(product, [0], plan.launch),
        Redis.from_url(product.store_url()) as store,
    ):
        before = await _used(store)
        bodies = list(write_bodies("memory", tuples // PER_REQUEST, PER_REQUEST))
        await post_all(product.write_url(), bodies, CONNECTIONS)
        await store.delete(Keys(Config().redis.prefix).feed)
        after = await _used(store)
    what = "memory of a tuple in Redis"
    return [at_most("memory", what, "bytes/tuple", [(after - before) / tuples], bar=BAR)]


async def _used(store: Redis) -> float:
    """The least of some looks: buffers of connections and files come and go."""
    found = []
    for _ in range(20):
        found.append(float((await store.info("memory"))["used_memory"]))
        await asyncio.sleep(0.05)
    return min(found)
