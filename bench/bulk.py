"""Bulk writes: 100 relationships in each request.

The floor is the write script fed from a bare loop, as many writes in a call as the product has
connections, into a store like the product's.
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
    product = cluster(plan.place("bulk"), 1)
    async with (
        EmbeddedValkey(plan.place("bulk-floor")) as valkey,
        running(product, [0], plan.launch),
    ):
        for run in range(plan.sizes.runs):
            floors.append(await _floor(plan, valkey.url, run) * PER_REQUEST)
            rates.append(await _product(plan, product.write_url(), run) * PER_REQUEST)
            plan.say(f"bulk writes, run {run + 1} of {plan.sizes.runs}")
    what = f"bulk writes, {PER_REQUEST} per request"
    return [against_floor("bulk", what, "relationships/s", floors, rates, bar=BAR)]


async def _floor(plan: Plan, store: str, run: int) -> float:
    call = ("write", "--url", store, "--group", CONNECTIONS)
    answer = await answer_of("bench.floor_script", *call, *_same(plan, run), log=plan.log)
    return float(answer["rate"])


async def _product(plan: Plan, url: str, run: int) -> float:
    call = (url, "--connections", CONNECTIONS)
    answer = await answer_of("bench.load", *call, *_same(plan, run), log=plan.log)
    return float(answer["rates"][0])


def _same(plan: Plan, run: int) -> list[object]:
    sizes = plan.sizes
    return [
        *("--series", f"b{run}", "--per-request", PER_REQUEST, "--bodies", sizes.bulk_bodies),
        *("--warm-up", sizes.warm_up_s, "--measured", sizes.measured_s),
    ]
