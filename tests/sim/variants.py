"""Nodes with one rule broken: the histories and their checkers must find each of them."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pytest

from sidecar.agent.incoming import Frame, Incoming
from sidecar.core.collection import Rows
from sidecar.core.session import AckOutcome, acknowledge
from sidecar.core.state import TupleState, absorb
from sidecar.core.vector import Vector, newest_origins, pointwise_max
from sidecar.store.calls import Phase, States
from tests.sim import memory_store
from tests.sim.memory_store import MemoryStore

Break = Callable[[pytest.MonkeyPatch], None]


def acknowledge_before_the_merge(patch: pytest.MonkeyPatch) -> None:
    """The answer says that a batch is stored when it has only arrived."""
    merge = Incoming.on_batches
    waiting: dict[Incoming, Sequence[Frame]] = {}

    async def on_batches(self: Incoming, batches: Sequence[Frame]) -> str | bytes:
        if self in waiting:
            await merge(self, waiting.pop(self))
        waiting[self] = batches
        lines = b"\n".join(lines for _, lines in batches).split(b"\n")
        newest = {one["origin"]: int(one["timestamp"]) for one in map(json.loads, lines)}
        claimed = pointwise_max(self._store.vector, newest)
        number = batches[-1][0].get("batch")
        return acknowledge(number, AckOutcome.APPLIED, claimed, self._store.durable)

    patch.setattr(Incoming, "on_batches", on_batches)


def believe_a_row_too_early(patch: pytest.MonkeyPatch) -> None:
    """A row counts when it is heard, not when everything in it has come."""

    def hear(self: Rows, node: str, row: Vector) -> None:
        if node in self.members and node != self.me and node in newest_origins(row):
            self._claims[node] = pointwise_max(self._claims.get(node, {}), row)
            self.known[node] = pointwise_max(self.known.get(node, {}), row)

    patch.setattr(Rows, "hear", hear)


def keep_one_winner_per_pair(patch: pytest.MonkeyPatch) -> None:
    """A comparison of two writes forgets the loser."""

    def forgetful(*args: Any) -> Any:
        state, conflicts = absorb(*args)
        best = args[-1].winner(state.siblings)
        return TupleState({best: state.siblings[best]}, state.beyond), conflicts

    patch.setattr(memory_store, "absorb", forgetful)


def forget_beyond(patch: pytest.MonkeyPatch) -> None:
    """What a write had overwritten is forgotten where it has not been received yet."""

    def forgetful(*args: Any) -> Any:
        state, conflicts = absorb(*args)
        return TupleState(state.siblings), conflicts

    patch.setattr(memory_store, "absorb", forgetful)


def reuse_an_incarnation(patch: pytest.MonkeyPatch) -> None:
    """A node that has lost writes goes on under the same name."""

    def begin_after_loss(self: MemoryStore) -> None:
        self._known = self.disk.clock

    async def begin(
        self: MemoryStore, behind: Vector | None = None, known: Collection[str] = ()
    ) -> None:
        self.disk.run_id, self.disk.behind = self.server, dict(behind or {})
        self._take_phase()

    patch.setattr(MemoryStore, "_begin_after_loss", begin_after_loss)
    patch.setattr(MemoryStore, "begin", begin)


def read_a_page_and_its_vector_apart(patch: pytest.MonkeyPatch) -> None:
    """A page has what was there a moment before the vector that it is judged by."""
    right = MemoryStore.states

    async def states(self: MemoryStore, first: int, buckets: int, tuples: int) -> States:
        present, self.disk = self.disk, self.saved
        try:
            page = await right(self, first, buckets, tuples)
        finally:
            self.disk = present
        return States(page.following, dict(present.vector), page.buckets)

    patch.setattr(MemoryStore, "states", states)


def collect_what_this_node_has(patch: pytest.MonkeyPatch) -> None:
    """Applied here is taken for applied everywhere."""
    right = MemoryStore.collect

    async def collect(
        self: MemoryStore, stable: Vector, ended: Mapping[str, int], after: int = 0
    ) -> int | None:
        return await right(self, self.vector, ended, after)

    patch.setattr(MemoryStore, "collect", collect)


def raise_the_vector_with_a_page(patch: pytest.MonkeyPatch) -> None:
    """The vector rises with the first page of a transfer, not at its end."""
    right = MemoryStore._absorb_bucket

    def absorb_bucket(self: MemoryStore, number: int, vector: Vector, *rest: Any) -> Any:
        done = right(self, number, vector, *rest)
        self.disk.vector = pointwise_max(self.disk.vector, vector)
        return done

    patch.setattr(MemoryStore, "_absorb_bucket", absorb_bucket)


def forget_what_came_with_a_page(patch: pytest.MonkeyPatch) -> None:
    """A bucket does not remember the vector of the page that was taken into it."""
    patch.setattr(MemoryStore, "_set_page", lambda *_: None)


def trust_a_start_while_unproven(patch: pytest.MonkeyPatch) -> None:
    """What a process found at its start counts as all that there ever was."""
    right = MemoryStore.reopen

    def reopen(self: MemoryStore) -> None:
        right(self)
        self.disk.run_id = self.server
        self._take_phase()

    patch.setattr(MemoryStore, "reopen", reopen)


def forget_over_a_restart_what_it_lacks(patch: pytest.MonkeyPatch) -> None:
    """A node that is behind and restarts cut off begins anew as if nobody had told it anything."""

    def behind(self: MemoryStore) -> Vector:
        return {} if self.phase is Phase.UNPROVEN else self.disk.behind

    patch.setattr(MemoryStore, "behind", property(behind))


def forget_over_a_restart_what_was_exposed(patch: pytest.MonkeyPatch) -> None:
    """Only what the last exposed incarnation has written can be set aside."""
    right = MemoryStore._begin

    def begin(self: MemoryStore, behind: Vector | None, known: Collection[str] = ()) -> None:
        if behind is None:
            self.disk.exposed, self.disk.undo = None, {}
        right(self, behind, known)

    patch.setattr(MemoryStore, "_begin", begin)


VARIANTS: dict[str, tuple[Break, str]] = {
    "acknowledge before the merge": (acknowledge_before_the_merge, "lww"),
    "one winner per pair": (keep_one_winner_per_pair, "insert_wins"),
    "forget beyond": (forget_beyond, "delete_wins"),
    "reuse an incarnation": (reuse_an_incarnation, "lww"),
    "read a page and its vector apart": (read_a_page_and_its_vector_apart, "source_priority"),
    "collect what this node has": (collect_what_this_node_has, "delete_wins"),
    "raise the vector with a page": (raise_the_vector_with_a_page, "lww"),
    "forget what came with a page": (forget_what_came_with_a_page, "insert_wins"),
    "trust a start while unproven": (trust_a_start_while_unproven, "delete_wins"),
    "believe a row too early": (believe_a_row_too_early, "delete_wins"),
}
"""What is broken, and the strategy under which it is looked for."""
