"""Waiting for what another process does: the one place where a test looks again and again."""

import time
from collections.abc import Callable

LOOK_AGAIN_S = 0.01


def wait_until(
    condition: Callable[[], object], what: str | Callable[[], str], limit_s: float = 20.0
) -> float:
    """Wait for a condition and return the seconds it took; fail with `what` at the limit.

    What the condition itself asserts ends the waiting at once.
    """
    began = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - began
        said = what if isinstance(what, str) else what()
        assert waited_s < limit_s, f"after {waited_s:.1f} s still not so: {said}"
        time.sleep(LOOK_AGAIN_S)  # another process cannot wake us
    return time.monotonic() - began
