"""What of a data set no crash of its server can take away any more.

Owns how the server is asked for it, and what is believed where it cannot be asked.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from sidecar.core.vector import Vector, is_covered, pointwise_max
from sidecar.errors import Unavailable
from sidecar.store.link import Link, ScriptError, info_of

log = logging.getLogger(__name__)

PAUSE_S = 0.1
EVERYSEC_S = 2.0
"""What is this old is on disk under `appendfsync everysec`, where the server cannot be asked."""


class Durability:
    """Of the data set with the key `meta`. link: a connection of its own.

    stored: the incarnation that writes, and what is stored. is_open: whether the store is.
    """

    def __init__(
        self,
        link: Link,
        meta: str,
        *,
        stored: Callable[[], tuple[str, Vector]],
        is_open: Callable[[], bool],
        now_us: Callable[[], int],
        timeout_s: float,
    ) -> None:
        self._link, self._meta, self._timeout_s = link, meta, timeout_s
        self._stored, self._is_open, self._now_us = stored, is_open, now_us
        self._synced: Vector = {}
        self._is_synced_always = True
        self._can_be_waited_for = True
        self._grown, self._has_synced = asyncio.Event(), asyncio.Event()

    @property
    def vector(self) -> Vector:
        """What of the stored vector is durable, as far as the server tells."""
        return self._stored()[1] if self._is_synced_always else self._synced

    async def ask(self, control: Link) -> None:
        """Learn how the server syncs. Raises Unavailable."""
        is_kept = await info_of(control, "persistence", "aof_enabled") == "1"
        try:
            reply = await control.call("CONFIG", "GET", "appendfsync")
            how = reply[1].decode() if reply else ""
        except (ScriptError, Unavailable):
            how = ""  # managed servers forbid it
        self._is_synced_always = not is_kept or how == "always"
        if not is_kept:
            log.warning("Redis keeps no append-only file: a restart of it loses writes")

    # -- what the store tells ---------------------------------------------------------------------

    def note_stored(self) -> None:
        """More is stored than before."""
        self._grown.set()

    def forget(self) -> None:
        """Another incarnation writes: nothing is known of it."""
        self._synced = {}

    def begin(self) -> None:
        """What was there when this process came is as durable as it will be."""
        if not self._synced:
            self._synced = self._stored()[1]

    def cut(self) -> None:
        """The store has less than before: what it lacks is not durable either."""
        vector = self._stored()[1]
        self._synced = {o: min(t, vector[o]) for o, t in self._synced.items() if o in vector}

    # -- what the server tells --------------------------------------------------------------------

    async def run(self) -> None:
        """Learn, for ever, what no crash can take away any more."""
        while True:
            await self._grown.wait()
            self._grown.clear()
            if self._is_synced_always:
                # What is known to be stored is durable; somebody may have read more than that.
                self._tell()
            elif self._is_open():
                with contextlib.suppress(Unavailable):
                    await self._learn()
                await asyncio.sleep(PAUSE_S)

    async def _learn(self) -> None:
        origin, reached = self._stored()
        if self._can_be_waited_for:
            try:
                # A write of this connection: the server waits for it, and for all before it.
                await self._link.call("HSET", self._meta, "synced", self._now_us())
                local, _ = await self._link.call("WAITAOF", 1, 0, int(self._timeout_s * 500))
            except ScriptError:
                self._can_be_waited_for = False
                return
            if int(local) < 1:
                self._grown.set()
                return
        else:
            await asyncio.sleep(EVERYSEC_S)
        if origin == self._stored()[0]:
            self._synced = pointwise_max(self._synced, reached)
            self._tell()

    def _tell(self) -> None:
        self._has_synced.set()
        self._has_synced.clear()

    async def wait(self, vector: Vector) -> None:
        """Wait until no crash can take away what is in `vector`."""
        while not is_covered(vector, self.vector):
            if not self._is_synced_always:
                self._grown.set()
            await self._has_synced.wait()
