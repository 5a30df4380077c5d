"""The store of one node: every transition and every read of its data set in Redis.

Owns the group commit and what goes over which connection. Lua decides, Python moves: nothing here
judges a state. Whoever calls gets answers with a type, or one of our failures.
"""

import asyncio
import contextlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self

from sidecar.core.conflict import Rules
from sidecar.core.epoch import Epoch, decode_epoch
from sidecar.core.membership import Removed
from sidecar.core.relationship import BUCKETS, Change, Operation, Relationship
from sidecar.core.script import CustomScript
from sidecar.core.vector import Vector, is_covered, pointwise_max
from sidecar.core.wire import bucket_of_name, encode_vector, hash_of
from sidecar.endings import end
from sidecar.errors import Refused, Unavailable
from sidecar.metrics import Metrics
from sidecar.store import states
from sidecar.store.calls import (
    Absorbed,
    AbsorbOutcome,
    Bucket,
    Filter,
    LetGo,
    Merged,
    MergeOutcome,
    Orphan,
    Page,
    Raised,
    Reported,
    States,
    Trimmed,
    Way,
    WriteRequest,
    Written,
)
from sidecar.store.conflicts import Entry, check_cursor, conflict_entries_of
from sidecar.store.feed import FeedEntry, entries_of
from sidecar.store.group_commit import Committed, GroupCommit
from sidecar.store.keys import PARTITION
from sidecar.store.link import Link, ScriptError, store_full
from sidecar.store.opening import PARTITIONS, READERS, Check, OpenStore, _vector

__all__ = ["PARTITIONS", "RedisStore"]

log = logging.getLogger(__name__)

COLLECT_COUNT = 200
"""Tuples per call of the collect script, so that Redis never blocks for long."""


SCAN_COUNT = 500
"""Keys per step of a walk over all keys, for the same reason."""


