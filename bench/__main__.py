"""`python -m bench`: measure, and show the ratios.

Everything runs on this machine, in a temporary folder, and is ended also on Ctrl-C.
"""

import argparse
import asyncio
import logging
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench import bulk, drain, lag, link, memory, proxied, report, single, stored, targets
from bench.figure import Figure
from bench.nodes import Plainly
from bench.plan import FULL, QUICK, Plan
from bench.profile import Profiled, profiles
from bench.profile import show as show_profile
from sidecar.errors import Unavailable

WIDTH = 120
EXIT_MISSED = 1
EXIT_FAILED = 2
EXIT_INTERRUPTED = 130

Measure = Callable[[Plan], Awaitable[list[Figure]]]
MEASURES: dict[str, Measure] = {
    "drain": drain.measure,
    "bulk": bulk.measure,
    "single": single.measure,
    "lag": lag.measure,
    "memory": memory.measure,
    "stored": stored.measure,
    "targets": targets.measure,
    "link": link.measure,
    "proxied": proxied.measure,
}


def main() -> int:
    options = argparse.ArgumentParser(
        prog="python -m bench", description="How fast the sidecar is, against what is possible."
    )
    names = list(MEASURES)
    options.add_argument("--only", choices=names, action="append", help="may be repeated")
    options.add_argument("--json", action="store_true", help="a line of JSON for each figure")
    options.add_argument("--quick", action="store_true", help="only whether it runs")
    options.add_argument("--runs", type=int, help="of floor and product each")
    options.add_argument("--strict", action="store_true", help="exit 1 when a bar is missed")
    options.add_argument(
        "--profile", choices=names, metavar="NAME", help="show where the time of the nodes goes"
    )
    args = options.parse_args()
    # Into a file or a pipe: wide enough for a line of the table.
    out = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    err = Console(stderr=True, highlight=False)
    sizes = QUICK if args.quick else FULL
    chosen = args.only or names
    if args.profile:
        chosen, sizes = [args.profile], replace(sizes, runs=1, measured_s=5 * sizes.measured_s)
    if args.runs:
        sizes = replace(sizes, runs=args.runs)
    # What the store of a backlog says about itself is of no interest here.
    logging.getLogger("sidecar").addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory(prefix="sidecar-bench-", ignore_cleanup_errors=True) as folder:
        plan = Plan(
            Path(folder),
            sizes,
            Profiled() if args.profile else Plainly(),
            say=lambda text: err.print(text, style="dim"),
        )
        try:
            figures = asyncio.run(_measure(plan, chosen, as_json=args.json))
        except (KeyboardInterrupt, asyncio.CancelledError):
            return EXIT_INTERRUPTED
        except Unavailable as failure:
            err.print(failure.message, style="red", markup=False)
            return EXIT_FAILED
        for file in profiles(Path(folder)):
            show_profile(file, out)
    if not args.json:
        report.show(figures, out)
    return EXIT_MISSED if args.strict and any(each.ok is False for each in figures) else 0


async def _measure(plan: Plan, names: list[str], *, as_json: bool) -> list[Figure]:
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    found: list[Figure] = []
    for name in names:
        figures = await MEASURES[name](plan)
        found += figures
        if as_json:
            for each in figures:
                print(report.json_line(each), flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
