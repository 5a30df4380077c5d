"""What went to the database past the sidecar: found by reading the database, taken into the feed.

First the schema, then every relationship that the database holds, compared with what is shown here;
then what is shown here and is not there. What differs is committed while no write of an application
and none of the applier is under way, unless a merge has changed it meanwhile. Databases give pages
of a moment that has passed, so what was written through this node since is read once more. What the
database is yet to be told, or refuses, is left out: it differs for a reason. Memory: a page, a
bucket, what is written meanwhile, and a sum per bucket and tenant.
"""

import logging
from array import array
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sidecar.core.relationship import (
    BUCKETS,
    Change,
    Identity,
    Operation,
    Relationship,
    bucket_of,
    tuple_hash,
)
from sidecar.dialects.dialect import (
    MAX_SCHEMA_BYTES,
    ReplicatedDialect,
    SchemaDialect,
    schema_text,
    schema_tuple,
)
from sidecar.errors import Refused, Unavailable
from sidecar.proxy.looking import is_schema
from sidecar.proxy.writes import Behind
from sidecar.store.proxy_store import Here, Touched

log = logging.getLogger(__name__)

AT_ONCE = 200
"""Tuples that are taken over in one go; so long other writes wait."""

TRIES = 20
"""A merge may change them while they are looked at, so often; then they are left out."""

SUM = 2**64


@dataclass(slots=True)
class Adopted:
    """What was found, so far.

    relationships: that the database holds. adopted: not shown here, or with another payload; taken
    over. missing: shown here and not in the database. deleted: so many of them, here. waiting:
    they differ, and the database is yet to be told, or refuses them. schema: "same", "adopted",
    "missing" in the database, "waiting", or "" where there is none.
    """

    relationships: int = 0
    adopted: int = 0
    missing: int = 0
    deleted: int = 0
    waiting: int = 0
    schema: str = ""


Tell = Callable[[], Awaitable[None]]


class _Seen(NamedTuple):
    """What pages of the database showed, and which of it must be read once more."""

    rows: Mapping[Identity, Relationship]
    touched: Touched


