"""One write of an application through the database: noted, done there, and given its version.

A crash at any point leaves an intent in Redis (`settling.py`) or a mark (`applier.py`).
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from sidecar.core.relationship import Change, Operation
from sidecar.dialects.dialect import Write
from sidecar.errors import SidecarError, Unavailable
from sidecar.proxy.applier import Applier
from sidecar.proxy.database import Answer, NotSent
from sidecar.proxy.gate import Gate
from sidecar.proxy.looking import Looking, is_schema, is_so
from sidecar.proxy.settling import Settling
from sidecar.store.calls import Written
from sidecar.store.proxy_store import ProxyStore

log = logging.getLogger(__name__)

Send = Callable[[], Awaitable[Answer]]
"""Has the database do the write; to be called once."""

MOST_CHANGES = 5000
"""Per transaction: one deletion by filter may be several."""


@dataclass(frozen=True, slots=True)
class Behind:
    """What stands between one partition and the database."""

    store: ProxyStore
    gate: Gate
    looking: Looking
    settling: Settling
    applier: Applier


class Writes:
    """The writes of a node; `carry_out` does one."""

    async def carry_out(
        self, behind: Behind, write: Write, send: Send
    ) -> tuple[Answer, Written | None]:
        """The database's answer, and the version that the write has, if it was done.

        Raises NotSent where nothing was done, Unavailable("outcome_unknown"), and what refuses
        writes here.
        """
        if write.matching is None:
            async with behind.gate.shared():
                return await self._carry_out(behind, write, write.changes, send)
        # What matches must be what is deleted: nothing else may write meanwhile.
        async with behind.gate.alone():
            found = await behind.looking.matching(write.tenant, write.matching)
            changes = [Change(Operation.DELETE, one) for one in found.values()]
            return await self._carry_out(behind, write, changes, send)

    async def _carry_out(
        self, behind: Behind, write: Write, changes: Sequence[Change], send: Send
    ) -> tuple[Answer, Written | None]:
        parts = [changes[i : i + MOST_CHANGES] for i in range(0, len(changes), MOST_CHANGES)]
        intents: list[str] = []
        try:
            for part in parts:
                intents += [await behind.store.intend(write.tenant, part)]
        except SidecarError:
            await _withdraw(behind, intents)
            raise
        try:
            answer = await send()
        except NotSent:
            await _withdraw(behind, intents)
            raise
        except BaseException:
            behind.settling.take(intents)
            raise
        if answer.is_refused:
            await _withdraw(behind, intents)
        elif answer.is_done:
            return answer, await self._commit(behind, write, intents, parts)
        else:
            # It may have been carried out all the same.
            behind.settling.take(intents)
        return answer, None

    async def _commit(
        self,
        behind: Behind,
        write: Write,
        intents: Sequence[str],
        parts: Sequence[Sequence[Change]],
    ) -> Written | None:
        written = None
        for index, (intent, part) in enumerate(zip(intents, parts, strict=True)):
            try:
                done = await self._done(behind, write, part) if write.is_partial else part
                if done:
                    written = await behind.store.commit(intent, write.tenant, done)
                else:
                    await behind.store.withdraw(intent)
            except SidecarError as unavailable:
                behind.settling.take(intents[index:])
                raise Unavailable(
                    "outcome_unknown",
                    "the database has carried out the write, and it could not be noted for the "
                    f"other regions yet; it is made up for: {unavailable.message}",
                ) from unavailable
        if any(is_schema(change.relationship.resource) for part in parts for change in part):
            # What was held for want of it may fit now.
            await behind.store.release()
        return written

    async def _done(self, behind: Behind, write: Write, part: Sequence[Change]) -> Sequence[Change]:
        identities = [change.relationship.identity for change in part]
        present = await behind.looking.present(write.tenant, identities)
        return [change for change in part if is_so(change, present)]


async def _withdraw(behind: Behind, intents: Sequence[str]) -> None:
    for one in intents:
        try:
            await behind.store.withdraw(one)
        except Unavailable:
            behind.settling.take([one])
