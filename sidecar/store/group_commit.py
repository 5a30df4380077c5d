"""Group commit: writes that wait at the same moment go to Redis together.

Owns the queue of writes and what becomes of each. Each is judged by the script against the state
after the ones before it, and one that fails fails alone. Source of the idea: the group commit of
databases' logs (DeWitt et al., "Implementation Techniques for Main Memory Database Systems", 1984).
"""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sidecar.core.relationship import Operation
from sidecar.core.vector import Vector
from sidecar.core.wire import encode_body
from sidecar.errors import Broken, Refused, Unavailable
from sidecar.store.calls import WriteRequest, Written
from sidecar.store.link import Link, ScriptError

# More waiting writes than this: Redis is far slower than the applications; shed, with 503.
MAX_WAITING_WRITES = 4096
# One call of the write script takes at most this much, so that Redis never blocks for long; one
# write is always taken, however large.
MAX_GROUP_WRITES = 256
MAX_GROUP_BYTES = 1024 * 1024
# So many runs of the script are on their way at once, that Redis works while we read and answer. A
# further one goes only with as many writes as this: small groups would cost Redis more than the
# waiting costs us.
COMMITTERS = 2
MIN_FURTHER_WRITES = 16


class Committed(NamedTuple):
    """origin, vector: of the node, after it. replies: four texts per write, as the script says."""

    origin: str
    vector: Vector
    replies: list[bytes]


Commit = Callable[[Link, Sequence[str]], Awaitable[Committed]]
"""Runs the write script over a link, with a body and a guard per write."""


@dataclass(slots=True)
class _Waiting:
    """A write in the queue of the group commit."""

    body: str
    guard: str
    written: int
    answer: asyncio.Future[Written]


class GroupCommit:
    """The writes of one node on their way to `commit`; `run` takes them there."""

    def __init__(self, commit: Commit, wrote: Callable[[], None]) -> None:
        self._commit, self._wrote = commit, wrote
        self._queue: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._in_flight = 0

    async def write(self, request: WriteRequest) -> Written:
        """What became of one write; raises what `RedisStore.write` says."""
        if len(self._queue) >= MAX_WAITING_WRITES:
            raise Unavailable("overloaded", f"{MAX_WAITING_WRITES} writes are waiting for Redis")
        answer: asyncio.Future[Written] = asyncio.get_running_loop().create_future()
        body = encode_body(request.tenant, request.changes)
        self._queue.append(_Waiting(body, _guard(request), _inserts(request), answer))
        if self._may_go():
            self._changed.set()
        return await answer

    async def run(self, link: Link) -> None:
        """Commit what waits over this link, for ever; COMMITTERS of these run side by side."""
        while True:
            while not self._may_go():
                self._changed.clear()
                await self._changed.wait()
            group = self._take_group()
            self._in_flight += 1
            try:
                await self._commit_group(link, group)
            finally:
                # Only whoever this loop was cancelled under still waits.
                _fail(group, Unavailable("outcome_unknown", "this node is shutting down"))
                self._in_flight -= 1
                self._changed.set()

    def _may_go(self) -> bool:
        return len(self._queue) >= (MIN_FURTHER_WRITES if self._in_flight else 1)

    def refuse(self, reason: Unavailable) -> None:
        """Nobody will commit what still waits."""
        _fail(list(self._queue), reason)
        self._queue.clear()

    def _take_group(self) -> list[_Waiting]:
        group = [self._queue.popleft()]
        size = len(group[0].body)
        while self._queue and len(group) < MAX_GROUP_WRITES:
            size += len(self._queue[0].body)
            if size > MAX_GROUP_BYTES:
                break
            group.append(self._queue.popleft())
        return group

    async def _commit_group(self, link: Link, group: list[_Waiting]) -> None:
        pairs = [text for waiting in group for text in (waiting.body, waiting.guard)]
        try:
            committed = await self._commit(link, pairs)
        except ScriptError as error:
            # Nothing was written. The one at fault must not take the others along.
            if len(group) == 1:
                _fail(group, Broken(f"lua/write.lua refuses a write that was checked: {error}"))
                return
            for waiting in group:
                await self._commit_group(link, [waiting])
            return
        except (Unavailable, Broken) as failure:
            _fail(group, failure)
            return
        for index, waiting in enumerate(group):
            if not waiting.answer.done():
                reply = committed.replies[4 * index : 4 * index + 4]
                self._answer(waiting, committed.origin, committed.vector, *reply)

    def _answer(self, waiting: _Waiting, origin: str, vector: Vector, *reply: bytes) -> None:
        outcome, revision, deleted, text = reply
        match outcome:
            case b"written":
                at = {**vector, origin: int(revision)}
                self._wrote()
                written = Written(int(revision), waiting.written, int(deleted), at)
                waiting.answer.set_result(written)
            case b"replayed":
                first = json.loads(text)
                at = {name: int(t) for name, t in first["vector"].items()}
                written = Written(int(revision), first["written"], int(deleted), at, replayed=True)
                waiting.answer.set_result(written)
            case b"mismatch":
                refused = Refused(
                    "revision_mismatch",
                    f"{text.decode()} changed on this node at revision {revision.decode()}, after "
                    "expected_revision; read it again",
                    status=409,
                )
                waiting.answer.set_exception(refused)
            case b"reused":
                refused = Refused(
                    "idempotency_key_reused",
                    "this Idempotency-Key was used for another request in the last ten minutes; "
                    "use a new key for a new request",
                    status=422,
                )
                waiting.answer.set_exception(refused)
            case b"absent":
                lost = Unavailable(
                    "outcome_unknown",
                    "Redis has lost what it knew of this write, which the database has done; "
                    "`sidecar adopt` finds such writes",
                )
                waiting.answer.set_exception(lost)
            case b"fenced":
                waiting.answer.set_exception(not_primary(text.decode()))
            case _:
                waiting.answer.set_exception(Broken(f"lua/write.lua answers {outcome!r}"))


def not_primary(region: str) -> Unavailable:
    """The failure of a write that the fence keeps out; region: the primary, "" while it moves."""
    primary = f"{region} is the primary region now" if region else "it moves now"
    return Unavailable(
        "not_primary",
        f"the primary moved while this write was on its way: {primary}; nothing was "
        "written, send it again",
    )


def _fail(group: list[_Waiting], failure: Exception) -> None:
    for waiting in group:
        if not waiting.answer.done():
            waiting.answer.set_exception(failure)


def _guard(request: WriteRequest) -> str:
    guard = {}
    if request.expected_revision is not None:
        guard["expected"] = str(request.expected_revision)
    if request.idempotency_key is not None:
        guard["key"] = f"{request.tenant}/{request.idempotency_key}"
        guard["hash"] = request.request_hash
    if request.is_again:
        guard["again"] = "1"
    if request.intent:
        guard["intent"] = request.intent
    if request.is_late:
        guard["late"] = "1"
    return json.dumps(guard) if guard else ""


def _inserts(request: WriteRequest) -> int:
    return sum(change.operation is Operation.INSERT for change in request.changes)
