"""Draining a backlog over a link with 150 ms round trip, against the same link with 0 ms.

As in `bench/drain.py`, but the sender reaches its target through a proxy in a process of its own
(`bench/slow_link.py`), 75 ms each way or none. The backlog is so large that a drain lasts many
round trips, and is timed from a tenth of it on, by what the target has stored: neither the start of
the session nor the way of the last batch back counts.
"""

import sys

from bench.backlog import write_backlog
from bench.children import child, free_port, until_listening
from bench.drain import drained_rate
from bench.figure import Figure, against_floor
from bench.nodes import cluster, running
from bench.plan import Plan

ROUND_TRIP_MS = 150
BAR = 0.9


async def measure(plan: Plan) -> list[Figure]:
    """The one figure, in transactions of one change."""
    sizes = plan.sizes
    near, far = [], []
    proxy = free_port()
    product = cluster(plan.place("link"), 2, reached_at={1: proxy})
    plan.say(f"link: writing a backlog of {sizes.long_backlog:,} transactions")
    entries = await write_backlog(product.nodes[0], sizes.long_backlog)

    async def over(delay_ms: float) -> float:
        command = [sys.executable, "-m", "bench.slow_link", "--port", str(proxy)]
        command += ["--to", str(product.nodes[1].peer_port), "--delay-ms", str(delay_ms)]
        async with child(command, plan.log):
            await until_listening(proxy)
            return await drained_rate(plan, product, entries)

    async with running(product, [0], plan.launch):
        for run in range(sizes.runs):
            near.append(await over(0))
            far.append(await over(ROUND_TRIP_MS / 2))
            plan.say(
                f"draining over a link, run {run + 1} of {sizes.runs}: "
                f"{near[-1]:,.0f} at 0 ms, {far[-1]:,.0f} at {ROUND_TRIP_MS} ms"
            )
    what = f"draining over a link of {ROUND_TRIP_MS} ms"
    return [against_floor("link", what, "transactions/s", near, far, bar=BAR)]
