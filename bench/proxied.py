"""Proxied reads: checks through a sidecar, against a ten-line aiohttp reverse proxy.

Both stand in front of the same bare handler, which takes the place of SpiceDB and gives one answer,
so that what is measured is the way there and back. The added latency is that through the sidecar
less that of asking the handler directly, at a pace that keeps nobody waiting.
"""

import contextlib
import sys

from bench.children import answer_of, child, free_port, until_listening
from bench.figure import Figure, against_floor, reported
from bench.nodes import cluster, running
from bench.plan import Plan

CONNECTIONS = 64
BAR = 0.95
CHECK_PATH = "/v1/permissions/check"
CHECKS = 2_000
TRIPS_PER_S = 300


async def measure(plan: Plan) -> list[Figure]:
    """Reads per second, and what the sidecar adds to the time of one."""
    async with contextlib.AsyncExitStack() as stack:
        database, floor = free_port(), free_port()
        url = f"http://127.0.0.1:{database}"
        for words in ([str(database)], [str(floor), url]):
            command = [sys.executable, "-m", "bench.floor_proxy", *words]
            await stack.enter_async_context(child(command, plan.log))
            await until_listening(int(words[0]))
        product = cluster(plan.place("proxied"), 1)
        settings = {"INFERADB__DATABASE__DIALECT": "spicedb", "INFERADB__DATABASE__URL": url}
        await stack.enter_async_context(running(product, [0], plan.launch, settings))
        proxies = [f"http://127.0.0.1:{floor}", product.nodes[0].app_url]
        rates, trips = [], []
        for run in range(plan.sizes.runs):
            rates.append(await _rates(plan, proxies, run))
            trips.append(await _trips(plan, [url, product.nodes[0].app_url]))
            plan.say(f"proxied reads, run {run + 1} of {plan.sizes.runs}")
    floors, values = zip(*rates, strict=True)
    added = [[through - direct for direct, through in zip(*one, strict=True)] for one in trips]
    return [
        against_floor("proxied", "proxied reads", "reads/s", floors, values, bar=BAR),
        reported("added_p50", "added latency of a read, p50", "µs", [p50 for p50, _ in added]),
        reported("added_p99", "added latency of a read, p99", "µs", [p99 for _, p99 in added]),
    ]


async def _rates(plan: Plan, urls: list[str], run: int) -> tuple[float, float]:
    sizes = plan.sizes
    answer = await answer_of(
        "bench.load",
        *(url + CHECK_PATH for url in urls),
        *("--connections", CONNECTIONS, "--series", f"p{run}"),
        *("--per-request", 0, "--bodies", CHECKS),
        *("--warm-up", sizes.warm_up_s, "--measured", sizes.measured_s),
        log=plan.log,
    )
    floor, value = answer["rates"]
    return floor, value


async def _trips(plan: Plan, urls: list[str]) -> list[list[float]]:
    answer = await answer_of(
        "bench.trips",
        *(url + CHECK_PATH for url in urls),
        *("--rate", TRIPS_PER_S, "--measured", plan.sizes.measured_s),
        log=plan.log,
    )
    found: list[list[float]] = answer["trips"]
    return found
