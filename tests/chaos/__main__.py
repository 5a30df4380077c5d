"""`python -m tests.chaos`: three regions, real processes, faults by a seed, and the checkers."""

import argparse
import io
import sys
import time
from dataclasses import replace

from tests.chaos.run import STRATEGIES, Plan, run
from tests.chaos.variants import BROKEN


def main() -> int:
    # The schedule must be on the screen, or in the file, before anything is broken.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="of each schedule")
    parser.add_argument("--seed", type=int, help="of the first schedule; the next ones count up")
    parser.add_argument("--schedules", type=int, default=1, help="one after the other")
    parser.add_argument("--strategy", choices=STRATEGIES, help="default: in turns, by the seed")
    parser.add_argument("--appendfsync", choices=["always", "everysec"])
    parser.add_argument(
        "--old-copies", action="store_true", help="also bring nodes back from older copies"
    )
    parser.add_argument("--broken", choices=sorted(BROKEN), help="run a product with this fault")
    words = parser.parse_args()
    first = time.time_ns() % 1_000_000 if words.seed is None else words.seed
    variant = BROKEN[words.broken] if words.broken else None
    plan = Plan(
        seed=first,
        seconds=words.seconds,
        appendfsync=words.appendfsync,
        has_old_copies=words.old_copies,
        broken=words.broken,
    )
    failed = []
    for seed in range(first, first + words.schedules):
        in_turn = (variant and variant.strategy) or STRATEGIES[seed % len(STRATEGIES)]
        if run(replace(plan, seed=seed, strategy=words.strategy or in_turn)).findings:
            failed.append(seed)
    if failed:
        print(f"failed with seed {', '.join(map(str, failed))}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
