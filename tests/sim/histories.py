"""Random histories: writes, and everything that may go wrong, then healing, then the checkers."""

import random
from dataclasses import dataclass
from typing import Any

from sidecar.core.conflict import ConflictResolutionStrategy
from sidecar.core.relationship import Operation
from sidecar.store.calls import Phase
from tests.sim.memory_store import Disk
from tests.sim.world import KEYS, MS, S, World, few_buckets, random_graph

STRATEGIES = [s for s in ConflictResolutionStrategy if s is not ConflictResolutionStrategy.CUSTOM]
SETTLE_LIMIT_US = 90 * S


class Violation(AssertionError):
    """A history that went wrong; the message has all that is needed to see it again."""


@dataclass
class Told:
    """What a history amounted to."""

    events: int
    faults: int
    transfers: int


class History(World):
    """One seed, played from beginning to end."""

    def __init__(
        self,
        seed: int,
        strategy: ConflictResolutionStrategy,
        shape: str | None = None,
        **options: Any,
    ) -> None:
        self.seed = seed
        graph = random_graph(random.Random(f"{seed} {shape}"), shape)
        super().__init__(seed, strategy, graph, **options)
        self.least_events = options.get("events", 300)
        self._has_restored = False

    def play(self) -> Told:
        self.start()
        late = (
            self.rnd.choice(self.names) if self.rnd.random() < 0.2 and len(self.names) > 2 else None
        )
        if late:
            self.kill(late)
        self.run_for(self.rnd.randint(0, 2 * S))
        self._schedule()
        while self.events < self.least_events or self.faults < 3:
            self.run_for(500 * MS)
        for name in self.names:
            if not self.nodes[name].is_up:
                self.nodes[name].start()
        self.heal()
        assert self.run_until(self.is_settled, SETTLE_LIMIT_US), self._unsettled()
        self.check()
        return Told(self.events, self.faults, 0)

    # -- what happens -----------------------------------------------------------------------------

    def _schedule(self) -> None:
        for name in self.names:
            self._later(lambda n=name: self._application(n), 0, 100 * MS)
            self._later(lambda n=name: self._sync_one(n), 0, 400 * MS)
            self._later(lambda n=name: self._trim_one(n), 1 * S, 3 * S)
        self._later(self._fault, 200 * MS, 1 * S)

    def _later(self, event: Any, least_us: int, most_us: int) -> None:
        def again() -> None:
            event()
            self.at(self.rnd.randint(least_us, most_us), again)

        self.at(self.rnd.randint(least_us, most_us), again)

    @property
    def is_healed(self) -> bool:
        return self.events >= self.least_events and self.faults >= 3

    def _application(self, name: str) -> None:
        if not self.is_healed:
            self.write(name, self.rnd.choice(list(Operation)), self.rnd.choice(KEYS))

    def _sync_one(self, name: str) -> None:
        node = self.nodes[name]
        node.store.sync()
        if self.rnd.random() < 0.1 and node.store.is_open and node.store.phase is Phase.SERVING:
            node.copies = [*node.copies[-2:], node.store.disk.copy()]

    def _trim_one(self, name: str) -> None:
        store = self.nodes[name].store
        if store.disk.feed and self.rnd.random() < 0.5:
            entry = self.rnd.choice(store.disk.feed)
            holds = [
                s.sender.keeps_feed_after
                for s in self.nodes[name].sessions.values()
                if s.sender.keeps_feed_after is not None
            ]
            store.trim(min([entry.revision, *holds]))

    def _fault(self) -> None:
        if self.is_healed:
            return
        self.faults += 1
        name = self.rnd.choice(self.names)
        node = self.nodes[name]
        pause_us = self.rnd.choice([100 * MS, 1 * S, 4 * S])
        match self.rnd.choice(
            ["kill", "kill", "machine", "server", "server loses", "cut", "one way", "clock", "copy"]
        ):
            case "kill" if node.is_up:
                self._down(name, pause_us, loses=False)
            case "machine" if node.is_up:
                self._down(name, pause_us, loses=True)
            case "server" if node.is_up:
                self.crash_server(name, loses=False)
            case "server loses" if node.is_up:
                self.crash_server(name, loses=True)
            case "cut":
                links = [(name, n) for n in self.names] + [(n, name) for n in self.names]
                self._cut(links, pause_us)
            case "one way" if self.graph[name]:
                other = self.rnd.choice(list(self.graph[name]))
                self._cut([(name, other) if self.rnd.random() < 0.5 else (other, name)], pause_us)
            case "clock":
                node.skew_us = self.rnd.choice([0, -5 * S, -200 * MS, 200 * MS, 5 * S])
                self.note(f"the clock of {name} is off by {node.skew_us / 1e6} s")
            case "copy" if node.is_up and not self._has_restored:
                self._old_copy(name, pause_us)

    def _down(self, name: str, pause_us: int, loses: bool) -> None:
        self.kill(name, loses)
        self.at(pause_us, lambda: self._up(name))

    def _up(self, name: str) -> None:
        if not self.nodes[name].is_up:
            self.note(f"{name} starts")
            self.nodes[name].start()

    def _cut(self, links: list[tuple[str, str]], pause_us: int) -> None:
        self.note(f"cut {links}")
        self.cut |= set(links)
        for session in list(self._sessions):
            ends = {(session.source.name, session.target.name)}
            ends |= {(b, a) for a, b in ends}
            # Some ends notice at once, others only by silence.
            if ends & set(links) and self.rnd.random() < 0.5:
                self.break_session(session)

        def mend() -> None:
            self.cut -= set(links)
            self.note(f"mended {links}")

        self.at(pause_us, mend)

    def _old_copy(self, name: str, pause_us: int) -> None:
        """One node at a time, as the guarantees say; its peers are there and remember."""
        self._has_restored = True
        copies = [*self.nodes[name].copies, Disk()]
        self.kill(name)
        self.restore(name, self.rnd.choice(copies))
        if self.rnd.random() < 0.5:
            # It serves while it is cut off.
            links = [(name, n) for n in self.names] + [(n, name) for n in self.names]
            self._cut(links, pause_us)
            self._up(name)
        else:
            self.at(pause_us, lambda: self._up(name))

    def _unsettled(self) -> str:
        lines = [f"not settled within {SETTLE_LIMIT_US // S} s of healing"]
        for name, node in self.nodes.items():
            store = node.store
            lines.append(
                f"{name}: {store.phase} {store.origin} vector {dict(store.vector)} floor "
                f"{store.floor} behind {store.behind} beyond {store.disk.beyond} progress "
                f"{store.progress} unsettled {[(i[1:3], s) for i, s in store.disk.tuples.items() if not s.is_settled]} "
                f"stable {node.peers.stability} ended {node.peers.rows.ended} "
                f"sessions {[(t, s.sender.is_established, s.sender.position, s.sender.target_vector) for t, s in node.sessions.items()]}"
            )
        return "\n".join(lines)


def play(
    seed: int, strategy: ConflictResolutionStrategy, shape: str | None = None, **options: Any
) -> Told:
    """Play one history. Raises Violation."""
    with few_buckets():
        history = History(seed, strategy, shape, **options)
        try:
            return history.play()
        except AssertionError as wrong:
            story = "\n".join(history.story[-60:])
            raise Violation(
                f"{strategy.value}, seed {seed}, {history.graph}: {wrong}\n{story}"
            ) from wrong
