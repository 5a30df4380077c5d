"""Single writes over 64 connections: one relationship in each request, with 0, 1 and 2 targets.

The floor is a bare aiohttp handler, driven by the same load generator with the same bodies. With
targets, all nodes and their stores share this machine, so those figures are reported only. Before
the next run the targets catch up.
"""

import contextlib
import sys

from bench.children import answer_of, child, free_port, until_listening
from bench.figure import Figure, against_floor
from bench.nodes import WRITE_PATH, Cluster, cluster, running, until_drained
from bench.plan import Plan

CONNECTIONS = 64
BAR = 0.5
_NAMES = ("single", "single_one_target", "single_two_targets")
_WORDS = ("no target", "one target", "two targets")


async def measure(plan: Plan) -> list[Figure]:
    """One figure for each number of targets."""
    async with contextlib.AsyncExitStack() as stack:
        port = free_port()
        floor = [sys.executable, "-m", "bench.floor_http", str(port)]
        await stack.enter_async_context(child(floor, plan.log))
        await until_listening(port)
        products: list[Cluster] = []
        for targets, name in enumerate(_NAMES):
            product = cluster(plan.place(name), targets + 1)
            await stack.enter_async_context(running(product, range(targets + 1), plan.launch))
            await until_drained(product)
            products.append(product)
        pairs: list[list[tuple[float, float]]] = [[] for _ in products]
        for run in range(plan.sizes.runs):
            for product, found in zip(products, pairs, strict=True):
                found.append(
                    await _turns(plan, f"http://127.0.0.1:{port}{WRITE_PATH}", product, run)
                )
                await until_drained(product)
            plan.say(f"single writes, run {run + 1} of {plan.sizes.runs}")
    return [
        against_floor(
            name,
            f"single writes, {words}",
            "writes/s",
            floors=[floor for floor, _ in found],
            values=[value for _, value in found],
            bar=BAR if name == "single" else None,
        )
        for name, words, found in zip(_NAMES, _WORDS, pairs, strict=True)
    ]


async def _turns(plan: Plan, floor: str, product: Cluster, run: int) -> tuple[float, float]:
    sizes = plan.sizes
    answer = await answer_of(
        "bench.load",
        *(floor, product.write_url(), "--connections", CONNECTIONS),
        *("--series", f"s{run}", "--per-request", 1, "--bodies", sizes.single_bodies),
        *("--warm-up", sizes.warm_up_s, "--measured", sizes.measured_s),
        log=plan.log,
    )
    floor_rate, rate = answer["rates"]
    return floor_rate, rate
