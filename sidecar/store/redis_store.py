"""The store of one node: every transition and every read of its data set in Redis.

Owns the connections, the group commit, and the mirror of the node's vector. Lua decides, Python
moves: nothing here judges a state. Whoever calls gets answers with a type, or one of our failures.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import tenacity

from sidecar.core.clock import RANDOM_BITS, incarnation
from sidecar.core.conflict import Rules
from sidecar.core.digest import mix
from sidecar.core.relationship import Relationship
from sidecar.core.vector import Vector, is_covered, pointwise_max
from sidecar.errors import Broken, Refused, Unavailable
from sidecar.metrics import Metrics
from sidecar.store import scripts, states
from sidecar.store.calls import (
    Filter,
    Merged,
    MergeOutcome,
    Page,
    Trimmed,
    WriteRequest,
    Written,
)
from sidecar.store.feed import FeedEntry, entries_of
from sidecar.store.group_commit import COMMITTERS, Committed, GroupCommit
from sidecar.store.keys import Keys
from sidecar.store.link import Link, ScriptError, pool_of, store_full
from sidecar.store.memory import Memory, memory_of

log = logging.getLogger(__name__)

STORE_FORMAT = 1
PARTITIONS = 1
READERS = 8
PING_S = 1.0


class RedisStore:
    """The data set of `node`. Use as an async context manager; it opens when Redis answers.

    now_us: the wall clock. random_bits: draws that many random bits.
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
        max_clock_skew_ms: int = 60_000,
        timeout_s: float = 10.0,
    ) -> None:
        self.node = node
        self.keys = Keys(prefix)
        self._rules, self._metrics = rules, metrics
        self._now_us, self._random_bits = now_us, random_bits
        self._skew_us = max_clock_skew_ms * 1000
        self._pool, self._timeout_s = pool_of(url, timeout_s), timeout_s
        self._merger, self._tailer, self._control = (Link(self._pool, timeout_s) for _ in range(3))
        self._writers = [Link(self._pool, timeout_s) for _ in range(COMMITTERS)]
        self._readers = [Link(self._pool, timeout_s) for _ in range(READERS)]
        single = (self._merger, self._tailer, self._control)
        self._links = (*single, *self._writers, *self._readers)
        self._next_reader = 0
        self._group_commit = GroupCommit(self._commit, metrics.wrote)
        self._opened, self._closed = asyncio.Event(), asyncio.Event()
        self._closed_because = Unavailable("store_unavailable", "Redis has not answered yet")
        self._covering: list[tuple[Vector, asyncio.Future[None]]] = []
        self._next_own: asyncio.Future[int] | None = None
        self._origin = ""
        self._clock = 0
        self._vector: Vector = {}
        self._floor: Vector = {}
        self._trimmed = self._trimming = 0
        self._memory = Memory(0, 0)
        self._stack = contextlib.AsyncExitStack()

    # -- life ---------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        group = await self._stack.enter_async_context(asyncio.TaskGroup())
        for loop in (self._keep_open(), *map(self._group_commit.run, self._writers)):
            self._stack.callback(group.create_task(loop).cancel)
        return self

    async def __aexit__(self, *failure: Any) -> None:
        self._set_closed(Unavailable("store_unavailable", "this node is shutting down"))
        self._group_commit.refuse(self._closed_because)
        try:
            await self._stack.__aexit__(*failure)
        finally:
            for link in self._links:
                await link.close()

    @property
    def is_open(self) -> bool:
        """Whether reads and writes are served."""
        return self._opened.is_set()

    @property
    def closed_because(self) -> str:
        """Why nothing is served, in words; "" when it is."""
        return "" if self.is_open else self._closed_because.message

    @property
    def origin(self) -> str:
        """The incarnation that accepts writes here; "" before the first opening."""
        return self._origin

    @property
    def revision(self) -> int:
        """The highest revision this process knows to be stored."""
        return self._clock

    @property
    def vector(self) -> Vector:
        """What this node has applied, as far as this process knows."""
        return self._vector

    @property
    def trimmed(self) -> int:
        """The highest revision that was trimmed off the feed; 0: it is whole."""
        return self._trimmed

    @property
    def floor(self) -> Vector:
        """Origin -> timestamp up to which the feed does not hold all of its transactions."""
        return self._floor

    @property
    def full_because(self) -> str:
        """Why writes of applications are refused for want of memory; "" when they are not."""
        used, limit, _ = self._memory
        if not self._memory.is_full:
            return ""
        return (
            f"Redis uses {used} of the {limit} bytes of its maxmemory, and the last "
            f"{self._memory.reserve} are kept for replication"
        )

    async def opened(self) -> None:
        """Wait until the store is open."""
        await self._opened.wait()

    async def _keep_open(self) -> None:
        """Open, and open again whenever a connection breaks; never gives up."""
        opening = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            wait=tenacity.wait_exponential_jitter(multiplier=0.05, max=2.0, jitter=0.1),
            before_sleep=self._note_closed,
        )
        while True:
            await opening(self._open)
            self._closed.clear()
            self._opened.set()
            log.info("store open", extra={"origin": self._origin, "revision": self._clock})
            await self._watch_over()

    async def _watch_over(self) -> None:
        """Returns when the store has closed; notices also while nobody asks for anything."""
        while self._opened.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PING_S):
                    await self._closed.wait()
                    return
            try:
                self._note_memory(memory_of(await self._control.call("INFO", "memory")))
            except Unavailable as unavailable:
                await self._broke(self._control, unavailable)

    def _note_memory(self, memory: Memory) -> None:
        was_full, self._memory = self._memory.is_full, memory
        if memory.is_full == was_full:
            return
        self._metrics.store_full(memory.is_full)
        if memory.is_full:
            log.warning("store full: writes are refused", extra={"reason": self.full_because})
        else:
            log.info("store has room again: writes are accepted")

    def _note_closed(self, attempt: tenacity.RetryCallState) -> None:
        reason = attempt.outcome.exception() if attempt.outcome else None
        if isinstance(reason, Unavailable):
            if attempt.attempt_number == 1 or self._closed_because.code != reason.code:
                log.warning("store closed", extra={"reason": reason.message})
            self._closed_because = reason

    async def _open(self) -> None:
        memory = memory_of(await self._control.call("INFO", "memory"))
        if memory.policy not in ("", "noeviction"):
            raise Refused(
                "wrong_eviction_policy",
                f"redis.url: this Redis may evict keys (maxmemory-policy {memory.policy}), which "
                "would lose tuples; set maxmemory-policy noeviction",
            )
        for name in scripts.names():
            await self._control.call("SCRIPT", "LOAD", scripts.script(name).text)
        sample = (2**40 - 2, 2**52 + 12_345, "node-1.abcdefgh0123")
        outcome, wrong = await self._control.run(
            scripts.script("check"), self.keys.meta, *sample, mix(*sample)
        )
        if outcome != b"ok":
            raise Refused("wrong_redis", f"redis.url: this Redis does not fit: {wrong.decode()}")
        now_us = self._now_us()
        name = incarnation(now_us // 1000, self._random_bits(RANDOM_BITS))
        try:
            outcome, origin, clock, vector, trimmed, floor = await self._control.run(
                scripts.script("open"),
                self.keys.meta,
                *(now_us, self._clock, self.node, name),
                *(STORE_FORMAT, PARTITIONS, self._rules.fingerprint),
            )
        except ScriptError as error:
            raise self._not_ours(error) from error
        if outcome == b"lost":
            raise self._lost()
        self._origin = origin.decode()
        self._advance(int(clock), _vector(vector))
        self._note_trimmed(int(trimmed), _vector(floor))
        self._note_memory(memory)

    def _not_ours(self, error: ScriptError) -> Refused:
        match error.code:
            case "WRONGNODE":
                return Refused(
                    "wrong_store",
                    f"redis.url: this data belongs to node {error.text}, not to {self.node}; "
                    "give each node a Redis or a redis.prefix of its own",
                )
            case "WRONGFORMAT":
                return Refused(
                    "wrong_store",
                    f"redis.url: this data has format and partition count {error.text}; this "
                    f"release reads {STORE_FORMAT} {PARTITIONS}",
                )
            case "WRONGRULES":
                return Refused(
                    "wrong_store",
                    f"replication.conflict_resolution: this data was merged under {error.text}, "
                    f"the configuration says {self._rules.fingerprint}; set it back, changing the "
                    "strategy of stored data is not built yet",
                )
            case _:
                raise Broken(str(error))

    def _lost(self) -> Unavailable:
        return Unavailable(
            "store_lost_writes",
            "Redis has lost writes that this node knows were stored (up to revision "
            f"{self._clock}); nothing is written until the data is back, or the sidecar is "
            "restarted and takes what is left for the truth",
            retry_after_s=5,
        )

    def _set_closed(self, reason: Unavailable) -> None:
        if self._opened.is_set():
            log.warning("store closed", extra={"reason": reason.message})
        self._closed_because = reason
        self._opened.clear()
        self._closed.set()

    async def _ask(self, link: Link, script: str, *args: object) -> Any:
        """Run a script; a broken connection closes the store until it has been opened anew."""
        if not self._opened.is_set():
            raise self._closed_because
        try:
            return await link.run(scripts.script(script), self.keys.meta, *args)
        except Unavailable as unavailable:
            await self._broke(link, unavailable)
            raise

    async def _broke(self, link: Link, unavailable: Unavailable) -> None:
        if link.is_connected:
            return  # the server answered, with a refusal
        self._set_closed(Unavailable("store_unavailable", unavailable.message))
        for other in self._links:
            if not other.is_busy:
                await other.close()

    def _advance(self, clock: int, vector: Vector, first_own: int = 0) -> None:
        """Take in what the store has reached; first_own: the first write of this node in it."""
        own = self._vector.get(self._origin, 0)
        self._clock = max(self._clock, clock)
        self._vector = pointwise_max(self._vector, vector)
        if self._next_own is not None and self._vector.get(self._origin, 0) > own:
            self._next_own.set_result(first_own)
            self._next_own = None
        if self._covering:
            for wanted, reached in self._covering:
                if not reached.done() and is_covered(wanted, self._vector):
                    reached.set_result(None)

    # -- writes -------------------------------------------------------------------------------

    async def write(self, request: WriteRequest) -> Written:
        """Commit one write, together with the others that wait at this moment.

        Raises Refused (409 revision_mismatch, 422 idempotency_key_reused) and Unavailable
        (store_unavailable, store_full: nothing was done; outcome_unknown: nobody knows).
        """
        if not self._opened.is_set():
            raise self._closed_because
        if self._memory.is_full:
            raise store_full(self.full_because)
        return await self._group_commit.write(request)

    async def _commit(self, link: Link, pairs: Sequence[str]) -> Committed:
        """One run of the write script."""
        reply = await self._ask(link, "write", self._now_us(), self._clock, *pairs)
        if reply[0] == b"lost":
            lost = self._lost()
            self._set_closed(lost)
            raise lost
        vector, previous, replies = _vector(reply[1]), int(reply[2]), reply[3:]
        outcomes = zip(replies[::4], replies[1::4], strict=True)
        first = next((int(revision) for outcome, revision in outcomes if outcome == b"written"), 0)
        # Two groups may be on their way, and the later one be answered first.
        is_next = previous == self._vector.get(self._origin, 0)
        self._advance(vector[self._origin], vector, first if is_next else 0)
        return Committed(self._origin, vector, replies)

    async def merge(self, batch: bytes) -> Merged:
        """Take in transactions of other origins, a line each, as they came from a peer.

        Raises Refused("bad_batch") when it is not a batch of a known format, and Unavailable. A
        batch may be merged any number of times.
        """
        args = (self._now_us(), self._clock, self._skew_us, self._rules.to_json(), batch)
        try:
            reply = await self._ask(self._merger, "merge", *args)
        except ScriptError as error:
            raise Refused("bad_batch", error.text) from error
        outcome, detail, clock, transactions, here, there, vector_json = reply
        merged = Merged(
            MergeOutcome(outcome.decode()),
            detail.decode(),
            int(transactions),
            _vector(vector_json),
        )
        if merged.outcome is MergeOutcome.LOST and not merged.vector:
            lost = self._lost()
            self._set_closed(lost)
            raise lost
        self._advance(int(clock), merged.vector)
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
        field = f"{relation}#{subject}".encode()
        value = await self._read("HGET", self.keys.tuples(tenant, resource), field)
        if value is None:
            return None
        return states.visible(tenant, resource, field, value, self._now_us())

    async def tenants(self) -> list[str]:
        """Every tenant that has had a tuple here, sorted."""
        return sorted(name.decode() for name in await self._read("SMEMBERS", self.keys.tenants))

    async def wait_covered(self, vector: Vector, timeout_s: float) -> bool:
        """Whether this node comes to cover `vector` in that time."""
        if is_covered(vector, self._vector):
            return True
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (vector, reached)
        self._covering.append(entry)
        try:
            async with asyncio.timeout(timeout_s):
                await reached
        except TimeoutError:
            return False
        finally:
            self._covering.remove(entry)
        return True

    def _reader(self) -> Link:
        self._next_reader = (self._next_reader + 1) % READERS
        return self._readers[self._next_reader]

    async def _read(self, *command: object) -> Any:
        if not self._opened.is_set():
            raise self._closed_because
        link = self._reader()
        try:
            return await link.call(*command)
        except Unavailable as unavailable:
            await self._broke(link, unavailable)
            raise Unavailable("store_unavailable", unavailable.message) from unavailable

    # -- the feed -----------------------------------------------------------------------------

    async def feed_after(self, revision: int, count: int) -> list[FeedEntry]:
        """At most `count` entries with a revision above this one, in order."""
        start = f"({revision}-0" if revision else "-"
        reply = await self._read("XRANGE", self.keys.feed, start, "+", "COUNT", count)
        return entries_of(reply)

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
        return entries_of(reply[0][1]) if reply else []

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
        outcome, gone, more, trimmed, floor = reply
        if outcome == b"lost":
            lost = self._lost()
            self._set_closed(lost)
            raise lost
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


def _vector(text: bytes) -> Vector:
    decoded: Mapping[str, str] = json.loads(text)
    return {origin: int(timestamp) for origin, timestamp in decoded.items()}
