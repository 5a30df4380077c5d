"""The store of a node with a database behind it: what the database is asked, and what it is told.

An *intent* is noted before the database is asked to do a write, and closed by the commit, or when
nothing came of it. A *dirty* tuple is one whose winner the database may not have; it stays so until
the database has said that it has just this winner. It is told *again* what it may undo by a request
that it carries out late. What the database refuses is *held*.
"""

import asyncio
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from sidecar.core.relationship import BUCKETS, Change, Identity, Relationship
from sidecar.core.vector import Vector
from sidecar.core.wire import change_of_row, encode_body
from sidecar.store import states
from sidecar.store.calls import WriteRequest, Written
from sidecar.store.group_commit import not_primary
from sidecar.store.link import store_full
from sidecar.store.redis_store import RedisStore

REMARK_BUCKETS = 16
"""Per call of the script, so that Redis never blocks for long."""

WALK_BUCKETS, WALK_TUPLES = 256, 1000
"""The same for a walk over all that is shown: so many buckets, none begun after so many tuples."""

MAX_TOUCHED = 100_000


class Noted(NamedTuple):
    """A change of an intent. was: what the tuple showed then; None for nothing, also by now.

    is_sure: the database had just that, and nothing came in between.
    """

    change: Change
    was: Relationship | None
    is_sure: bool
    has_moved: bool


class Intent(NamedTuple):
    """A write that the database was asked to do, at a revision.

    schema: that the database had before, where it was to be written.
    """

    id: str
    tenant: str
    revision: int
    schema: str
    noted: tuple[Noted, ...]


class Pending(NamedTuple):
    """A tuple of which the database is to be told. version: of the winner; "" for no tuple.

    shown: the winner with its payload, None where it is deleted or has gone.
    """

    name: str
    version: str
    identity: Relationship
    shown: Relationship | None


class Held(NamedTuple):
    """A tuple that the database refuses. since_us: when it last did."""

    name: str
    reason: str
    since_us: int

    @property
    def identity(self) -> Identity:
        """Which tuple it is."""
        return _identity(self.name).identity


class Here(NamedTuple):
    """What a tuple shows here. is_waiting: the database may have something else for a reason: it is
    yet to be told, a write is under way, or it refuses this.
    """

    shown: Relationship | None
    is_waiting: bool


class Touched:
    """Tuples that were written to the database through this node since this was made.

    Beyond MAX_TOUCHED of them it contains all there are.
    """

    def __init__(self) -> None:
        self._names: set[Identity] = set()
        self._is_full = False

    def add(self, names: Iterable[Identity]) -> None:
        if self._is_full:
            return
        self._names.update(names)
        if len(self._names) > MAX_TOUCHED:
            self._is_full = True
            self._names.clear()

    def __contains__(self, name: Identity) -> bool:
        return self._is_full or name in self._names


