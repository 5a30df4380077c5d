"""Processor time of shipping: a change to five targets, against a change to one.

Two nodes with the same backlog, one with one target, one with five. The processor time is that of
the sender's sidecar process alone, user and system, without its Valkey, while its targets take the
whole backlog; divided by changes and targets. The targets are receivers that acknowledge without a
store (`bench/receivers.py`): five nodes would not leave two cores to the sender. Each run begins
with targets that have nothing; the sender runs all the time.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path

from bench.backlog import write_backlog
from bench.children import answer_of
from bench.figure import Figure, against_floor
from bench.nodes import Cluster, cluster, running
from bench.plan import Plan

FEW, MANY = 1, 5
BAR = 0.5
STALL_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class _Sender:
    """pid: of its sidecar. entries: transactions that each target is to receive."""

    product: Cluster
    pid: int
    entries: int


async def measure(plan: Plan) -> list[Figure]:
    """The one figure, in microseconds."""
    costs: dict[int, list[float]] = {FEW: [], MANY: []}
    async with contextlib.AsyncExitStack() as stack:
        senders = {}
        for targets in costs:
            plan.say(f"shipping to {targets}: writing a backlog of {plan.sizes.long_backlog:,}")
            product = cluster(plan.place(f"targets-{targets}"), targets + 1)
            entries = await write_backlog(product.nodes[0], plan.sizes.long_backlog)
            (sender,) = await stack.enter_async_context(running(product, [0], plan.launch))
            senders[targets] = _Sender(product, sender.pid, entries)
        for run in range(plan.sizes.runs):
            for targets, found in costs.items():
                found.append(await _cost_us(plan, senders[targets]))
            plan.say(
                f"shipping to {FEW} and {MANY} targets, run {run + 1} of {plan.sizes.runs}: "
                f"{costs[FEW][-1]:.1f} and {costs[MANY][-1]:.1f} µs"
            )
    what = f"processor time, {MANY} targets"
    few, many = costs.values()
    return [against_floor("targets", what, "µs/change", few, many, bar=BAR, is_ceiling=True)]


async def _cost_us(plan: Plan, sender: _Sender) -> float:
    """Processor time of the sender for each change and target, in microseconds."""
    source, *targets = sender.product.nodes
    before = _processor_s(sender.pid)
    async with asyncio.timeout(STALL_LIMIT_S):
        await answer_of(
            "bench.receivers",
            *(f"{each.name}:{each.region}:{each.peer_port}" for each in targets),
            *("--source", f"{source.name}:{source.region}", "--wanted", sender.entries),
            log=plan.log,
        )
    spent = _processor_s(sender.pid) - before
    return spent / (sender.entries * len(targets)) * 1e6


def _processor_s(pid: int) -> float:
    """User and system time of a process, without its children.

    Of its threads, in nanoseconds: /proc/PID/stat has the sum in hundredths of a second, a tenth of
    what a short drain takes.
    """
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e9
