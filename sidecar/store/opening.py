"""An open data set: its connections, its incarnation, and the mirror of its vector.

Owns when the store is open and which incarnation writes. Lua decides, Python moves. What is read
and written through it is the business of `redis_store`, what of it is on disk that of `durability`.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import tenacity

from sidecar.core.clock import RANDOM_BITS, incarnation
from sidecar.core.conflict import Rules
from sidecar.core.digest import mix
from sidecar.core.script import CustomScript
from sidecar.core.vector import Vector, is_covered, newest_origins, pointwise_max
from sidecar.core.wire import bucket_of_name, decode_body, encode_vector, hash_of
from sidecar.errors import Broken, Refused, Unavailable
from sidecar.metrics import Metrics
from sidecar.store import scripts
from sidecar.store.calls import Phase
from sidecar.store.durability import Durability
from sidecar.store.group_commit import COMMITTERS
from sidecar.store.keys import PARTITION, Keys
from sidecar.store.link import Link, ScriptError, info_of, pool_of
from sidecar.store.memory import Memory, memory_of
from sidecar.store.migrations import STORE_FORMAT, migrate
from sidecar.store.server import check_release
from sidecar.store.trial import try_script

log = logging.getLogger(__name__)

PARTITIONS = 1
RERANK_COUNT = 200
"""Tuples per call, so that Redis never blocks for long."""
READERS = 8
PING_S = 1.0


Check = Callable[[Link, Keys], Awaitable[None]]


class OpenStore:
    """The data set of `node`, opened when Redis answers, and again whenever it has gone.

    has_peers: whether other nodes may know more of this one than its own store does.
    now_us: the wall clock. random_bits: draws that many random bits. readers: connections for
    reads. check: what else must hold of the stored data before it opens.

    is_proxied: a database stands behind it, and is told what is merged here.
    """

    is_proxied: ClassVar[bool] = False

    def adapt(self, *, has_peers: bool) -> None:
        """The topology is another one: whether there are other nodes in it."""
        self._has_peers = has_peers

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
        has_peers: bool,
        timeout_s: float,
        partition: str = PARTITION,
        readers: int = READERS,
        check: Check | None = None,
        custom: CustomScript | None = None,
    ) -> None:
        self.node = node
        self.keys = Keys(prefix, partition)
        self._check = check
        self._rules, self._metrics = rules, metrics
        self._custom, self._is_tried = custom, custom is None
        self._now_us, self._random_bits = now_us, random_bits
        self._has_peers = has_peers
        self._pool, self._timeout_s = pool_of(url, timeout_s), timeout_s

        def link() -> Link:
            return Link(self._pool, timeout_s, self._check_server)

        # The control connection asks who the server is; the others only go on with the same one.
        self._control = Link(self._pool, timeout_s)
        self._merger, self._tailer, syncer = link(), link(), link()
        self._writers = [link() for _ in range(COMMITTERS)]
        self._readers = [link() for _ in range(readers)]
        single = (self._control, self._merger, self._tailer, syncer)
        self._links = (*single, *self._writers, *self._readers)
        self._next_reader = 0
        self._opened, self._closed = asyncio.Event(), asyncio.Event()
        self._closed_because = Unavailable("store_unavailable", "Redis has not answered yet")
        self._covering: dict[asyncio.Future[None], Vector] = {}
        self._next_own: asyncio.Future[int] | None = None
        self._is_ending = False
        self._phase = Phase.UNPROVEN
        self._run_id = ""
        self._origin = ""
        self._clock = 0
        self._vector: Vector = {}
        self._durability = Durability(
            syncer,
            self.keys.meta,
            stored=lambda: (self._origin, self._vector),
            is_open=self._opened.is_set,
            now_us=now_us,
            timeout_s=timeout_s,
        )
        self._floor: Vector = {}
        self._trimmed = self._trimming = 0
        self._memory = Memory(0, 0)
        self._progress = ""
        self._behind: Vector = {}
        self._born = ""
        self._joined: frozenset[str] | None = None
        self._refused: Unavailable | None = None
        self._refused_writes: Unavailable | None = None
        self._fence: Callable[[], Unavailable | None] = lambda: None

    # -- what is known of it --------------------------------------------------------------------

    @property
    def scope(self) -> str:
        """What names this data set among all of them: cursors of another one mean nothing here."""
        partition = self.keys.partition
        return self.node if partition == PARTITION else f"{self.node}/{partition}"

    @property
    def is_open(self) -> bool:
        """Whether reads and merges are served."""
        return self._opened.is_set()

    @property
    def closed_because(self) -> str:
        """Why nothing is served, in words; "" when it is."""
        return "" if self.is_open else self._closed_because.message

    @property
    def serves_not_because(self) -> str:
        """Why applications are not served here, in words; "" when they are."""
        refusal = self._refusal()
        return refusal.message if refusal else ""

    def _refusal(self) -> Unavailable | None:
        """What applications are told while their reads could be stale and their writes lost."""
        if not self.is_open:
            return self._closed_because
        if self._refused is not None:
            return self._refused
        if self._phase is Phase.UNPROVEN:
            return Unavailable(
                "starting", "this node asks its peers whether its Redis has lost anything"
            )
        if self._phase is Phase.BEHIND:
            return Unavailable(
                "catching_up",
                "this node has lost what its peers know it once had, and serves nothing until it "
                "has caught up with them (`sidecar accept-loss` if they are gone for good)",
                retry_after_s=5,
            )
        return None

    @property
    def takes_no_writes_because(self) -> str:
        """Why no writes are taken although reads are served, in words; "" when they are."""
        return self._refused_writes.message if self._refused_writes else ""

    def refuse(self, all_calls: Unavailable | None, writes: Unavailable | None) -> None:
        """What applications are answered from now on, because of what peers say; None: served."""
        for name, before, now in (
            ("all calls", self._refused, all_calls),
            ("writes", self._refused_writes, writes),
        ):
            if now is not None and (before is None or before.code != now.code):
                log.error("applications are refused", extra={"what": name, "reason": now.message})
            elif before is not None and now is None:
                log.info("applications are served again", extra={"what": name})
        self._refused, self._refused_writes = all_calls, writes

    def fence_by(self, fence: Callable[[], Unavailable | None]) -> None:
        """fence: asked before each write of an application; why it is not taken here, or None."""
        self._fence = fence

    def check_fence(self) -> None:
        """Raise Unavailable where writes belong to another region."""
        if (fenced := self._fence()) is not None:
            raise fenced

    @property
    def rules(self) -> Rules:
        """By which the winners are chosen here."""
        return self._rules

    @property
    def metrics(self) -> Metrics:
        """Where what happens in this store is counted."""
        return self._metrics

    @property
    def born(self) -> str:
        """The first incarnation of this data set."""
        return self._born

    @property
    def phase(self) -> Phase:
        """How far the incarnation may be trusted."""
        return self._phase

    @property
    def behind(self) -> Vector:
        """What this node once had, while it has not caught up."""
        return self._behind

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
    def durable(self) -> Vector:
        """What of it no crash can take away, as far as the server tells."""
        return self._durability.vector

    @property
    def floor(self) -> Vector:
        """origin -> timestamp up to which the feed does not hold all its transactions."""
        return self._floor

    @property
    def trimmed(self) -> int:
        """The highest revision that was trimmed off the feed; 0: it is whole."""
        return self._trimmed

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

    @property
    def progress(self) -> str:
        """How far an incoming state transfer has come; "" when there is none."""
        return self._progress

    @property
    def joined(self) -> frozenset[str] | None:
        """Nodes whose states are joined here since the rules changed; None: no change under way."""
        return self._joined

    async def wait_durable(self, vector: Vector) -> None:
        """Wait until no crash can take away what is in `vector`."""
        await self._durability.wait(vector)

    async def opened(self) -> None:
        """Wait until the store is open."""
        await self._opened.wait()

    # -- opening --------------------------------------------------------------------------------

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
            log.info(
                "store open",
                extra={"origin": self._origin, "revision": self._clock, "phase": self._phase.value},
            )
            await self._watch_over()
            if self._is_ending:
                return

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
        self._run_id = await info_of(self._control, "server", "run_id")
        check_release(await info_of(self._control, "server", "redis_version"))
        await self._try_custom()
        for name in scripts.names():
            await self._control.call("SCRIPT", "LOAD", self._script(name).text)
        sample = (2**40 - 2, 2**52 + 12_345, "node-1.abcdefgh0123")
        outcome, wrong = await self._control.run(
            self._script("check"), self.keys.meta, *sample, mix(*sample)
        )
        if outcome != b"ok":
            raise Refused("wrong_redis", f"redis.url: this Redis does not fit: {wrong.decode()}")
        await self._durability.ask(self._control)
        self._note_memory(memory)
        await migrate(self._control, self.keys, self.node, self._script)
        # A process that never heard that nothing was missing knows only what it found at its start.
        remembers = self._clock > 0 and self._phase is not Phase.UNPROVEN
        reply = await self._run_open(is_proven=remembers or not self._has_peers)
        if self._check is not None:
            await self._check(self._control, self.keys)
        if reply[0] == b"rules":
            await self._change_rules(reply[1].decode())
            reply = await self._run_open(is_proven=remembers or not self._has_peers)
        if reply[0] == b"lost":
            await self._begin_after_loss()
            return
        self._take_opened(reply)
        if self._phase in (Phase.EXPOSED, Phase.SERVING):
            await self._write_again()

    def _script(self, name: str) -> scripts.Script:
        return scripts.script(name, self._custom)

    async def _try_custom(self) -> None:
        """Ask the custom script, once, what it says of generated siblings. Raises Refused."""
        if self._custom is not None and not self._is_tried:
            count = await try_script(self._control, self.keys.meta, self._custom, self._rules)
            self._is_tried = True
            log.info("custom script tried", extra={"file": self._custom.file, "sets": count})

    async def _run_open(self, is_proven: bool) -> list[bytes]:
        try:
            reply: list[bytes] = await self._control.run(
                self._script("open"),
                self.keys.meta,
                *(self._now_us(), self._clock, self.node, self._new_incarnation()),
                *(STORE_FORMAT, PARTITIONS, self._rules.fingerprint, self._run_id),
                "1" if is_proven else "",
                "1" if self.is_proxied else "",
            )
        except ScriptError as error:
            raise self._not_ours(error) from error
        return reply

    def _take_opened(self, reply: Sequence[bytes]) -> None:
        outcome, origin, clock, vector, exposed, behind, progress, trimmed, floor, *rest = reply
        born, joined = rest
        self._born = born.decode()
        self._joined = frozenset(json.loads(joined)) if joined else None
        self._behind = _vector(behind) if behind else {}
        self._progress = progress.decode()
        self._floor, self._trimmed = _vector(floor), int(trimmed)
        self._trimming = self._trimmed
        if outcome == b"unproven":
            self._phase = Phase.UNPROVEN
        elif behind:
            self._phase = Phase.BEHIND
        else:
            self._phase = Phase.EXPOSED if exposed and self._has_peers else Phase.SERVING
        if origin.decode() != self._origin:
            self._vector = {}
            self._durability.forget()
        self._origin = origin.decode()
        self._advance(int(clock), _vector(vector))
        self._durability.begin()

    async def _change_rules(self, before: str) -> None:
        """Choose winners anew, before anything is served. A crash in between begins it anew."""
        changed, after = 0, 0
        while names := await self._control.call(
            "ZRANGE", self.keys.unsettled, after, after + RERANK_COUNT - 1
        ):
            changed += await self._rerank([name.decode() for name in names], "")
            after += len(names)
        changed += await self._rerank([], self._rules.fingerprint)
        log.warning(
            "the conflict rules have changed: winners were chosen anew",
            extra={"before": before, "now": self._rules.fingerprint, "changed": changed},
        )

    async def _rerank(self, names: Sequence[str], fingerprint: str) -> int:
        """How many of these tuples show something else now."""
        rows = [[n, bucket_of_name(n), hash_of(*n.split("#", 1))] for n in names]
        outcome, changed, *failed = await self._control.run(
            self._script("rerank"),
            self.keys.meta,
            *(self._now_us(), self._rules.to_json(), json.dumps(rows), fingerprint),
        )
        if outcome == b"undecided":
            name, reason = (part.decode() for part in failed)
            raise Refused(
                "custom_script_failed",
                f"replication.custom_script: no winner can be chosen for {name}: {reason}; set the "
                "strategy back or mend the script",
            )
        return int(changed)

    async def end_change(self) -> None:
        """The states of all nodes have been joined since the rules changed."""
        (outcome,) = await self._control.run(
            self._script("phase"), self.keys.meta, self._clock, "joined"
        )
        if outcome == b"lost":
            raise self._lost()
        self._joined = None
        log.info("the change of the conflict rules is complete on this node")

    def _new_incarnation(self, known: Collection[str] = ()) -> str:
        now_ms = self._now_us() // 1000
        name = incarnation(now_ms, self._random_bits(RANDOM_BITS))
        newest = newest_origins([*known, *self._vector]).get(self.node, "")
        present = newest.partition(".")[2][:8]
        if name[:8] <= present:
            # The wall clock stepped back: an incarnation is greater than those before it.
            name = incarnation(int(present, 36) + 1, self._random_bits(RANDOM_BITS))
        return name

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
            case _:
                raise Broken(str(error))

    def _lost(self) -> Unavailable:
        return Unavailable(
            "store_lost_writes",
            "Redis has lost writes that this node knows were stored (up to revision "
            f"{self._clock}); it goes on in a new incarnation",
        )

    # -- incarnations ---------------------------------------------------------------------------

    async def prove(self) -> None:
        """Nothing is missing, say those who know: go on in the same incarnation."""
        if self._phase is Phase.UNPROVEN:
            reply = await self._run_open(is_proven=True)
            if reply[0] != b"opened":
                raise Broken(f"lua/open.lua answers {reply[0]!r} to a proof")
            self._take_opened(reply)
            if self.phase is Phase.SERVING:
                await self._write_again()
            log.info("nothing is missing after the restart of Redis, say all peers")

    async def begin(self, behind: Vector | None = None, known: Collection[str] = ()) -> None:
        """Begin a new incarnation, greater than all that are known.

        behind: what a peer remembers that this node once had; it takes no writes until it has
        caught up, and what an exposed incarnation has written is set aside. None: nobody has
        told yet.
        """
        before = self._origin
        outcome, origin, clock, vector, aside, born = await self._control.run(
            self._script("begin"),
            self.keys.meta,
            *(self._now_us(), self.node, self._new_incarnation([*known, *(behind or {})])),
            *(STORE_FORMAT, PARTITIONS, self._rules.fingerprint, self._run_id),
            "1" if behind is None and self._has_peers else "",
            json.dumps(encode_vector(behind)) if behind else "",
        )
        if outcome != b"begun":
            raise Broken(f"lua/begin.lua answers {outcome!r}")
        self._origin, self._vector, self._clock = origin.decode(), _vector(vector), int(clock)
        self._born = born.decode()
        self._durability.cut()
        self._behind = behind or {}
        is_exposed = behind is None and self._has_peers
        self._phase = Phase.BEHIND if behind else Phase.EXPOSED if is_exposed else Phase.SERVING
        self._advance(self._clock, self._vector)
        log.warning(
            "new incarnation",
            extra={
                "origin": self._origin,
                "before": before,
                "phase": self._phase.value,
                "set_aside": int(aside),
            },
        )
        if self._phase is Phase.SERVING:
            await self._write_again()

    async def _begin_after_loss(self) -> None:
        """Redis has less than this process knows. What was durable must come back first."""
        flat = await self._control.call("HGETALL", self.keys.vector)
        stored = {flat[i].decode(): int(flat[i + 1]) for i in range(0, len(flat), 2)}
        claimed = dict(self.durable)
        log.error(
            "Redis has lost writes that were stored",
            extra={"origin": self._origin, "up_to": claimed.get(self._origin, 0)},
        )
        if not is_covered(claimed, stored):
            await self.begin(claimed)
        elif self._phase in (Phase.UNPROVEN, Phase.EXPOSED):
            # Nobody has told yet what this node once had, unless it was before a restart.
            await self.begin(self._behind or None)
        else:
            await self.begin(self._behind)
        self._take_opened(await self._run_open(is_proven=True))

    async def end_phase(self) -> None:
        """A peer has nothing that this node lacks, it has caught up, or its loss is accepted."""
        if self._phase not in (Phase.EXPOSED, Phase.BEHIND):
            return
        (outcome,) = await self._control.run(
            self._script("phase"), self.keys.meta, self._clock, self._phase.value
        )
        if outcome == b"lost":
            raise self._lost()
        # Before anybody else writes: it is older than what comes now.
        count = await self._write_again()
        extra = {"origin": self._origin, "was": self._phase.value, "written_again": count}
        log.info("node may write", extra=extra)
        self._phase, self._behind = Phase.SERVING, {}

    async def end_exposure(self) -> None:
        """A peer has told what this node once had: what it wrote until now stays written."""
        (outcome,) = await self._control.run(
            self._script("phase"), self.keys.meta, self._clock, Phase.EXPOSED.value
        )
        if outcome == b"lost":
            raise self._lost()

    async def _write_again(self) -> int:
        """Write what was set aside, in its order, as writes of now. How many there were."""
        count = 0
        while texts := await self._control.call("LRANGE", self.keys.aside, 0, 0):
            text = texts[0].decode()
            named = json.loads(text)
            # Not a tenant's name: no application has such a key.
            key = f".aside/{named['origin']}/{named['timestamp']}"
            reply = await self._control.run(
                self._script("write"),
                self.keys.meta,
                *(self._now_us(), self._clock),
                *(decode_body(text), json.dumps({"key": key, "hash": "aside", "again": "1"})),
            )
            if reply[0] != b"stored":
                raise self._lost()
            vector = _vector(reply[1])
            self._advance(vector[self._origin], vector)
            await self._control.call("LPOP", self.keys.aside)
            count += 1
        return count

    # -- connections ----------------------------------------------------------------------------

    async def _check_server(self, link: Link) -> None:
        """Before the first command of a connection: another server may have lost writes."""
        info = (await link.first("INFO", "server")).decode()
        if self._run_id and f"run_id:{self._run_id}" not in info:
            raise Unavailable("store_unavailable", "Redis was restarted")

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
            reply = await link.run(self._script(script), self.keys.meta, *args)
        except Unavailable as unavailable:
            await self._broke(link, unavailable)
            raise
        if reply[0] == b"lost" and script != "merge":
            lost = self._lost()
            self._set_closed(lost)
            raise lost
        return reply

    async def _broke(self, link: Link, unavailable: Unavailable) -> None:
        if link.is_connected:
            return  # the server answered, with a refusal
        self._set_closed(Unavailable("store_unavailable", unavailable.message))
        for other in self._links:
            if not other.is_busy:
                await other.close()

    def _reader(self) -> Link:
        self._next_reader = (self._next_reader + 1) % len(self._readers)
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

    def _advance(self, clock: int, vector: Vector, first_own: int = 0) -> None:
        """Take in what the store has reached; first_own: the first write of this node in it."""
        own = self._vector.get(self._origin, 0)
        self._clock = max(self._clock, clock)
        self._vector = pointwise_max(self._vector, vector)
        self._durability.note_stored()
        if self._next_own is not None and self._vector.get(self._origin, 0) > own:
            self._next_own.set_result(first_own)
            self._next_own = None
        if self._covering:
            for reached, wanted in self._covering.items():
                if not reached.done() and is_covered(wanted, self._vector):
                    reached.set_result(None)


def _vector(text: bytes) -> Vector:
    decoded: Mapping[str, str] = json.loads(text)
    return {origin: int(timestamp) for origin, timestamp in decoded.items()}
