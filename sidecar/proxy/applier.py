"""The applier: tells the database what was merged here, until it has it.

Level-triggered: what a tuple shows *now* is written, and its mark goes only if it shows the same
afterwards. A request that the database has not answered it may still carry out, after the next one:
it is told again when that is over. What the database refuses is held with the reason, and tried
again when its schema has changed, and now and then.
"""

import asyncio
import logging
from collections.abc import Sequence

from sidecar.core.relationship import Change, Operation
from sidecar.dialects.dialect import (
    Ask,
    ReplicatedDialect,
    SchemaDialect,
    Verdict,
    schema_text,
)
from sidecar.errors import Refused, SidecarError
from sidecar.metrics import Metrics
from sidecar.proxy.database import Answer, Database
from sidecar.proxy.gate import Gate
from sidecar.proxy.looking import is_schema, unanswered
from sidecar.store.proxy_store import Pending, ProxyStore

log = logging.getLogger(__name__)

COUNT = 1000
"""Tuples that are looked at in one go."""

RETRY_S = (0.1, 5.0)
"""The first pause after a failure, and the longest."""

RELEASE_S = 30.0
"""What is held is tried again that often at least."""

GRACE_S = 5.0
"""How long the database may still carry out a request that it has not answered."""

MAX_REASON = 300


class Applier:
    """Tells one database what one store shows; `run` does."""

    def __init__(
        self,
        store: ProxyStore,
        dialect: ReplicatedDialect,
        database: Database,
        gate: Gate,
        metrics: Metrics,
    ) -> None:
        self._store, self._dialect, self._database = store, dialect, database
        self._gate, self._metrics = gate, metrics
        self._progress = asyncio.Condition()
        self._steps = 0
        self._release_at = 0.0
        self._releases = 0
        self._has_held = False
        self.failing_because = ""

    async def run(self) -> None:
        """For ever; nothing is given up."""
        pause_s = RETRY_S[0]
        # An earlier process may have been killed while it told the database something.
        is_in_doubt = True
        while True:
            await self._store.opened()
            self._store.changed.clear()
            try:
                if is_in_doubt:
                    await self._store.doubt(GRACE_S)
                    is_in_doubt = False
                await self._store.go_on_remarking()
                if not await self._step():
                    self._note("")
                    await self._rest()
            except SidecarError as failure:
                is_in_doubt = True
                self._note(failure.message)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_S[1])
                continue
            pause_s = RETRY_S[0]
            self._note("")

    async def wait_applied(self, revision: int, timeout_s: float) -> bool:
        """Whether the database comes to have all that was merged up to a revision, in that time."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    steps = self._steps
                    if not await self._store.dirty_before(revision):
                        return True
                    async with self._progress:
                        await self._progress.wait_for(lambda: self._steps != steps)  # noqa: B023
        except TimeoutError:
            return False

    async def _rest(self) -> None:
        """Until there may be something to tell; what is held is tried again meanwhile."""
        await self._told()
        clock = asyncio.get_running_loop().time
        rest_s = self._release_at - clock()
        if rest_s <= 0:
            self._release_at = clock() + RELEASE_S
            await self._store.release()
            return
        try:
            async with asyncio.timeout(min(rest_s, await self._store.again_in_s())):
                await self._store.changed.wait()
        except TimeoutError:
            return

    async def _told(self) -> None:
        async with self._progress:
            self._steps += 1
            self._progress.notify_all()

    def _note(self, failure: str) -> None:
        if failure and not self.failing_because:
            log.warning("the database cannot be told what was merged", extra={"reason": failure})
        elif self.failing_because and not failure:
            log.info("the database is told again what was merged")
        self.failing_because = failure

    async def _step(self) -> bool:
        """Whether there was anything to tell."""
        pending = await self._store.pending(COUNT)
        if not pending:
            return False
        self._releases, self._has_held = self._store.releases, False
        async with self._gate.shared():
            for one in pending:
                if is_schema(one.identity.resource):
                    await self._tell_schema(one)
            by_tenant: dict[str, list[Pending]] = {}
            for one in pending:
                if not is_schema(one.identity.resource):
                    by_tenant.setdefault(one.identity.tenant, []).append(one)
            for tenant, rows in by_tenant.items():
                for first in range(0, len(rows), self._dialect.most_changes):
                    await self._tell(tenant, rows[first : first + self._dialect.most_changes])
        if self._has_held and self._store.releases != self._releases:
            # The schema was written while the database was asked: what it refused may fit now.
            await self._store.release()
        await self._told()
        return True

    async def _tell_schema(self, one: Pending) -> None:
        if one.shown is None or not isinstance(self._dialect, SchemaDialect):
            # A schema is written and never deleted.
            await self._store.note_applied([(one, "")])
            return
        verdict, reason = await self._ask(self._dialect.apply_schema(schema_text(one.shown)))
        if verdict is not Verdict.DONE:
            await self._hold(one, reason)
            return
        await self._store.note_applied([(one, "")])
        # What was held for want of it may fit now.
        await self._store.release()

    async def _tell(self, tenant: str, rows: Sequence[Pending]) -> None:
        """Tell some; where the database refuses them, find out which it refuses."""
        reason = await self._refusal(tenant, rows)
        if reason is None:
            await self._store.note_applied([(one, "") for one in rows])
            self._metrics.applied(len(rows))
        elif len(rows) > 1:
            middle = len(rows) // 2
            await self._tell(tenant, rows[:middle])
            await self._tell(tenant, rows[middle:])
        elif rows[0].shown is None:
            # What it cannot have it does not have.
            await self._store.note_applied([(rows[0], "")])
        else:
            await self._hold(rows[0], reason)

    async def _refusal(self, tenant: str, rows: Sequence[Pending]) -> str | None:
        """Why the database does not take them; None: it has."""
        changes = [_change(one) for one in rows]
        try:
            verdict, reason = await self._ask(self._dialect.apply(tenant, changes))
            if verdict is Verdict.DIFFERS and len(changes) == 1:
                for ask in self._dialect.replace(tenant, changes[0]):
                    verdict, reason = await self._ask(ask)
                    if verdict is not Verdict.DONE:
                        break
        except Refused as refused:
            return refused.message
        return None if verdict is Verdict.DONE else reason

    async def _ask(self, ask: Ask) -> tuple[Verdict, str]:
        answer = await self._database.ask(ask)
        return self._verdict(ask, answer), _reason(answer)

    def _verdict(self, ask: Ask, answer: Answer) -> Verdict:
        verdict = self._dialect.verdict(answer.status, answer.body)
        if verdict is Verdict.AGAIN:
            raise unanswered(ask, answer)
        return verdict

    async def _hold(self, one: Pending, reason: str) -> None:
        log.warning(
            "the database refuses what was merged; it is held here",
            extra={"tuple": one.name, "reason": reason},
        )
        self._has_held = True
        await self._store.note_applied([(one, reason[:MAX_REASON])])


def _change(one: Pending) -> Change:
    if one.shown is None:
        return Change(Operation.DELETE, one.identity)
    return Change(Operation.INSERT, one.shown)


def _reason(answer: Answer) -> str:
    return f"{answer.status} {answer.body[:MAX_REASON].decode('utf-8', 'replace')}"
