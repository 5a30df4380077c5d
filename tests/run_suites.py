"""Run every test suite as a pytest of its own, its files side by side; say how long each took.

Usage: run_suites.py SUITE... [-- PYTEST-ARGUMENT...]; a suite is a folder beside this file. All
suites run, also after one has failed; the answer is 0 only when each of them passed. A suite
without a test counts as failed: it was asked for.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
# Most tests wait for real processes most of the time. The tests of a file share what they started.
SIDE_BY_SIDE = ("--numprocesses", "auto", "--maxprocesses", "4", "--dist", "loadfile")
OUTCOMES = {0: "passed", 2: "interrupted", 5: "no tests"}


class Timed(NamedTuple):
    suite: str
    outcome: str
    seconds: float


def run(suite: str, arguments: list[str]) -> Timed:
    print(f"\n== tests/{suite} ==", flush=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", f"tests/{suite}", *SIDE_BY_SIDE, *arguments]
    code = subprocess.run(command, cwd=TESTS.parent, check=False).returncode
    return Timed(suite, OUTCOMES.get(code, "failed"), time.monotonic() - began)


def main() -> int:
    divider = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    suites, arguments = sys.argv[1:divider], sys.argv[divider + 1 :]
    try:
        results = [run(suite, arguments) for suite in suites]
    except KeyboardInterrupt:
        return 130
    print(f"\n{'suite':<12}{'outcome':<12}{'seconds':>8}")
    for suite, outcome, seconds in results:
        print(f"{suite:<12}{outcome:<12}{seconds:>8.1f}")
    print(f"{'all':<24}{sum(result.seconds for result in results):>8.1f}", flush=True)
    return 0 if all(result.outcome == "passed" for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
