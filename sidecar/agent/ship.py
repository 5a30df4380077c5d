"""Shipping: for each target a session that carries this node's feed there, for ever.

Owns the retries and what is known of each target. What to send is decided in `core/sender.py`; how
it travels in `peer/client.py`. A dead target never slows a local write: it only leaves its part of
the feed where it is.
"""

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import tenacity

from sidecar.agent.concern import Concerns
from sidecar.agent.peers import Peers
from sidecar.agent.tail import Tail
from sidecar.core.relationship import BUCKETS
from sidecar.core.sender import (
    Acknowledged,
    Action,
    Close,
    Established,
    Limits,
    Parked,
    ReadStates,
    Send,
    Sender,
    Transferred,
)
from sidecar.core.session import Party
from sidecar.core.vector import Vector, pointwise_max
from sidecar.core.wire import encode_bucket
from sidecar.endings import end
from sidecar.errors import Refused, SidecarError, Unavailable, ungrouped
from sidecar.metrics import Metrics
from sidecar.peer.client import Dialler, Link
from sidecar.store.feed import FeedEntry
from sidecar.store.redis_store import RedisStore

log = logging.getLogger(__name__)

TICK_S = 0.25
CURSOR_S = 1.0
PAUSE_S = 1.0
"""So soon a target whose conflict rules differ is asked again."""
UNKNOWN_PEER = "peer_unauthenticated"
"""Somebody is wrong about who is who: each other reason is news."""

UNLIKE_RULES = "rules_mismatch"
CURSORS = "(cursors)"
"""The loop that keeps cursors, among those of the targets: no node can be called so."""
Loop = Callable[[], Coroutine[None, None, None]]
PAGE_BUCKETS = 256
PAGE_TUPLES = 2_000


@dataclass(frozen=True, slots=True)
class Retries:
    """max_retries: failures in a row after which a target counts as unreachable.

    delay_s doubles with each of them, with jitter, up to longest_s; it never ends.
    """

    max_retries: int
    delay_s: float
    longest_s: float


class Target:
    """What this node knows of one node it ships to.

    carried: the nodes whose transactions go there over this node. acknowledged: timestamp of this
    node's origin up to which the target has everything. vector: what it has, as far as it has said.
    heard_us: when it said something last, by a clock that only goes on; None: not yet.
    buckets_sent: how far a state transfer there has come, None when there is none. is_paused: an
    operator has stopped the replication to it. must_transfer: it is to get a state transfer,
    whether it lacks something or not.
    """

    def __init__(self, node: str, endpoint: str, carried: frozenset[str] | None = None) -> None:
        self.node, self.endpoint, self.carried = node, endpoint, carried
        self.heard_us: int | None = None
        self.buckets_sent: int | None = None
        self.is_connected = False
        self.is_unreachable = False
        self.is_paused = self.must_transfer = False
        self.last_error = self.last_code = ""
        self.acknowledged = 0
        self.vector: Vector = {}
        self.cursor = self.stored_cursor = 0
        self.oldest_pending: int | None = None
        self.sender: Sender | None = None
        # Set when there is reason to try before the time has come.
        self.called = asyncio.Event()


