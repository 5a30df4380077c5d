"""Writes of unknown outcome: the database was asked, and nobody knows what became of it.

The intent stands in Redis. The database is read until it shows that the write was carried out, and
what it shows is committed; or until it would have come by now, and the write is taken to have
failed. A late one is found out no more: the tuples are marked, and the database is told what is
right.
"""

import asyncio
import logging
from collections.abc import Iterable

from sidecar.errors import SidecarError, Unavailable
from sidecar.proxy.looking import Looking, is_so
from sidecar.store.proxy_store import Intent, ProxyStore

log = logging.getLogger(__name__)

GRACE_S = 5.0
"""How long after it was noticed a write may still be carried out."""

AGAIN_S = 0.25
"""Between two looks."""


class Settling:
    """Settles the intents that are left over; `run` does."""

    def __init__(self, store: ProxyStore, looking: Looking) -> None:
        self._store, self._looking = store, looking
        self._left_over: asyncio.Queue[str] = asyncio.Queue()
        self._open: dict[str, asyncio.Task[None]] = {}

    @property
    def count(self) -> int:
        """How many outcomes are not known at this moment."""
        return len(self._open) + self._left_over.qsize()

    def take(self, intents: Iterable[str]) -> None:
        """Find out what became of these."""
        for one in intents:
            self._left_over.put_nowait(one)

    async def run(self) -> None:
        """Settle what an earlier process has left, then what is taken, for ever."""
        async with asyncio.TaskGroup() as tasks:
            self.take([one.id for one in await self._intents()])
            while True:
                name = await self._left_over.get()
                task = tasks.create_task(self._settle(name))
                self._open[name] = task
                task.add_done_callback(lambda _, name=name: self._open.pop(name, None))  # type: ignore[misc]

    async def _intents(self) -> list[Intent]:
        while True:
            await self._store.opened()
            try:
                return await self._store.intents()
            except Unavailable:
                await asyncio.sleep(AGAIN_S)

    async def _settle(self, name: str) -> None:
        intent = next((one for one in await self._intents() if one.id == name), None)
        if intent is None:
            return
        clock = asyncio.get_running_loop().time
        until, is_told = clock() + GRACE_S, False
        while True:
            try:
                if await self._try(intent, is_late=clock() >= until):
                    return
            except SidecarError as failure:
                if not is_told:
                    log.warning(
                        "the outcome of a write is not known yet",
                        extra={"intent": name, "reason": failure.message},
                    )
                is_told = True
            await asyncio.sleep(AGAIN_S)

    async def _try(self, intent: Intent, *, is_late: bool) -> bool:
        """Whether it is settled now."""
        identities = [change.relationship.identity for change in intent.changes]
        present = await self._looking.present(intent.tenant, identities)
        done = [change for change in intent.changes if is_so(change, present)]
        was = {
            change.relationship.identity: one
            for change, one in zip(intent.changes, intent.was, strict=True)
            if one is not None
        }
        # What was so before says nothing.
        if any(not is_so(change, was) for change in done):
            await self._store.commit(intent.id, intent.tenant, done)
            log.info("a write of unknown outcome was carried out", extra={"intent": intent.id})
            return True
        if is_late:
            await self._store.withdraw(intent.id, in_doubt=True)
            log.info("a write of unknown outcome was not carried out", extra={"intent": intent.id})
        return is_late