@dataclass(frozen=True, slots=True)
class Adopting:
    """One run over one partition; `run` does it, once.

    tenants: of the partition. found: counts. tell: called now and then while it runs. is_dry: it
    only counts. deletes: what is missing in the database is deleted here.
    """

    behind: Behind
    dialect: ReplicatedDialect
    tenants: Sequence[str]
    found: Adopted
    tell: Tell
    is_dry: bool = False
    deletes: bool = False
    _sums: dict[str, "array[int]"] = field(default_factory=dict)

    async def run(self) -> None:
        """Raises Unavailable, Refused; what was taken over until then stays."""
        for tenant in self.tenants:
            self._sums[tenant] = array("Q", bytes(8 * BUCKETS))
            before = self.found.relationships
            for matching in self.dialect.everything(tenant, await self._schema(tenant)):
                await self._read_there(tenant, matching)
            if self.found.relationships == before:
                await self._refuse_to_empty(tenant)
        await self._read_here()
        if not self.is_dry and (self.deletes or not self.found.missing):
            await self.behind.store.lacks_nothing()

    # -- what the database holds ------------------------------------------------------------------

    async def _schema(self, tenant: str) -> str:
        """The text of the database's schema, which is taken over before what needs it."""
        if not isinstance(self.dialect, SchemaDialect):
            return ""
        text = await self.behind.looking.schema()
        carrying = schema_tuple(tenant, text)
        (here,) = await self.behind.store.shown([carrying.identity])
        if here.is_waiting:
            self.found.schema = "waiting"
        elif not text:
            self.found.schema = "missing" if here.shown is not None else ""
        elif not self._differs(carrying, here):
            self.found.schema = "same"
        else:
            _check_size(carrying)
            await self._take_over(tenant, [carrying.identity])
            self.found.schema = "adopted"
            # What is held for want of it may fit now.
            if not self.is_dry:
                await self.behind.store.release()
        await self.tell()
        return text

    async def _read_there(self, tenant: str, matching: Mapping[str, object]) -> None:
        with self.behind.store.touching() as touched:
            # What is under way now is over, or its outcome is unknown.
            async with self.behind.gate.alone():
                for name in await self.behind.store.intents():
                    intent = await self.behind.store.intent(name)
                    noted = intent.noted if intent else ()
                    touched.add(one.change.relationship.identity for one in noted)
            cursor = None
            while True:
                page = await self.behind.looking.page(tenant, matching, cursor)
                if page is None:
                    raise Unavailable(
                        "database_unavailable",
                        f"the database refuses to be read: {dict(matching)} of {tenant}",
                    )
                await self._take_page(tenant, page.relationships, touched)
                await self.tell()
                cursor = page.cursor
                if cursor is None:
                    return

    async def _take_page(self, tenant: str, page: Sequence[Relationship], touched: Touched) -> None:
        there = [one for one in page if not self.behind.store.has_expired(one)]
        self.found.relationships += len(there)
        sums = self._sums[tenant]
        for one in there:
            bucket = bucket_of(tenant, one.resource)
            sums[bucket] = (sums[bucket] + tuple_hash(one.identity)) % SUM
        here = await self.behind.store.shown([one.identity for one in there])
        # Which of them wait is asked when no write is under way.
        differing = {
            one.identity: one
            for one, shown in zip(there, here, strict=True)
            if self._differs(one, shown)
        }
        await self._take_over(tenant, list(differing), _Seen(differing, touched))

    def _differs(self, there: Relationship, here: Here) -> bool:
        if here.shown is None or not is_schema(there.resource):
            return there != here.shown
        assert isinstance(self.dialect, SchemaDialect)
        return not self.dialect.is_same_schema(schema_text(there), schema_text(here.shown))

    # -- what is shown here -----------------------------------------------------------------------

    async def _read_here(self) -> None:
        bucket = 0
        while bucket < BUCKETS:
            following, rows = await self.behind.store.walk(bucket)
            for number, row in enumerate(rows, bucket):
                by_tenant: dict[str, list[Identity]] = {tenant: [] for tenant in self.tenants}
                for one in row:
                    if one[0] in by_tenant and not is_schema(one[1]):
                        by_tenant[one[0]].append(one)
                for tenant, identities in by_tenant.items():
                    # Equal sums: the database holds just these.
                    if sum(map(tuple_hash, identities)) % SUM != self._sums[tenant][number]:
                        await self._look_for(tenant, identities)
                        await self.tell()
            bucket = following
            await self.tell()

    async def _look_for(self, tenant: str, identities: Sequence[Identity]) -> None:
        """Take note of those that the database does not hold."""
        for some in _portions(identities):
            here = await self.behind.store.shown(some)
            asked = [one for one, shown in zip(some, here, strict=True) if not shown.is_waiting]
            present = await self.behind.looking.present(tenant, asked) if asked else {}
            missing = [one for one in asked if one not in present]
            await self._take_over(tenant, missing)

    async def _refuse_to_empty(self, tenant: str) -> None:
        """A database that has lost all must not take everything along in all regions."""
        if self.deletes and await self._shows_any(tenant):
            raise Refused(
                "database_empty",
                f"the database holds nothing of the tenant {tenant}, which has relationships here: "
                "they are not deleted; `sidecar reapply` writes them to the database",
                409,
            )

    async def _shows_any(self, tenant: str) -> bool:
        bucket = 0
        while bucket < BUCKETS:
            bucket, rows = await self.behind.store.walk(bucket)
            if any(one[0] == tenant and not is_schema(one[1]) for row in rows for one in row):
                return True
        return False

    # -- taking over ------------------------------------------------------------------------------

    async def _take_over(
        self, tenant: str, identities: Sequence[Identity], seen: "_Seen | None" = None
    ) -> None:
        """seen: of what the database holds; None: these are missing there."""
        for some in _portions(identities):
            for _ in range(TRIES):
                if await self._try(tenant, some, seen):
                    break
            else:
                self.found.waiting += len(some)

    async def _try(self, tenant: str, identities: Sequence[Identity], seen: "_Seen | None") -> bool:
        """Whether it is settled what becomes of these; not if a merge changed one meanwhile."""
        store = self.behind.store
        async with self.behind.gate.alone():
            revision = store.revision
            shown = dict(zip(identities, await store.shown(identities), strict=True))
            free = {name: here for name, here in shown.items() if not here.is_waiting}
            present = await self._present(tenant, list(free), seen)
            inserts = [one for name, one in present.items() if self._differs(one, free[name])]
            deletes = [
                here.shown
                for name, here in free.items()
                if seen is None
                and here.shown is not None
                and name not in present
                and not is_schema(here.shown.resource)
            ]
            changes = [Change(Operation.INSERT, one) for one in inserts]
            if self.deletes:
                changes += [Change(Operation.DELETE, one) for one in deletes]
            if changes and not self.is_dry and not await self._commit(tenant, changes, revision):
                return False
        self.found.adopted += sum(not is_schema(one.resource) for one in inserts)
        self.found.missing += len(deletes)
        self.found.deleted += len(deletes) if self.deletes else 0
        self.found.waiting += len(shown) - len(free)
        return True

    async def _present(
        self, tenant: str, identities: Sequence[Identity], seen: "_Seen | None"
    ) -> dict[Identity, Relationship]:
        """What the database holds of these at this moment."""
        present = {} if seen is None else {name: seen.rows[name] for name in identities}
        stale = [name for name in identities if seen is None or name in seen.touched]
        for name in stale:
            present.pop(name, None)
        if stale:
            present |= await self.behind.looking.present(tenant, stale)
        return {
            name: one for name, one in present.items() if not self.behind.store.has_expired(one)
        }

    async def _commit(self, tenant: str, changes: Sequence[Change], revision: int) -> bool:
        """Give versions to what the database has: an intent that it has carried out already."""
        store, settling = self.behind.store, self.behind.settling
        intent = settling.begin()
        try:
            await store.intend(intent, tenant, changes)
            await store.commit(intent, tenant, changes, expected_revision=revision)
            settling.close(intent)
        except Refused as refused:
            await store.withdraw(intent)
            settling.close(intent)
            if refused.code != "revision_mismatch":
                raise
            return False
        finally:
            settling.leave([intent])
        return True


def _portions(identities: Sequence[Identity]) -> Iterator[Sequence[Identity]]:
    for first in range(0, len(identities), AT_ONCE):
        yield identities[first : first + AT_ONCE]


def _check_size(schema: Relationship) -> None:
    size = len((schema.condition or "").encode("utf-8", "replace"))
    if size > MAX_SCHEMA_BYTES:
        raise Refused(
            "not_replicated",
            f"the database's schema has {size} bytes as JSON; at most {MAX_SCHEMA_BYTES} can be "
            "replicated",
            409,
        )