class RedisStore(OpenStore):
    """The data set of `node`. Use as an async context manager; it opens when Redis answers.

    now_us: the wall clock. random_bits: draws that many random bits. readers: connections for
    reads. check: what else must hold of the stored data before it opens.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        node: str,
        rules: Rules,
        metrics: Metrics,
        now_us: Callable[[], int],
        random_bits: Callable[[int], int],
        has_peers: bool = False,
        max_clock_skew_ms: int = 60_000,
        timeout_s: float = 10.0,
        partition: str = PARTITION,
        readers: int = READERS,
        check: Check | None = None,
        custom: CustomScript | None = None,
    ) -> None:
        super().__init__(
            url,
            prefix=prefix,
            node=node,
            rules=rules,
            metrics=metrics,
            now_us=now_us,
            random_bits=random_bits,
            has_peers=has_peers,
            timeout_s=timeout_s,
            partition=partition,
            readers=readers,
            check=check,
            custom=custom,
        )
        self._skew_us = max_clock_skew_ms * 1000
        self._tries = Counter[str]()
        self._group_commit = GroupCommit(self._commit, metrics.wrote)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        group = await self._stack.enter_async_context(asyncio.TaskGroup())
        loops = (
            self._keep_open(),
            self._durability.run(),
            *map(self._group_commit.run, self._writers),
        )
        self._stack.push_async_callback(end, [group.create_task(loop) for loop in loops])
        return self

    async def __aexit__(self, *failure: Any) -> None:
        self._is_ending = True
        self._set_closed(Unavailable("store_unavailable", "this node is shutting down"))
        self._group_commit.refuse(self._closed_because)
        try:
            await self._stack.__aexit__(*failure)
        finally:
            for link in self._links:
                await link.close()

    # -- writes -------------------------------------------------------------------------------

    async def write(self, request: WriteRequest) -> Written:
        """Commit one write, together with the others that wait at this moment.

        Raises Refused (409 revision_mismatch, 422 idempotency_key_reused) and Unavailable
        (outcome_unknown: nobody knows; with any other code nothing was done).
        """
        self._refuse_applications()
        if not request.is_again:
            self.check_fence()
        if self._refused_writes is not None:
            raise self._refused_writes
        if self._memory.is_full:
            raise store_full(self.full_because)
        return await self._group_commit.write(request)

    async def _commit(self, link: Link, pairs: Sequence[str]) -> Committed:
        """One run of the write script."""
        reply = await self._ask(link, "write", self._now_us(), self._clock, *pairs)
        if reply[0] == b"behind":
            # It has fallen behind while the write was on its way.
            raise self._refusal() or self._lost()
        vector, previous, origin, replies = (
            _vector(reply[1]),
            int(reply[2]),
            reply[3].decode(),
            reply[4:],
        )
        outcomes = zip(replies[::4], replies[1::4], strict=True)
        first = next((int(revision) for outcome, revision in outcomes if outcome == b"written"), 0)
        if origin == self._origin:
            # Two groups may be on their way, and the later one be answered first.
            is_next = previous == self._vector.get(origin, 0)
            self._advance(vector[origin], vector, first if is_next else 0)
        return Committed(origin, vector, replies)

    async def merge(self, batch: bytes, nodes: Collection[str] = ()) -> Merged:
        """Take in transactions of other origins, a line each, as they came from a peer.

        nodes: those whose transactions are taken, others are parked; empty: all.
        Raises Refused("bad_batch") when it is not a batch of a known format, and Unavailable. A
        batch may be merged any number of times.
        """
        rules, known = self._rules.to_json(), _listed(nodes)
        args = (self._now_us(), self._clock, self._skew_us, rules, batch, known)
        try:
            reply = await self._ask(self._merger, "merge", *args)
        except ScriptError as error:
            raise Refused("bad_batch", error.text) from error
        outcome, detail, clock, transactions, here, there, vector_json, parked = reply
        merged = Merged(
            MergeOutcome(outcome.decode()),
            detail.decode(),
            int(transactions),
            _vector(vector_json),
            json.loads(parked),
        )
        if merged.outcome is MergeOutcome.LOST and not merged.vector:
            lost = self._lost()
            self._set_closed(lost)
            raise lost
        self._advance(int(clock), merged.vector)
        for origin in merged.parked:
            self._tries[origin] += 1
        self._metrics.merged(int(transactions), local=int(here), remote=int(there))
        if merged.outcome is MergeOutcome.CONTRADICTION:
            raise Refused("bad_batch", merged.detail)
        return merged

    async def own_after(self, timestamp: int) -> int:
        """Wait for a write of this node after the one with this timestamp.

        Returns a revision behind which it lies; no write of this node lies between the two.
        """
        if self._vector.get(self._origin, 0) > timestamp:
            return timestamp
        if self._next_own is None:
            self._next_own = asyncio.get_running_loop().create_future()
        # Nothing is known of a write whose answer was lost but that it is there.
        return max(timestamp, await asyncio.shield(self._next_own) - 1)

    # -- reads --------------------------------------------------------------------------------

    async def read_page(self, wanted: Filter, limit: int, cursor: str | None = None) -> Page:
        """A page of visible tuples. Raises Refused("invalid_cursor") and Unavailable."""
        self._refuse_applications()
        try:
            outcome, rest, clock, vector, *rows = await self._ask(
                self._reader(),
                "page",
                wanted.tenant,
                wanted.resource or "",
                wanted.resource_type or "",
                wanted.relation or "",
                wanted.subject or "",
                limit,
                cursor or "",
            )
        except ScriptError as error:
            raise Refused(
                "invalid_cursor", f"the cursor is not one of ours: {error.text}"
            ) from None
        if outcome == b"lost":
            raise self._lost()
        now_us = self._now_us()
        found = []
        for resource, field, value in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
            one = states.visible(wanted.tenant, resource.decode(), field, value, now_us)
            if one is not None:
                found.append(one)
        return Page(found, rest.decode() or None, int(clock), _vector(vector))

    async def find(
        self, tenant: str, resource: str, relation: str, subject: str
    ) -> Relationship | None:
        """The relationship if it is there, not deleted and not expired."""
        self._refuse_applications()
        field = f"{relation}#{subject}".encode()
        value = await self._read("HGET", self.keys.tuples(tenant, resource), field)
        if value is None:
            return None
        return states.visible(tenant, resource, field, value, self._now_us())

    async def tenants(self) -> list[str]:
        """Every tenant that has a tuple here, sorted."""
        self._refuse_applications()
        return sorted(name.decode() for name in await self._read("SMEMBERS", self.keys.tenants))

    async def tuples_per_tenant(self, first: int, tuples: int) -> tuple[int | None, dict[str, int]]:
        """How many visible tuples each tenant has in some buckets, from the bucket `first` on.

        tuples: after so many no further bucket is begun. Returns where to go on, None at the end.
        """
        self._refuse_applications()
        _, following, *flat = await self._ask(self._reader(), "tenants", self._clock, first, tuples)
        counts = {t.decode(): int(n) for t, n in zip(flat[::2], flat[1::2], strict=True)}
        return (None if int(following) >= BUCKETS else int(following)), counts

    def _refuse_applications(self) -> None:
        if (refusal := self._refusal()) is not None:
            raise refusal

    async def wait_covered(self, vector: Vector, timeout_s: float) -> bool:
        """Whether this node comes to cover `vector` in that time."""
        if is_covered(vector, self._vector):
            return True
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._covering[reached] = vector
        try:
            async with asyncio.timeout(timeout_s):
                await reached
        except TimeoutError:
            return False
        finally:
            del self._covering[reached]
        return True

    # -- the conflict log ---------------------------------------------------------------------

    async def conflicts(
        self, after: str | None, count: int, newer_than: str | None = None
    ) -> list[Entry]:
        """At most `count` conflicts, newest first: from the one behind `after` in that order on.

        newer_than: only those younger than this one. Both are cursors of entries, which need not
        be there any more. Raises Refused("invalid_cursor") and Unavailable.
        """
        newest = "+" if after is None else f"({check_cursor(after)}"
        oldest = "-" if newer_than is None else f"({check_cursor(newer_than)}"
        reply = await self._read(
            *("XREVRANGE", self.keys.conflicts, newest, oldest), *("COUNT", count)
        )
        return conflict_entries_of(reply)

    # -- the feed -----------------------------------------------------------------------------

    async def feed_after(self, revision: int, count: int) -> list[FeedEntry]:
        """At most `count` entries with a revision above this one, in order."""
        start = f"({revision}-0" if revision else "-"
        reply = await self._read("XRANGE", self.keys.feed, start, "+", "COUNT", count)
        return self._seen(entries_of(reply))

    def _seen(self, entries: list[FeedEntry]) -> list[FeedEntry]:
        """What was read may be shipped, so it is known to be stored, also if its answer is lost."""
        if entries:
            self._clock = max(self._clock, entries[-1].revision)
        return entries

    async def feed_news(self, revision: int, count: int, wait_ms: int) -> list[FeedEntry]:
        """The same, waiting up to `wait_ms` for the first; empty when none came."""
        if not self._opened.is_set():
            raise self._closed_because
        # An answer that is late by design must not look like a server that has fallen silent.
        wait_ms = min(wait_ms, int(self._timeout_s * 500))
        try:
            reply = await self._tailer.call(
                *("XREAD", "COUNT", count, "BLOCK", wait_ms),
                *("STREAMS", self.keys.feed, f"{revision}-0"),
            )
        except Unavailable as unavailable:
            await self._broke(self._tailer, unavailable)
            raise Unavailable("store_unavailable", unavailable.message) from unavailable
        return self._seen(entries_of(reply[0][1])) if reply else []

    async def feed_bounds(self) -> tuple[int, int]:
        """The first revision that the feed still holds (0: it is empty), and the newest one.

        As Redis has them: a watcher may have seen a write before its writer has its answer.
        """
        first = await self.feed_after(0, 1)
        clock = await self._read("HGET", self.keys.meta, "clock")
        return (first[0].revision if first else 0, int(clock or 0))

    async def cursors(self) -> dict[str, int]:
        """target -> revision it has acknowledged, as last stored."""
        flat = await self._read("HGETALL", self.keys.cursors)
        return {flat[i].decode(): int(flat[i + 1]) for i in range(0, len(flat), 2)}

    async def store_cursor(self, target: str, revision: int) -> None:
        """Remember how far a target has come, for the time after a restart."""
        await self._ask(self._reader(), "cursor", target, revision)

    async def feed_length(self) -> int:
        """How many transactions the feed holds."""
        return int(await self._read("XLEN", self.keys.feed))

    async def trim(self, up_to: int, count: int) -> Trimmed:
        """Take at most `count` entries off the feed, the oldest, none above revision `up_to`.

        Raises Unavailable. Works also above maxmemory, and may be repeated.
        """
        self._trimming = max(self._trimming, up_to)
        reply = await self._ask(self._reader(), "trim", self._clock, up_to, count)
        _, gone, more, trimmed, floor = reply
        self._note_trimmed(int(trimmed), _vector(floor))
        return Trimmed(int(gone), more == b"more")

    def _note_trimmed(self, trimmed: int, floor: Vector) -> None:
        self._trimmed = max(self._trimmed, trimmed)
        self._trimming = max(self._trimming, trimmed)
        self._floor = pointwise_max(self._floor, floor)

    async def whole_after(self, revision: int) -> int:
        """The first revision, from this one on, behind which nothing was trimmed.

        Certain for what the caller has read *before* asking: the server is asked, unless nobody
        has ever wanted to trim as far.
        """
        if revision >= self._trimming:
            return revision
        trimmed = await self._read("HGET", self.keys.meta, "trimmed")
        return max(revision, int(trimmed or 0))

    async def stored_floor(self) -> Vector:
        """origin -> timestamp up to which the feed does not hold all of it, as Redis has it."""
        flat = await self._read("HGETALL", self.keys.floor)
        return {flat[i].decode(): int(flat[i + 1]) for i in range(0, len(flat), 2)}

    # -- states, page by page -------------------------------------------------------------------

    async def states(self, first: int, buckets: int, tuples: int) -> States:
        """Whole buckets from `first` on: at most `buckets`, none begun after so many `tuples`."""
        reply = await self._ask(self._reader(), "states", self._clock, first, buckets, tuples)
        following, vector, rest = int(reply[1]), _vector(reply[2]), reply[3:]
        found, at = [], 0
        while at < len(rest):
            number, digest, beyond, count = rest[at : at + 4]
            at += 4
            end = at + 3 * int(count)
            texts = [_text(text) for text in rest[at:end]]
            rows = list(zip(texts[::3], texts[1::3], texts[2::3], strict=True))
            found.append(Bucket(int(number), int(digest), _vector(beyond), rows))
            at = end
        return States(following, vector, found)

    async def absorb(
        self, page: bytes, way: Way, progress: str = "", nodes: Collection[str] = ()
    ) -> Absorbed:
        """Take in a page, a line per bucket (`encode_bucket`). May be repeated.

        nodes: those whose writes are taken, a page with others is refused; empty: all.
        progress: kept as the progress of the transfer. Raises Refused("bad_page"), and
        Unavailable("store_lost_writes") when the page has writes of this node that are not here,
        Unavailable("custom_script_failed") when no winner can be chosen; nothing is written then.
        """
        hashes: dict[str, int] = {}
        while True:
            try:
                reply = await self._ask(
                    self._merger,
                    "absorb",
                    *(self._now_us(), self._clock, self._skew_us, self._rules.to_json()),
                    *(way.value, progress, json.dumps(hashes), page, _listed(nodes)),
                )
            except ScriptError as error:
                raise Refused("bad_page", error.text) from error
            outcome, clock, vector, here, there, appeared, disappeared, *names = reply
            if outcome == b"undecided":
                raise Unavailable(
                    "custom_script_failed",
                    f"a page is not taken in, the custom script fails: {names[0].decode()}",
                )
            if outcome != b"need":
                break
            # Tuples that only this node holds: the script cannot compute their hashes.
            needed = [name.decode() for name in names]
            hashes |= {name: hash_of(*name.split("\n", 1)) for name in needed}
        self._advance(int(clock), _vector(vector))
        self._metrics.merged(0, local=int(here), remote=int(there))
        if progress and outcome == b"absorbed":
            self._progress = progress
        return Absorbed(AbsorbOutcome(outcome.decode()), int(appeared), int(disappeared))

    async def finish(
        self,
        start: Vector,
        progress: str,
        *,
        joined: frozenset[str] | None = None,
    ) -> bool:
        """The end of a transfer that began at `start`; False when it was not under way.

        joined: what is joined here since the rules changed, the source's state among it.
        """
        outcome, *_ = await self._finish(start, progress, joined=joined)
        if outcome != b"finished":
            return False
        self._progress = "" if progress else self._progress
        self._joined = joined if joined is not None else self._joined
        return True

    async def _finish(
        self,
        start: Vector,
        progress: str,
        ended: Vector | None = None,
        is_whole: bool = False,
        joined: frozenset[str] | None = None,
    ) -> list[bytes]:
        nodes = json.dumps(sorted(joined)) if joined is not None else ""
        reply: list[bytes] = await self._ask(
            self._merger,
            "finish",
            *(self._clock, json.dumps(encode_vector(start)), progress),
            *(json.dumps(encode_vector(ended or {})), "1" if is_whole else "", nodes),
        )
        outcome, vector, floor, *_ = reply
        if outcome == b"finished":
            self._floor = _vector(floor)
            self._advance(self._clock, _vector(vector))
        return reply

    async def let_go(self, ended: Mapping[str, int], is_whole: bool = False) -> LetGo:
        """Forget what was taken over with pages, where the vector has reached it or nobody will.

        Not of buckets with orphans: those are returned, to be written again first. ended:
        incarnation -> where it ended. is_whole: every node has heard of every newest incarnation
        that is known here, so that what is not in the vector of an older one is nowhere.
        """
        if not await self._read("EXISTS", self.keys.beyond):
            return LetGo()
        _, _, _, more, *rows = await self._finish({}, "", ended, is_whole)
        texts = [_text(row) for row in rows]
        orphans = [_orphan(*texts[at : at + 5]) for at in range(0, len(texts), 5)]
        return LetGo(orphans, more == b"more")

    async def write_again(self, orphan: Orphan) -> bool:
        """Write what a tuple shows, unless it shows something else meanwhile.

        The write overwrites what the lost one had, everywhere. Raises Unavailable like any write.
        """
        tenant = orphan.again.relationship.tenant
        request = WriteRequest(tenant, [orphan.again], orphan.revision, is_again=True)
        try:
            await self.write(request)
        except Refused as refused:
            if refused.code != "revision_mismatch":
                raise
            return False
        return True

    async def taken(self) -> Vector:
        """origin -> the most that pages brought of it; only what the vector has not reached."""
        most: Vector = {}
        for text in await self._read("HVALS", self.keys.beyond):
            most = pointwise_max(most, _vector(text))
        return most

    # -- the primary --------------------------------------------------------------------------

    async def raise_epoch(self, home: str, epoch: Epoch | None, *, is_held: bool = False) -> Raised:
        """Keep the higher of this epoch and the stored one, and fence this node by it.

        home: the region of this node; "" where there is no primary. is_held: no writes for now,
        whoever is the primary. When this returns, no write that the fence keeps out comes in.
        """
        given = (0, "", "")
        if epoch is not None:
            given = (epoch.number, epoch.region, json.dumps(encode_vector(epoch.vector)))
        return await self._raise(home, given, is_held=is_held)

    async def promote(self, home: str, number: int) -> Raised:
        """The same with an epoch of this region, raised by this node with what it has now."""
        return await self._raise(home, (number, home, ""))

    async def _raise(
        self, home: str, given: tuple[int, str, str], *, is_held: bool = False
    ) -> Raised:
        args = (self._clock, home, *given, "1" if is_held else "")
        _, stored, reached = await self._ask(self._control, "raise", *args)
        return Raised(decode_epoch(json.loads(stored)) if stored else None, _vector(reached))

    async def report_fenced(self) -> Reported:
        """List some of what this node had written and the new primary had not got; repeatable."""
        outcome, transactions, changes, trimmed = await self._ask(
            self._reader(), "report", self._clock, self._now_us()
        )
        return Reported(outcome == b"more", int(transactions), int(changes), bool(trimmed))

    # -- what no bucket lists -------------------------------------------------------------------

    async def strays(self, cursor: str) -> tuple[str, list[str]]:
        """A step of a walk over the stored keys of tuples: `tenant/resource` of those not listed.

        Begin with "0" and go on with the cursor that is returned; at "0" the walk is over.
        """
        prefix = self.keys.stored("")
        pattern = "".join(f"\\{c}" if c in "*?[]\\" else c for c in prefix) + "*"
        following, found = await self._read("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
        members = [_text(key)[len(prefix) :] for key in found]
        asked = [[name, bucket_of_name(name)] for name in members if _is_member(name)]
        if not asked:
            return following.decode(), []
        reply = await self._ask(self._reader(), "strays", self._clock, json.dumps(asked))
        return following.decode(), [name.decode() for name in reply[1:]]

    async def tuples_of(self, member: str) -> list[tuple[str, str, str]]:
        """What is stored under `tenant/resource`: that, relation#subject, text of the state."""
        flat = await self._read("HGETALL", self.keys.stored(member))
        texts = [_text(text) for text in flat]
        return [(member, *row) for row in zip(texts[::2], texts[1::2], strict=True)]

    # -- collection -----------------------------------------------------------------------------

    async def rows(self, nodes: Sequence[str]) -> dict[str, Vector]:
        """The rows that were believed, of these nodes."""
        found: dict[str, Vector] = {}
        for node in nodes:
            flat = await self._read("HGETALL", self.keys.known(node))
            row = {flat[i].decode(): int(flat[i + 1]) for i in range(0, len(flat), 2)}
            if row:
                found[node] = row
        return found

    async def store_rows(self, rows: Mapping[str, Vector]) -> None:
        """Remember believed rows."""
        pairs = [text for n, row in rows.items() for text in (n, json.dumps(encode_vector(row)))]
        await self._ask(self._control, "known", self._clock, *pairs)

    async def unsettled(self) -> int:
        """How many tuples are not one live sibling."""
        return int(await self._read("ZCARD", self.keys.unsettled))

    async def oldest_unsettled(self) -> int | None:
        """The timestamp of the oldest tuple that is not one live sibling; None without any.

        One that has no sibling at all has no timestamp.
        """
        oldest = ("ZRANGEBYSCORE", self.keys.unsettled, "(0", "+inf", "LIMIT", 0, 1)
        names = await self._read(*oldest)
        # Two questions: it may be collected between them.
        score = await self._read("ZSCORE", self.keys.unsettled, names[0]) if names else None
        return None if score is None else int(float(score))

    async def collect(self, stable: Vector, ended: Mapping[str, int], after: int = 0) -> int | None:
        """Collect among some unsettled tuples from this one on; where to go on, None at the end.

        -1: not now, a state transfer has left tuples that know more than the vector says.
        """
        names = await self._read("ZRANGE", self.keys.unsettled, after, after + COLLECT_COUNT - 1)
        if not names:
            return None
        decoded = [name.decode() for name in names]
        outcome, count = await self._ask(
            self._control,
            "collect",
            self._clock,
            *(json.dumps(encode_vector(vector)) for vector in (stable, ended)),
            json.dumps([[name, bucket_of_name(name)] for name in decoded]),
        )
        if outcome == b"waits":
            return -1
        if len(names) < COLLECT_COUNT:
            return None
        return after + COLLECT_COUNT - int(count)

    # -- what waits for an operator -------------------------------------------------------------

    async def parked(self) -> dict[str, dict[str, str]]:
        """origin -> the transaction that waits: timestamp, previous, reason, since."""
        flat = await self._read("HGETALL", self.keys.parked)
        return {flat[i].decode(): json.loads(flat[i + 1]) for i in range(0, len(flat), 2)}

    def tries_of(self, origin: str) -> int:
        """How often since the start something of an origin was found to have to wait."""
        return self._tries[origin]

    async def drop(self, origin: str, timestamp: int) -> bool:
        """Apply a parked transaction as an empty one; False when this one is not parked."""
        outcome, clock, vector = await self._ask(
            self._merger, "drop", self._now_us(), self._clock, origin, timestamp
        )
        self._advance(int(clock), _vector(vector))
        return bool(outcome == b"dropped")

    # -- who belongs ----------------------------------------------------------------------------

    async def members(self, members: Sequence[str], removed: Removed) -> dict[str, str]:
        """Keep the nodes of the topology and those that others say were removed.

        Returns all removed nodes that are known: node -> its newest incarnation then.
        """
        nodes = json.dumps(sorted(members))
        args = (self._clock, nodes, json.dumps(dict(removed)))
        _, known, gone = await self._ask(self._control, "members", *args)
        if gone:
            log.warning(
                "nodes have left the topology; they come back only after `sidecar reset`",
                extra={"nodes": gone.decode().strip()},
            )
        found: dict[str, str] = json.loads(known)
        return found

    async def last_revision_of(self, origin: str) -> int | None:
        """Up to where the feed of an earlier incarnation of this node is part of that of today."""
        last = await self._read("HGET", self.keys.meta, f"last:{origin}")
        return None if last is None else int(last)


def _text(raw: bytes) -> str:
    """What was written behind our back need not be UTF-8."""
    return raw.decode("utf-8", "surrogateescape")


def _orphan(member: str, field: str, text: str, revision: str, lost: str) -> Orphan:
    tenant, _, resource = member.partition("/")
    relation, _, subject = field.partition("#")
    shown = states.winner(text)
    at, _, origin = lost.partition(" ")
    until = int(shown.expires_at) if shown.expires_at else None
    payload = (shown.condition or None, until) if shown.is_visible else ()
    one = Relationship(tenant, resource, relation, subject, *payload)
    operation = Operation.INSERT if shown.is_visible else Operation.DELETE
    return Orphan(Change(operation, one), int(revision), (int(at), origin))


def _is_member(name: str) -> bool:
    tenant, slash, resource = name.partition("/")
    return bool(tenant and slash and resource) and name.isprintable()


def _listed(nodes: Collection[str]) -> str:
    """As scripts look for one: with a blank before and after each; "" for none."""
    return f" {' '.join(sorted(nodes))} " if nodes else ""