class Shipping:
    """The sessions of this node, one per target."""

    def __init__(
        self,
        store: RedisStore,
        tail: Tail,
        dialler: Dialler,
        peers: Peers,
        targets: Iterable[Target],
        *,
        concerns: Concerns,
        me: Party,
        limits: Limits,
        retries: Retries,
        metrics: Metrics,
        now_us: Callable[[], int],
        session_ended: Callable[[str], None] = lambda node: None,
    ) -> None:
        """session_ended: told of a target whose session stood, and does no longer.

        The list `targets` stays the same one: whoever holds it sees what becomes of them.
        """
        self._store, self._tail, self._dialler, self._peers = store, tail, dialler, peers
        self._concerns = concerns
        self._me, self._limits, self._retries = me, limits, retries
        self._metrics, self._now_us = metrics, now_us
        self._session_ended = session_ended
        self.targets = list(targets)
        # Those that come later are paused as well.
        self._all_paused = self._is_halted = False
        self._group: asyncio.TaskGroup | None = None
        self._context = contextvars.copy_context()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.window = limits.window
        metrics.has_targets({t.node: self._lag_of(t) for t in self.targets})

    async def run(self) -> None:
        """Ship to every target for ever."""
        await self._store.opened()
        # What sessions log is about this partition, and never about the request that began them.
        self._context = contextvars.copy_context()
        try:
            async with asyncio.TaskGroup() as self._group:
                self._begin()
                await asyncio.Event().wait()  # also without a target: one may come
        finally:
            self._group = None

    def _begin(self) -> None:
        """Start what is to run and does not."""
        if self._group is None or self._is_halted:
            return
        loops: dict[str, Loop] = {CURSORS: self._remember}
        loops |= {t.node: partial(self._ship, t) for t in self.targets if not t.is_paused}
        for name, loop in loops.items():
            if name not in self._tasks or self._tasks[name].done():
                self._tasks[name] = self._group.create_task(
                    loop(), name=f"ship to {name}", context=self._context.copy()
                )

    async def _end(self, names: Iterable[str]) -> None:
        # They stay listed until they have ended, or another session would begin beside the old one.
        ending = {name: self._tasks[name] for name in names if name in self._tasks}
        await end(ending.values())
        for name, task in ending.items():
            if self._tasks.get(name) is task:
                del self._tasks[name]

    # -- what an operator changes -----------------------------------------------------------------

    async def halt(self) -> None:
        """End all sessions; none begins before `adapt`."""
        self._is_halted = True
        await self._end(self._tasks)

    async def adapt(self, targets: Iterable[Target]) -> None:
        """Ship to these from here on. What is known of one that stays where it was is kept."""
        await self.halt()
        before = {target.node: target for target in self.targets}
        self.targets[:] = [self._kept(before.get(target.node), target) for target in targets]
        self._metrics.has_targets({t.node: self._lag_of(t) for t in self.targets})
        self._is_halted = False
        self._begin()

    def _kept(self, before: Target | None, target: Target) -> Target:
        if before is not None and before.endpoint == target.endpoint:
            before.carried = target.carried
            return before
        target.is_paused = self._all_paused if before is None else before.is_paused
        return target

    async def pause(self, node: str | None = None) -> list[str]:
        """Stop shipping to a target, to all that there are and come when None.

        The feed keeps what waits. Returns those that are paused now and were not.
        """
        self._all_paused = self._all_paused or node is None
        found = [t for t in self._meant(node) if not t.is_paused]
        for target in found:
            target.is_paused = True
        await self._end(target.node for target in found)
        self._begin()  # those that were resumed meanwhile
        for target in found:
            # Nobody tries to reach it any more.
            target.is_unreachable = False
            self._metrics.unreachable(target.node, False)
        return [target.node for target in found]

    def resume(self, node: str | None = None) -> list[str]:
        """Ship again. Returns those that are no longer paused and were."""
        self._all_paused = False
        found = [t for t in self._meant(node) if t.is_paused]
        for target in found:
            target.is_paused = False
        self._begin()
        return [target.node for target in found]

    def _meant(self, node: str | None) -> list[Target]:
        return [target for target in self.targets if node in (None, target.node)]

    async def resync(self, node: str) -> None:
        """Give a target a state transfer now, or as soon as there is a session with it."""
        for target in self._meant(node):
            target.must_transfer = True
            await self._end([node])
        self._begin()

    def call(self, node: str) -> None:
        """A node serves again: try to reach it now, not when its turn comes."""
        for target in self._meant(node):
            target.called.set()

    # -- all of them ------------------------------------------------------------------------------

    def held(self) -> int | None:
        """The revision from which state transfers that are under way need the feed."""
        senders = (target.sender for target in self.targets)
        held = (sender.keeps_feed_after for sender in senders if sender is not None)
        return min((revision for revision in held if revision is not None), default=None)

    async def hand_over(self, timeout_s: float) -> None:
        """Wait until every connected target has what was written here, for so long at most."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            own = self._store.vector.get(self._store.origin, 0)
            if all(t.acknowledged >= own for t in self.targets if t.is_connected):
                return
            await asyncio.sleep(0.02)

    # -- one target ---------------------------------------------------------------------------

    async def _ship(self, target: Target) -> None:
        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((Unavailable, Refused)),
            wait=tenacity.wait_exponential_jitter(
                multiplier=self._retries.delay_s,
                max=self._retries.longest_s,
                jitter=self._retries.delay_s,
            ),
            sleep=partial(_wait, target.called),
            before_sleep=lambda attempt: self._note_failure(target, attempt),
        )
        while True:
            # Returns when a session that had brought something ended: begin again without delay.
            await attempts(self._session, target)

    async def _session(self, target: Target) -> None:
        target.called.clear()
        self._metrics.attempted(target.node)
        await self._store.opened()
        await self._peers.prepare()
        sender = Sender(
            self._me,
            self._store.origin,
            target.node,
            self._limits,
            target.carried,
            must_transfer=target.must_transfer,
        )
        try:
            async with self._dialler.dial(target.node, target.endpoint) as link:
                await self._converse(target, sender, link)
        except (Unavailable, Refused) as failure:
            if failure.code == UNLIKE_RULES:
                self._pause(target, failure)
                await asyncio.sleep(PAUSE_S)
                return
            if not sender.has_shipped:
                raise
            self._failed(target, failure)
        finally:
            self._set_connected(target, None)

    async def _converse(self, target: Target, sender: Sender, link: Link) -> None:
        talk = _Conversation(self, target, sender, link, self._store.origin)
        await talk.perform(sender.hello(self._peers.facts(to=target.node), _monotonic_us()))
        with ungrouped():
            async with asyncio.TaskGroup() as group:
                for loop in (talk.listen, talk.pump, talk.tick, talk.transfer):
                    group.create_task(loop())

    async def position_of(self, sender: Sender) -> int:
        """Where to read on. Waits until there is something, if that can be told without reading."""
        if sender.ships_only_own:
            # What this node has merged is not its to ship: do not even read it.
            sender.skip_to(await self._store.own_after(sender.sent))
        return sender.position

    async def entries_after(self, revision: int) -> list[FeedEntry]:
        """What follows this revision in the feed; waits until there is something."""
        return await self._tail.after(revision)

    async def heard(
        self, target: Target, sender: Sender, head: dict[str, object], origin: str
    ) -> list[Action]:
        """A frame of the target has come to a session of this incarnation."""
        target.heard_us = _monotonic_us()
        if head["type"] == "welcome" and head.get("node") == target.node:
            await self._peers.greeted(target.node, head)
        elif head["type"] == "heartbeat":
            await self._peers.heard(target.node, head)
        self._check(origin)
        actions = sender.on_frame(head, self._peers.here, _monotonic_us())
        self._concerns.heard(target.node, sender.target_vector)
        return actions

    def entries(
        self, sender: Sender, after: int, entries: list[FeedEntry], origin: str
    ) -> list[Action]:
        """What the session of this incarnation sends of these entries."""
        self._check(origin)
        return sender.on_entries(after, entries, self._peers.here, _monotonic_us())

    def beat(self, sender: Sender, origin: str) -> list[Action]:
        """What the session does now that time has passed."""
        self._check(origin)
        return sender.on_tick(self._peers.here, self._peers.facts(), _monotonic_us())

    def _check(self, origin: str) -> None:
        if self._store.origin != origin:
            raise Unavailable("new_incarnation", "this node has begun a new incarnation")

    async def page(self, sender: Sender, asked: ReadStates) -> list[Action]:
        """The buckets that were asked for, once no crash here can take away what they say."""
        if self._peers.is_in_doubt:
            raise Unavailable("in_doubt", "this node differs from most of the others")
        states = await self._store.states(asked.first, PAGE_BUCKETS, PAGE_TUPLES)
        await self._store.wait_durable(states.vector)
        lines = [
            encode_bucket(one.number, pointwise_max(states.vector, one.beyond), one.tuples)
            for one in states.buckets
        ]
        return sender.on_states(asked, states.vector, states.following, lines)

    def note(self, target: Target, action: Action, sender: Sender) -> None:
        """Count what a session does."""
        match action:
            case Send(_, changes) if changes is not None:
                self._metrics.sent(target.node, changes)
            case Acknowledged(changes, duration_us):
                self._metrics.acknowledged(target.node, changes, duration_us / 1e6)
            case Established():
                self._set_connected(target, sender)
            case Transferred(buckets):
                if target.buckets_sent is None:
                    log.info("state transfer to a target", extra={"target": target.node})
                target.buckets_sent = buckets if buckets < BUCKETS else None
                self._metrics.transferring(target.node, buckets / BUCKETS)
                if target.buckets_sent is None:
                    target.must_transfer = False
                    log.info("state transfer complete", extra={"target": target.node})
            case Parked(origin, reason):
                log.warning(
                    "transactions wait at a target",
                    extra={"target": target.node, "origin": origin, "reason": reason},
                )
            case _:
                pass

    # -- what is known of it ------------------------------------------------------------------

    def _set_connected(self, target: Target, sender: Sender | None) -> None:
        if sender is not None:
            log.info("replication session to a target", extra={"target": target.node})
            target.is_unreachable = False
            target.last_error = target.last_code = ""
            self._metrics.unreachable(target.node, False)
            self._peers.is_removed_by(target.node, False)
        elif target.is_connected:
            self._session_ended(target.node)
        target.sender = sender
        target.buckets_sent = None
        target.is_connected = sender is not None
        self._metrics.connected(target.node, target.is_connected)

    def _pause(self, target: Target, failure: SidecarError) -> None:
        """The rules are being changed, node by node: nothing has failed, and nothing is lost."""
        if failure.message != target.last_error:
            log.warning(
                "replication to a target pauses",
                extra={"target": target.node, "reason": failure.message},
            )
        target.last_error, target.last_code = failure.message, failure.code
        if target.is_unreachable:
            target.is_unreachable = False
            self._metrics.unreachable(target.node, False)

    def _failed(self, target: Target, failure: SidecarError) -> None:
        self._metrics.failed(target.node)
        if isinstance(failure, Unavailable) and failure.code == "node_removed":
            # The target has said so; where it is refused here, it is the one that was removed.
            self._peers.is_removed_by(target.node, True)
        is_news = failure.code == UNKNOWN_PEER and failure.message != target.last_error
        if failure.code != target.last_code or is_news:
            log.warning(
                "replication failed", extra={"target": target.node, "reason": failure.message}
            )
        target.last_error, target.last_code = failure.message, failure.code

    def _note_failure(self, target: Target, attempt: tenacity.RetryCallState) -> None:
        failure = attempt.outcome.exception() if attempt.outcome else None
        if isinstance(failure, SidecarError):
            self._failed(target, failure)
        if attempt.attempt_number > self._retries.max_retries and not target.is_unreachable:
            target.is_unreachable = True
            self._metrics.unreachable(target.node, True)
            log.error(
                "replication target unreachable",
                extra={"target": target.node, "attempts": attempt.attempt_number},
            )

    def silent_ms(self, target: Target) -> float | None:
        """For how long a target has said nothing; None: it has not said anything yet."""
        return None if target.heard_us is None else (_monotonic_us() - target.heard_us) / 1000

    def lag_ms(self, target: Target) -> float:
        """Age of the oldest transaction of this node that a target has not acknowledged."""
        return self._lag_of(target)()

    def _lag_of(self, target: Target) -> Callable[[], float]:
        def lag_ms() -> float:
            own = self._store.vector.get(self._store.origin, 0)
            if target.acknowledged >= own:
                return 0.0
            oldest = target.sender.oldest_in_flight if target.sender else None
            oldest = oldest or self._oldest_waiting(target) or own
            return max(0.0, (self._now_us() - oldest) / 1000)

        return lag_ms

    def _oldest_waiting(self, target: Target) -> int | None:
        entry = self._tail.oldest_buffered_after(target.acknowledged, self._store.origin)
        return entry.timestamp if entry else target.oldest_pending

    async def _remember(self) -> None:
        """Keep in Redis how far each target has come, and find what a silent one is waiting for."""
        while True:
            try:
                stored = await self._store.cursors()
                for target in list(self.targets):
                    target.stored_cursor = target.cursor = stored.get(target.node, 0)
                while True:
                    for target in list(self.targets):
                        await self._remember_one(target)
                    await asyncio.sleep(CURSOR_S)
            except Unavailable:
                await self._store.opened()

    async def _remember_one(self, target: Target) -> None:
        if target.cursor > target.stored_cursor:
            await self._store.store_cursor(target.node, target.cursor)
            target.stored_cursor = target.cursor
        if target.is_connected:
            target.oldest_pending = None
        elif target.oldest_pending is None or target.oldest_pending <= target.acknowledged:
            # An estimate is enough: foreign entries in between only make it older.
            waiting = await self._store.feed_after(target.acknowledged, 100)
            own = (e for e in waiting if e.origin == self._store.origin)
            target.oldest_pending = next((e.timestamp for e in own), None)


async def _wait(called: asyncio.Event, seconds: float) -> None:
    """Until the next attempt; less when the target is called before."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await called.wait()


