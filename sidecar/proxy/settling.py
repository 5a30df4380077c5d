"""Writes of unknown outcome: the database was asked, and nobody knows what became of it.

The intent stands in Redis. The database is read until it shows that the write was carried out, and
what it shows is committed; or until it would have come by now, and the write is taken to have
failed. Whatever is found, the database is told once more what is right.

Where another write has changed a tuple since, ours was before it, or never: it is not committed, so
that what was overwritten does not come back.
"""

import asyncio
import logging
import uuid
from collections.abc import Iterable, Mapping

from sidecar.core.relationship import Change, Identity, Operation, Relationship
from sidecar.dialects.dialect import schema_text
from sidecar.errors import Refused, SidecarError, Unavailable
from sidecar.proxy.looking import Looking, is_schema, is_so
from sidecar.store.proxy_store import Intent, Noted, ProxyStore

log = logging.getLogger(__name__)

GRACE_S = 5.0
"""How long after it was noticed a write may still be carried out."""

AGAIN_S = 0.25
"""Between two looks."""

SCAN_S = 10.0
"""So often Redis is asked for intents that nobody here knows of: one may be noted after all."""


class Settling:
    """Knows which intents are open and whose they are; settles those left over. `run` does."""

    def __init__(self, store: ProxyStore, looking: Looking) -> None:
        self._store, self._looking = store, looking
        self._under_way: set[str] = set()
        self._was_done: set[str] = set()
        self._left_over: asyncio.Queue[str] = asyncio.Queue()
        self._open: dict[str, asyncio.Task[None]] = {}

    @property
    def count(self) -> int:
        """How many outcomes are not known at this moment."""
        return len(self._open) + self._left_over.qsize()

    # -- writes under way ---------------------------------------------------------------------

    def begin(self) -> str:
        """The name of a new intent, of a write that is under way until `close` or `leave`."""
        name = uuid.uuid4().hex
        self._under_way.add(name)
        return name

    def close(self, name: str) -> None:
        """It was committed or withdrawn."""
        self._under_way.discard(name)

    def leave(self, names: Iterable[str], *, was_done: bool = False) -> None:
        """Find out what became of those that are not closed. was_done: the database said so."""
        for name in names:
            if name in self._under_way:
                self._under_way.discard(name)
                if was_done:
                    self._was_done.add(name)
                self._left_over.put_nowait(name)

    # -- settling -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Settle what is left over, and what an earlier process has left, for ever."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                for name in await self._strange():
                    self._start(tasks, name)
                try:
                    async with asyncio.timeout(SCAN_S):
                        while True:
                            self._start(tasks, await self._left_over.get())
                except TimeoutError:
                    pass

    def _start(self, tasks: asyncio.TaskGroup, name: str) -> None:
        if name in self._open:
            return

        def has_ended(_: asyncio.Task[None]) -> None:
            del self._open[name]
            self._was_done.discard(name)

        task = tasks.create_task(self._settle(name))
        self._open[name] = task
        task.add_done_callback(has_ended)

    async def _strange(self) -> list[str]:
        """Open intents that no write of this process is behind."""
        while True:
            await self._store.opened()
            try:
                return [one for one in await self._store.intents() if one not in self._under_way]
            except Unavailable:
                await asyncio.sleep(AGAIN_S)

    async def _settle(self, name: str) -> None:
        clock = asyncio.get_running_loop().time
        until, is_told = clock() + GRACE_S, False
        while True:
            try:
                if await self._try(name, is_late=clock() >= until):
                    return
            except SidecarError as failure:
                if not is_told:
                    log.warning(
                        "the outcome of a write is not known yet",
                        extra={"intent": name, "reason": failure.message},
                    )
                is_told = True
            await asyncio.sleep(AGAIN_S)
            await self._store.opened()

    async def _try(self, name: str, *, is_late: bool) -> bool:
        """Whether it is settled now."""
        intent = await self._store.intent(name)
        if intent is None:
            return True
        identities = [one.change.relationship.identity for one in intent.noted]
        try:
            present = await self._looking.present(intent.tenant, identities)
            done, is_proven = found_done(intent, present)
        except Refused:
            # What is there can be no write of ours.
            done, is_proven = [], False
        if done and (is_proven or name in self._was_done):
            await self._store.commit(
                name, intent.tenant, done, expected_revision=intent.revision, is_late=True
            )
            log.info("a write of unknown outcome was carried out", extra={"intent": name})
            return True
        if is_late:
            await self._store.withdraw(name, in_doubt=True)
            log.info("a write of unknown outcome was not carried out", extra={"intent": name})
        return is_late


def found_done(
    intent: Intent, present: Mapping[Identity, Relationship]
) -> tuple[list[Change], bool]:
    """What of a write the database shows, and whether that proves that it was carried out.

    A transaction is carried out as a whole. What the database held before proves nothing, nor does
    what it was still to be told then.
    """
    done: list[Change] = []
    is_proven = False
    for one in intent.noted:
        if one.has_moved:
            continue
        if is_schema(one.change.relationship.resource):
            found = present.get(one.change.relationship.identity)
            # A database gives a schema back in other words than it was given.
            if found is not None and schema_text(found) != intent.schema:
                done.append(Change(Operation.INSERT, found))
                is_proven = is_proven or one.is_sure
        elif is_so(one.change, present):
            done.append(one.change)
            is_proven = is_proven or _is_proof(one)
    return done, is_proven


def _is_proof(one: Noted) -> bool:
    was = {} if one.was is None else {one.was.identity: one.was}
    return one.is_sure and not is_so(one.change, was)
