"""Play one history again and tell its story: `python -m tests.sim SEED STRATEGY SHAPE`."""

import argparse
import sys

from sidecar.core.conflict import ConflictResolutionStrategy
from tests.sim.histories import STRATEGIES, Violation, play
from tests.sim.shapes import SHAPES


def main() -> int:
    """The exit code: 1 when the history went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("strategy", choices=[strategy.value for strategy in STRATEGIES])
    parser.add_argument("shape", choices=sorted(SHAPES))
    asked = parser.parse_args()
    try:
        told = play(asked.seed, ConflictResolutionStrategy(asked.strategy), asked.shape)
    except Violation as violation:
        print(violation)
        return 1
    print(f"{told.events} events, {told.faults} faults, all nodes equal the oracle: ok")
    for what, count in sorted(told.happened.items()):
        print(f"{count:6} {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
