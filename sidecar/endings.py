"""How the tasks of a node are ended."""

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN_S = 2.0


async def end(tasks: Iterable[asyncio.Task[Any]], again_s: float = AGAIN_S) -> None:
    """Cancel tasks until each has ended; what they raise is left to whoever holds them.

    Once is not enough: `asyncio.wait_for`, on which libraries rest, loses a cancellation on
    Python 3.11 when it arrives together with the result. again_s: seconds before the next one.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=again_s)
