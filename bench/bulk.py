"""Bulk writes: 100 relationships in each request.

The floor is the write script fed from a bare loop, as many writes in a call as the product has
connections. Both begin each run with an empty store.
"""

from bench.children import answer_of
from bench.figure import Figure, against_floor
from bench.nodes import cluster, running
from bench.plan import Plan
from sidecar.store.embedded import EmbeddedValkey

CONNECTIONS = 8
PER_REQUEST = 100
BAR = 0.7


async def measure(plan: Plan) -> list[Figure]:
    """The one figure, in relationships."""
    floors, rates = [], []
    for run in range(plan.sizes.runs):
        floors.append(await _floor(plan, run))
        rates.append(await _product(plan, run))
        plan.say(f"bulk writes, run {run + 1} of {plan.sizes.runs}")
    what = f"bulk writes, {PER_REQUEST} per request"
    return [against_floor("bulk", what, "relationships/s", floors, rates, bar=BAR)]


async def _floor(plan: Plan, run: int) -> float:
    async with EmbeddedValkey(plan.place(f"bulk-floor-{run}")) as valkey:
        found = await answer_of(
            "bench.floor_script",
            *("write", "--url", valkey.url, "--group", CONNECTIONS),
            *_same(plan, run),
            log=plan.log,
        )
    return float(found["answers"] * PER_REQUEST / found["seconds"])


async def _product(plan: Plan, run: int) -> float:
    product = cluster(plan.place(f"bulk-{run}"), 1)
    async with running(product, [0], plan.launch):
        found = await answer_of(
            "bench.load",
            *(product.write_url(), "--connections", CONNECTIONS),
            *_same(plan, run),
            log=plan.log,
        )
    return float(found["answers"] * PER_REQUEST / found["seconds"])


def _same(plan: Plan, run: int) -> list[object]:
    sizes = plan.sizes
    return [
        *("--series", f"b{run}", "--per-request", PER_REQUEST, "--bodies", sizes.bulk_bodies),
        *("--warm-up", sizes.warm_up_s, "--measured", sizes.measured_s),
    ]
