"""Shipping: for each target a session that carries this node's feed there, for ever.

Owns the retries and what is known of each target. What to send is decided in `core/session.py`; how
it travels in `peer/client.py`. A dead target never slows a local write: it only leaves its part of
the feed where it is.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import tenacity

from sidecar.agent.tail import Tail
from sidecar.core.session import (
    Acknowledged,
    Action,
    Close,
    Established,
    Limits,
    Party,
    Send,
    Sender,
)
from sidecar.errors import Refused, SidecarError, Unavailable, ungrouped
from sidecar.metrics import Metrics
from sidecar.peer.client import Dialler, Link
from sidecar.store.feed import FeedEntry
from sidecar.store.redis_store import RedisStore

log = logging.getLogger(__name__)

TICK_S = 0.25
CURSOR_S = 1.0


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

    acknowledged: timestamp of this node's origin up to which the target has everything.
    """

    def __init__(self, node: str, endpoint: str) -> None:
        self.node, self.endpoint = node, endpoint
        self.is_connected = False
        self.is_unreachable = False
        self.last_error = self.last_code = ""
        self.acknowledged = 0
        self.stored_cursor = 0
        self.oldest_pending: int | None = None
        self.sender: Sender | None = None


class Shipping:
    """The sessions of this node, one per target."""

    def __init__(
        self,
        store: RedisStore,
        tail: Tail,
        dialler: Dialler,
        targets: Iterable[Target],
        *,
        me: Party,
        limits: Limits,
        retries: Retries,
        metrics: Metrics,
        now_us: Callable[[], int],
    ) -> None:
        self._store, self._tail, self._dialler = store, tail, dialler
        self._me, self._limits, self._retries = me, limits, retries
        self._metrics, self._now_us = metrics, now_us
        self.targets = tuple(targets)
        metrics.has_targets({t.node: self._lag_of(t) for t in self.targets})

    async def run(self) -> None:
        """Ship to every target for ever."""
        await self._store.opened()
        async with asyncio.TaskGroup() as group:
            for target in self.targets:
                group.create_task(self._ship(target), name=f"ship to {target.node}")
            group.create_task(self._remember(), name="remember cursors")

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
            before_sleep=lambda attempt: self._note_failure(target, attempt),
        )
        while True:
            # Returns when a session that had brought something ended: begin again without delay.
            await attempts(self._session, target)

    async def _session(self, target: Target) -> None:
        self._metrics.attempted()
        sender = Sender(self._me, self._store.origin, target.node, self._limits)
        try:
            async with self._dialler.dial(target.node, target.endpoint) as link:
                await self._converse(target, sender, link)
        except (Unavailable, Refused) as failure:
            if not sender.has_shipped:
                raise
            self._failed(target, failure)
        finally:
            self._set_connected(target, None)

    async def _converse(self, target: Target, sender: Sender, link: Link) -> None:
        talk = _Conversation(self, target, sender, link)
        await talk.perform(sender.hello(self._store.vector, _monotonic_us()))
        with ungrouped():
            async with asyncio.TaskGroup() as group:
                for loop in (talk.listen, talk.pump, talk.tick):
                    group.create_task(loop())

    async def own_after(self, timestamp: int) -> int:
        """Wait for a write here after this one; a revision with nothing of ours before it."""
        return await self._store.own_after(timestamp)

    async def entries_after(self, revision: int) -> list[FeedEntry]:
        """What follows this revision in the feed; waits until there is something."""
        return await self._tail.after(revision)

    def beat(self, sender: Sender) -> list[Action]:
        """What the session does now that time has passed."""
        return sender.on_tick(self._store.vector, self._store.revision, _monotonic_us())

    def note(self, target: Target, action: Action, sender: Sender) -> None:
        """Count what a session does."""
        match action:
            case Send(_, changes) if changes is not None:
                self._metrics.sent(changes)
            case Acknowledged(changes, duration_us):
                self._metrics.acknowledged(target.node, changes, duration_us / 1e6)
            case Established():
                self._set_connected(target, sender)
                if sender.acknowledged > self._store.vector.get(self._store.origin, 0):
                    log.error(
                        "replication target holds writes of this node that are not stored here",
                        extra={"target": target.node, "up_to": sender.acknowledged},
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
        target.sender = sender
        target.is_connected = sender is not None
        self._metrics.connected(target.node, target.is_connected)

    def _failed(self, target: Target, failure: SidecarError) -> None:
        self._metrics.failed(target.node)
        if failure.code != target.last_code:
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
                for target in self.targets:
                    target.stored_cursor = stored.get(target.node, 0)
                    target.acknowledged = max(target.acknowledged, target.stored_cursor)
                while True:
                    for target in self.targets:
                        await self._remember_one(target)
                    await asyncio.sleep(CURSOR_S)
            except Unavailable:
                await self._store.opened()

    async def _remember_one(self, target: Target) -> None:
        if target.acknowledged > target.stored_cursor:
            await self._store.store_cursor(target.node, target.acknowledged)
            target.stored_cursor = target.acknowledged
        if target.is_connected:
            target.oldest_pending = None
        elif target.oldest_pending is None or target.oldest_pending <= target.acknowledged:
            # An estimate is enough: foreign entries in between only make it older.
            waiting = await self._store.feed_after(target.acknowledged, 100)
            own = (e for e in waiting if e.origin == self._store.origin)
            target.oldest_pending = next((e.timestamp for e in own), None)


class _Conversation:
    """The three loops of one session: what comes, what goes, and the time."""

    def __init__(self, shipping: Shipping, target: Target, sender: Sender, link: Link) -> None:
        self._shipping, self._target = shipping, target
        self._sender, self._link = sender, link
        self._has_room = asyncio.Event()
        self._patience: asyncio.Timeout | None = None

    async def listen(self) -> None:
        while True:
            head = await self._link.receive()
            sent = self._sender.sent
            actions = self._sender.on_frame(head, _monotonic_us())
            if self._sender.sent < sent and self._patience is not None:
                # The session went back: what the pump waits for is not what comes next.
                self._patience.reschedule(asyncio.get_running_loop().time())
            await self.perform(actions)

    async def pump(self) -> None:
        while True:
            await self._has_room.wait()
            try:
                async with asyncio.timeout(None) as self._patience:
                    # What this node has merged is not its to ship: do not even read it.
                    self._sender.skip_to(await self._shipping.own_after(self._sender.sent))
                    after = self._sender.position
                    entries = await self._shipping.entries_after(after)
            except TimeoutError:
                continue
            finally:
                self._patience = None
            await self.perform(self._sender.on_entries(after, entries, _monotonic_us()))

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self.perform(self._shipping.beat(self._sender))

    async def perform(self, actions: list[Action]) -> None:
        for action in actions:
            self._shipping.note(self._target, action, self._sender)
            match action:
                case Send(frame, _):
                    await self._link.send(frame)
                case Close(code, message):
                    raise Unavailable(code, message)
        if self._sender.is_established:
            self._target.acknowledged = self._sender.acknowledged
        if self._sender.room:
            self._has_room.set()
        else:
            self._has_room.clear()


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000