class _Conversation:
    """The loops of one session: what comes, what goes, the time, and the pages of a transfer."""

    def __init__(
        self, shipping: Shipping, target: Target, sender: Sender, link: Link, origin: str
    ) -> None:
        self._shipping, self._target, self._origin = shipping, target, origin
        self._sender, self._link = sender, link
        self._has_room = asyncio.Event()
        self._pages: asyncio.Queue[ReadStates] = asyncio.Queue()
        self._patience: asyncio.Timeout | None = None

    async def listen(self) -> None:
        while True:
            head = await self._link.receive()
            with self._going_back():
                actions = await self._shipping.heard(self._target, self._sender, head, self._origin)
            await self.perform(actions)

    async def pump(self) -> None:
        while True:
            await self._has_room.wait()
            try:
                async with asyncio.timeout(None) as self._patience:
                    after = await self._shipping.position_of(self._sender)
                    entries = await self._shipping.entries_after(after)
            except TimeoutError:
                continue
            finally:
                self._patience = None
            await self.perform(self._shipping.entries(self._sender, after, entries, self._origin))

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            with self._going_back():
                actions = self._shipping.beat(self._sender, self._origin)
            await self.perform(actions)

    async def transfer(self) -> None:
        """Read pages as they are asked for, and rest as long as it took: others use Redis too."""
        clock = asyncio.get_running_loop().time
        while True:
            asked = await self._pages.get()
            began = clock()
            await self.perform(await self._shipping.page(self._sender, asked))
            await asyncio.sleep(min(clock() - began, 1.0))

    async def perform(self, actions: list[Action]) -> None:
        for action in actions:
            self._shipping.note(self._target, action, self._sender)
            match action:
                case Send(frame, _):
                    await self._link.send(frame)
                case ReadStates():
                    self._pages.put_nowait(action)
                case Close(code, message):
                    raise Unavailable(code, message)
        if self._sender.is_established:
            self._target.acknowledged = self._sender.acknowledged
            self._target.vector = self._sender.target_vector
            self._target.cursor = max(self._target.cursor, self._sender.cursor)
        if self._sender.room:
            self._has_room.set()
        else:
            self._has_room.clear()

    @contextlib.contextmanager
    def _going_back(self) -> Iterator[None]:
        """When the session goes back, what the pump waits for is not what comes next."""
        position, sent = self._sender.position, self._sender.sent
        yield
        has_gone_back = self._sender.position < position or self._sender.sent < sent
        if has_gone_back and self._patience is not None:
            self._patience.reschedule(asyncio.get_running_loop().time())


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000