class ProxyStore(RedisStore):
    """A `RedisStore` that notes what the database behind it must be told."""

    is_proxied = True

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.changed = asyncio.Event()
        """Set when something may have become dirty."""
        self.releases = 0
        """How often what is held was released."""
        self._touched: set[Touched] = set()

    def _advance(self, clock: int, vector: Vector, first_own: int = 0) -> None:
        super()._advance(clock, vector, first_own)
        self.changed.set()

    # -- writes of applications -------------------------------------------------------------------

    async def intend(
        self,
        name: str,
        tenant: str,
        changes: Sequence[Change],
        schema: str = "",
        *,
        is_filter: bool = False,
    ) -> None:
        """Note a write under a new name. Raises what `write` raises; it may be noted all the same.

        schema: that the database has now, where it is to be written. is_filter: the changes are
        what a filter matches now; what is written meanwhile it may match as well.
        """
        self._refuse_applications()
        self.check_fence()
        if self._refused_writes is not None:
            raise self._refused_writes
        if self._memory.is_full:
            raise store_full(self.full_because)
        self._touch(change.relationship.identity for change in changes)
        body, filter_ = encode_body(tenant, changes), "1" if is_filter else ""
        args = (self._now_us(), self._clock, name, body, schema, filter_)
        outcome, primary = await self._ask(self._reader(), "intend", *args)
        if outcome == b"behind":
            raise self._refusal() or self._lost()
        if outcome == b"fenced":
            raise not_primary(primary.decode())

    async def commit(
        self,
        intent: str,
        tenant: str,
        changes: Sequence[Change],
        *,
        expected_revision: int | None = None,
        is_late: bool = False,
    ) -> Written:
        """Give versions to what the database has done. May be repeated within a minute.

        expected_revision: Refused("revision_mismatch") where a tuple has changed here after it; the
        intent then stands. is_late: it was found out by looking, and the database is told once more
        what is right, because it may do it again.

        Raises Unavailable; the intent then stands, unless the commit is there already.
        """
        request = WriteRequest(
            tenant,
            changes,
            expected_revision,
            idempotency_key=f"intent/{intent}",
            request_hash=intent,
            is_again=True,
            intent=intent,
            is_late=is_late,
        )
        return await self._group_commit.write(request)

    async def withdraw(self, intent: str, *, in_doubt: bool = False) -> None:
        """Close an intent of which nothing came. in_doubt: the database is told what is right."""
        args = (self._clock, intent, "1" if in_doubt else "")
        await self._ask(self._reader(), "withdraw", *args)
        self.changed.set()

    async def intents(self) -> list[str]:
        """The names of those that are open."""
        return [name.decode() for name in await self._read("HKEYS", self.keys.intents)]

    async def intent(self, name: str) -> Intent | None:
        """One that is open; None: it is closed."""
        outcome, *found = await self._ask(self._reader(), "noted", self._clock, name)
        if outcome != b"open":
            return None
        text, moved = found
        return _intent(name, text, moved, self._now_us())

    # -- what the database is told ----------------------------------------------------------------

    async def pending(self, count: int) -> list[Pending]:
        """Dirty tuples in no open intent, the oldest mark first.

        Not to be called before the outcome of what was told last is noted, or doubted.
        """
        now_us = self._now_us()
        _, *rows = await self._ask(self._reader(), "pending", self._clock, now_us, count)
        return [
            _pending(name.decode(), text.decode(), now_us)
            for name, text in zip(rows[::2], rows[1::2], strict=True)
        ]

    async def note_applied(self, told: Sequence[tuple[Pending, str]]) -> int:
        """What the database said: "" or why it refuses. Returns how many marks are gone."""
        self._touch(one.identity.identity for one, _ in told)
        rows = [text for one, reason in told for text in (one.name, one.version, reason)]
        args = (self._clock, self._now_us(), *rows)
        _, gone = await self._ask(self._reader(), "applied", *args)
        return int(gone)

    async def doubt(self, grace_s: float) -> None:
        """The database may carry out for so long what it was told last: it is told it again then.

        What an earlier process has told is meant as well.
        """
        until_us = self._now_us() + int(grace_s * 1e6)
        await self._ask(self._reader(), "doubt", self._clock, until_us)

    async def again_in_s(self) -> float:
        """In how many seconds something is to be told again; infinite where nothing is."""
        first = await self._read("ZRANGE", self.keys.again, 0, 0, "WITHSCORES")
        return max(0.0, (float(first[1]) - self._now_us()) / 1e6) if first else math.inf

    async def dirty_before(self, revision: int) -> bool:
        """Whether the database may lack something that was merged here up to this revision."""
        return bool(await self._read("ZCOUNT", self.keys.dirty, "-inf", revision))

    async def dirty_count(self) -> int:
        """How many tuples the database may not have as they are here."""
        return int(await self._read("ZCARD", self.keys.dirty))

    async def held(self, count: int = 1000) -> list[Held]:
        """What the database refuses; not many more than `count`, if there are."""
        found: dict[str, Held] = {}
        cursor = b"0"
        while len(found) < count:
            cursor, flat = await self._read("HSCAN", self.keys.held, cursor, "COUNT", count)
            for name, text in zip(flat[::2], flat[1::2], strict=True):
                one = json.loads(text)
                found[name] = Held(name.decode(), one["reason"], int(one["since"]))
            if cursor == b"0":
                break
        return sorted(found.values())

    async def held_count(self) -> int:
        """How many tuples the database refuses."""
        return int(await self._read("HLEN", self.keys.held))

    async def release(self) -> int:
        """Have the database told again what it refused; how many tuples."""
        self.releases += 1
        _, count = await self._ask(self._reader(), "remark", self._clock, "", "")
        if int(count):
            self.changed.set()
        return int(count)

    async def remark_all(self) -> int:
        """Have the database told everything, from the beginning; how many tuples."""
        return await self._remark_from(0)

    async def may_lack(self) -> bool:
        """Whether Redis has lost writes since the database was read the last time."""
        return bool(await self._read("HEXISTS", self.keys.meta, "adopt"))

    async def lacks_nothing(self) -> None:
        """The database was read, and all of it is here."""
        await self._control.call("HDEL", self.keys.meta, "adopt")

    async def is_remarking(self) -> bool:
        """Whether not all that the database is to be told is marked yet."""
        return bool(await self._read("HEXISTS", self.keys.meta, "remark"))

    async def go_on_remarking(self) -> bool:
        """Finish a walk that was begun, and was cut short; False when there was none."""
        text = await self._read("HGET", self.keys.meta, "remark")
        if text is None:
            return False
        await self._remark_from(int(text))
        return True

    # -- what is here, to be compared with the database --------------------------------------------

    async def shown(self, identities: Sequence[Identity]) -> list[Here]:
        """These tuples as they are here, in this order."""
        self._refuse_applications()
        names = [f"{t}/{resource}#{relation}#{s}" for t, resource, relation, s in identities]
        _, *rows = await self._ask(self._reader(), "shown", self._clock, *names)
        now_us = self._now_us()
        return [
            Here(_pending(name, text.decode(), now_us).shown, bool(waits))
            for name, text, waits in zip(names, rows[::2], rows[1::2], strict=True)
        ]

    async def walk(self, first: int) -> tuple[int, list[list[Identity]]]:
        """Some buckets, whole, from this one on: what each shows; and where to go on."""
        page = await self.states(first, WALK_BUCKETS, WALK_TUPLES)
        now_us = self._now_us()
        return page.following, [
            [
                one.identity
                for key, field, text in bucket.tuples
                if (one := _pending(f"{key}#{field}", text, now_us).shown) is not None
            ]
            for bucket in page.buckets
        ]

    @contextmanager
    def touching(self) -> Iterator[Touched]:
        """Notes what is written to the database through this node, until the end of the block; each
        tuple before it is neither dirty nor in an open intent any more.
        """
        touched = Touched()
        self._touched.add(touched)
        try:
            yield touched
        finally:
            self._touched.remove(touched)

    def _touch(self, names: Iterable[Identity]) -> None:
        if self._touched:
            names = list(names)
        for touched in self._touched:
            touched.add(names)

    def has_expired(self, one: Relationship) -> bool:
        """Whether it would not be shown any more."""
        return one.expires_at is not None and one.expires_at <= self._now_us()

    async def _remark_from(self, bucket: int) -> int:
        count = 0
        for first in range(bucket, BUCKETS, REMARK_BUCKETS):
            last = min(first + REMARK_BUCKETS, BUCKETS) - 1
            _, marked = await self._ask(self._reader(), "remark", self._clock, first, last)
            self.changed.set()
            count += int(marked)
        await self._control.call("HDEL", self.keys.meta, "remark")
        return count


