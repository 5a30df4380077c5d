"""How long a check takes at several addresses: requests at a steady pace, for each in turn.

One process sends all of them, so one clock times them. Prints JSON, in microseconds:
{"trips": [[p50, p99] of each]}.
"""

import argparse
import asyncio
import json
import sys
from itertools import cycle

import uvloop

from bench.load import post
from bench.pace import Pacer, connected_to, percentile_us
from bench.texts import check_bodies

CONNECTIONS = 8
BODIES = 1_000


async def measure(args: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Each address in turn."""
    bodies = list(check_bodies("trips", BODIES))
    return {"trips": [await _trips(url, bodies, args.rate, args.measured) for url in args.urls]}


async def _trips(url: str, bodies: list[bytes], per_s: float, measured_s: float) -> list[float]:
    pacer = Pacer(cycle([post(url, body) for body in bodies]), per_s, b"HTTP/1.1 200 ")
    async with connected_to(pacer, url, CONNECTIONS), asyncio.TaskGroup() as group:
        group.create_task(pacer.run(measured_s))
    taken = [one.came - one.sent for one in pacer.answers]
    return [percentile_us(taken, 0.5), percentile_us(taken, 0.99)]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("urls", nargs="+", metavar="url")
    options.add_argument("--rate", type=float, required=True, help="requests per second")
    options.add_argument("--measured", type=float, required=True, help="seconds")
    print(json.dumps(uvloop.run(measure(options.parse_args()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
