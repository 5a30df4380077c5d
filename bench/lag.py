"""Lag at half load: a write in region one, its change at a `watch` of region two.

Half load is half of what region one, with region two as its target, answers to single writes over
64 connections; it is measured anew before each run. The lag of a write is the time from its answer
in region one to its change event in region two, both at the process that wrote it. The floor is the
round trip of an empty POST between that process and the sidecar of region two, under the same load
at the same time; beside it, without a bar, the same round trip when nothing is written.
"""

from bench.children import answer_of
from bench.figure import Figure, against_floor
from bench.nodes import WRITE_PATH, Cluster, cluster, running, until_drained
from bench.plan import Plan
from bench.single import CONNECTIONS

BAR = 3.0
_WATCH_PATH = "/access/v1/watch"


async def measure(plan: Plan) -> list[Figure]:
    """The two figures, in microseconds; the second one is only reported."""
    lags, trips, at_rest = [], [], []
    product = cluster(plan.place("lag"), 2)
    async with running(product, [0, 1], plan.launch):
        await until_drained(product)
        for run in range(plan.sizes.runs):
            rate = await _full_rate(plan, product, run) / 2
            await until_drained(product)
            found = await _paced(plan, product, run, rate)
            lags.append(found["lag"])
            trips.append(found["trip"])
            at_rest.append(found["trip_at_rest"])
            plan.say(
                f"lag, run {run + 1} of {plan.sizes.runs}: {found['rate']:,.0f} of {rate:,.0f} "
                f"writes/s, p99 {found['lag']:,.0f} µs; empty POST {found['trip']:,.0f} µs, "
                f"at rest {found['trip_at_rest']:,.0f} µs"
            )
    what = "lag at half load, p99"
    return [
        against_floor("lag", what, "µs", trips, lags, bar=BAR, is_ceiling=True),
        against_floor("lag_at_rest", f"{what}, POST at rest", "µs", at_rest, lags),
    ]


async def _full_rate(plan: Plan, product: Cluster, run: int) -> float:
    sizes = plan.sizes
    answer = await answer_of(
        "bench.load",
        *(product.write_url(), "--connections", CONNECTIONS),
        *("--series", f"full{run}", "--per-request", 1, "--bodies", sizes.single_bodies),
        *("--warm-up", sizes.warm_up_s, "--measured", sizes.measured_s),
        log=plan.log,
    )
    return float(answer["rates"][0])


async def _paced(plan: Plan, product: Cluster, run: int, rate: float) -> dict[str, float]:
    writer, watched = product.nodes
    return await answer_of(
        "bench.pace",
        *("--write-url", writer.app_url + WRITE_PATH),
        *("--watch-url", watched.app_url + _WATCH_PATH),
        *("--trip-url", f"http://127.0.0.1:{watched.peer_port}/health"),
        *("--series", f"half{run}", "--connections", CONNECTIONS),
        *("--rate", rate, "--measured", plan.sizes.lag_s),
        log=plan.log,
    )