def _intent(name: str, text: bytes, moved: bytes, now_us: int) -> Intent:
    one = json.loads(text)
    changes = [change_of_row(one["tenant"], row) for row in one["changes"]]
    noted = tuple(
        Noted(change, _was(change, was, now_us), is_sure, has_moved == "1")
        for change, was, is_sure, has_moved in zip(
            changes, one["was"], one["sure"], moved.decode(), strict=True
        )
    )
    return Intent(name, one["tenant"], int(one["revision"]), one["before"], noted)


def _was(change: Change, text: str, now_us: int) -> Relationship | None:
    if not text:
        return None
    condition, _, expires_at = text[1:].rpartition("\n")
    until = int(expires_at) if expires_at else None
    if until is not None and until <= now_us:
        return None
    return change.relationship._replace(condition=condition or None, expires_at=until)


def _identity(name: str) -> Relationship:
    member, _, field = name.partition("#")
    tenant, _, resource = member.partition("/")
    relation, _, subject = field.partition("#")
    return Relationship(tenant, resource, relation, subject)


def _pending(name: str, text: str, now_us: int) -> Pending:
    identity = _identity(name)
    if not text:
        return Pending(name, "", identity, None)
    shown = states.winner(text)
    at, origin = shown.version
    version = f"{at} {origin}"
    until = int(shown.expires_at) if shown.expires_at else None
    if not shown.is_visible or (until is not None and until <= now_us):
        return Pending(name, version, identity, None)
    payload = (shown.condition or None, until)
    one = Relationship(*identity.identity, *payload)
    return Pending(name, version, identity, one)
