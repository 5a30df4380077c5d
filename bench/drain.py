"""Draining a backlog of single-change transactions to one target that was away.

The source keeps its backlog and runs all the time; each run starts a target without data. The floor
is the merge script fed from a bare loop with the very same transactions, in batches of the same
size, into an empty store. Both are timed alike and from outside, by the length of the feed of the
store that is being filled, between a tenth and all of the backlog: so no start of a process counts.
"""

import asyncio
import shutil
import time

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from bench.backlog import write_backlog
from bench.children import ChildFailed, answer_of, child
from bench.figure import Figure, against_floor
from bench.nodes import Cluster, cluster, running
from bench.plan import Plan
from sidecar.config import Config
from sidecar.errors import ungrouped
from sidecar.store.embedded import EmbeddedValkey
from sidecar.store.keys import Keys

BAR = 0.8
SAMPLE_S = 0.005
STALL_LIMIT_S = 60.0


async def measure(plan: Plan) -> list[Figure]:
    """The one figure, in transactions of one change."""
    floors, rates = [], []
    product = cluster(plan.place("drain"), 2)
    plan.say(f"draining: writing a backlog of {plan.sizes.backlog:,} transactions")
    entries = await write_backlog(product.nodes[0], plan.sizes.backlog)
    async with running(product, [0], plan.launch):
        for run in range(plan.sizes.runs):
            floors.append(await _floor(plan, product.store_url(), entries, run))
            rates.append(await drained_rate(plan, product, entries))
            plan.say(f"draining, run {run + 1} of {plan.sizes.runs}")
    what = "draining a backlog to one target"
    return [against_floor("drain", what, "transactions/s", floors, rates, bar=BAR)]


async def _floor(plan: Plan, source: str, entries: int, run: int) -> float:
    batch_size = Config().replication.agent.batch_size
    async with EmbeddedValkey(plan.place(f"drain-floor-{run}")) as valkey:
        feeding = answer_of(
            "bench.floor_script",
            *("merge", "--url", valkey.url, "--source", source, "--batch", batch_size),
            log=plan.log,
        )
        with ungrouped():
            async with asyncio.TaskGroup() as group:
                group.create_task(feeding)
                rate = group.create_task(_watch(valkey.url, entries))
        return rate.result()


async def drained_rate(plan: Plan, product: Cluster, entries: int) -> float:
    """Start the second node without data, and see its store being filled by the first one."""
    target = product.nodes[1]
    shutil.rmtree(target.folder)
    target.folder.mkdir()
    command = plan.launch.command(target, product.config)
    # Where it listens, even if others reach it another way.
    environ = {**target.environ(), "INFERADB__LISTEN__PEER": f"127.0.0.1:{target.peer_port}"}
    async with child(command, target.log, environ):
        return await _watch(product.store_url(1), entries)


async def _watch(url: str, entries: int) -> float:
    """Transactions per second, from a tenth to all of the entries that a store is to receive.

    Its feed holds one more, with which its own data set began.
    """
    feed = Keys(Config().redis.prefix).feed
    first: tuple[float, int] | None = None
    changed, last = time.perf_counter(), 0
    store = Redis.from_url(url, retry=Retry(NoBackoff(), 0))
    try:
        while True:
            try:
                length = max(0, await store.xlen(feed) - 1)
            except RedisError:
                length = 0  # it is about to start
            now = time.perf_counter()
            if length != last:
                changed, last = now, length
            if first is None and length >= entries / 10:
                first = (now, length)
            if length >= entries:
                assert first is not None
                return (length - first[1]) / (now - first[0])
            if now - changed > STALL_LIMIT_S:
                raise ChildFailed(f"nothing arrives any more, at {length} of {entries}")
            await asyncio.sleep(SAMPLE_S)
    finally:
        await store.aclose()
