"""A gate that many pass side by side, or one alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Writes of applications and of the applier pass it together; who looks at the database and
    acts on what it saw there passes it alone, and is let in before those who come later.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._inside = 0
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Together with others."""
        async with self._turn:
            self._inside += 1
            self._is_empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._is_empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """When nobody else is inside, and nobody may enter."""
        async with self._turn:
            await self._is_empty.wait()
            yield
