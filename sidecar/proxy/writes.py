"""One write of an application through the database: noted, done there, and given its version.

A crash at any point leaves an intent in Redis (`settling.py`) or a mark (`applier.py`).
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
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
        async with _gate(behind, write):
            changes, schema = write.changes, ""
            if write.matching is not None:
                found = await behind.looking.matching(write.tenant, write.matching)
                changes = [Change(Operation.DELETE, one) for one in found.values()]
            elif _is_of_schema(write):
                schema = await behind.looking.schema()
            # Also a filter that matches nothing is noted: it may come late, and match something.
            starts = range(0, len(changes) or 1, MOST_CHANGES)
            parts = [changes[start : start + MOST_CHANGES] for start in starts]
            intents = [behind.settling.begin() for _ in parts]
            try:
                await self._note(behind, write, intents, parts, schema)
                return await self._done(behind, write, intents, parts, send)
            finally:
                behind.settling.leave(intents)

    async def _note(
        self,
        behind: Behind,
        write: Write,
        intents: Sequence[str],
        parts: Sequence[Sequence[Change]],
        schema: str,
    ) -> None:
        try:
            for intent, part in zip(intents, parts, strict=True):
                await behind.store.intend(
                    intent, write.tenant, part, schema, is_filter=write.matching is not None
                )
        except SidecarError:
            await _withdraw(behind, intents)
            raise

    async def _done(
        self,
        behind: Behind,
        write: Write,
        intents: Sequence[str],
        parts: Sequence[Sequence[Change]],
        send: Send,
    ) -> tuple[Answer, Written | None]:
        try:
            answer = await send()
        except NotSent:
            await _withdraw(behind, intents)
            raise
        if answer.is_refused:
            await _withdraw(behind, intents)
        if not answer.is_done:
            # Of what is not withdrawn nobody knows: it may have been carried out all the same.
            return answer, None
        try:
            return answer, await self._commit(behind, write, intents, parts)
        except SidecarError as unavailable:
            behind.settling.leave(intents, was_done=not write.is_partial)
            raise Unavailable(
                "outcome_unknown",
                "the database has carried out the write, and it could not be noted for the "
                f"other regions yet; it is made up for: {unavailable.message}",
            ) from unavailable

    async def _commit(
        self,
        behind: Behind,
        write: Write,
        intents: Sequence[str],
        parts: Sequence[Sequence[Change]],
    ) -> Written | None:
        written = None
        for intent, part in zip(intents, parts, strict=True):
            changes = await _gone(behind, write, part) if write.is_partial else part
            if changes:
                written = await behind.store.commit(intent, write.tenant, changes)
            else:
                await behind.store.withdraw(intent)
            behind.settling.close(intent)
        if _is_of_schema(write):
            await _release(behind)
        return written


def _gate(behind: Behind, write: Write) -> AbstractAsyncContextManager[None]:
    # What is seen in the database must be so until it is done: nothing else may write meanwhile.
    if write.matching is not None or _is_of_schema(write):
        return behind.gate.alone()
    return behind.gate.shared()


def _is_of_schema(write: Write) -> bool:
    return any(is_schema(change.relationship.resource) for change in write.changes)


async def _gone(behind: Behind, write: Write, part: Sequence[Change]) -> Sequence[Change]:
    identities = [change.relationship.identity for change in part]
    present = await behind.looking.present(write.tenant, identities)
    return [change for change in part if is_so(change, present)]


async def _release(behind: Behind) -> None:
    """What was held for want of a schema may fit now."""
    try:
        await behind.store.release()
    except Unavailable:
        # The applier releases it after a while.
        return


async def _withdraw(behind: Behind, intents: Sequence[str]) -> None:
    for one in intents:
        try:
            await behind.store.withdraw(one)
        except SidecarError:
            # It is settled like one of unknown outcome.
            continue
        behind.settling.close(one)
