"""Random histories: writes, and everything that may go wrong, then healing, then the checkers."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from sidecar.core.conflict import ConflictResolutionStrategy, Rules
from sidecar.core.relationship import Operation
from sidecar.store.calls import Phase
from tests.sim.memory_store import Disk
from tests.sim.shapes import random_graph
from tests.sim.world import KEYS, MS, S, World, few_buckets

STRATEGIES = [s for s in ConflictResolutionStrategy if s is not ConflictResolutionStrategy.CUSTOM]
LEAST_EVENTS, LEAST_FAULTS = 300, 3
STORY_LINES = 60
REMEMBER_US = 2 * S
"""After so long a node has heard from the others what they have."""


class Violation(AssertionError):
    """A history that went wrong; the message has all that is needed to see it again."""


@dataclass
class Told:
    """What a history amounted to. happened: how often what the simulator is for came to pass."""

    events: int = 0
    faults: int = 0
    happened: Counter[str] = field(default_factory=Counter)


class History(World):
    """One seed, played from beginning to end."""

    def __init__(
        self,
        seed: int,
        strategy: ConflictResolutionStrategy,
        shape: str,
        rules: Rules | None = None,
    ) -> None:
        dice = f"{seed} {strategy.value} {shape}"
        graph = random_graph(random.Random(f"graph {dice}"), shape)
        super().__init__(dice, strategy, graph, rules=rules)
        self._restored = ""
        # Sometimes one of three or more nodes comes when the others have long begun.
        is_late = len(self.names) > 2 and self.rnd.random() < 0.2
        self._late = self.rnd.choice(self.names) if is_late else None

    def play(self) -> Told:
        """Raises AssertionError when anything is wrong."""
        for name in self.names:
            if name != self._late:
                self.nodes[name].start()
        self.run_for(self.rnd.randint(0, 2 * S))
        self._schedule()
        if self._late is not None:
            self.at(self.rnd.randint(1 * S, 6 * S), lambda: self._up(str(self._late)))
        while not self.is_over:
            self.run_for(500 * MS)
        self.note("healed")
        self._before_healing()
        self.heal()
        self.settle()
        return Told(self.events, self.faults, self.happened)

    def _before_healing(self) -> None:
        """What an operator brings to an end before all is well again."""

    @property
    def is_over(self) -> bool:
        """Whether enough has happened."""
        return self.events >= LEAST_EVENTS and self.faults >= LEAST_FAULTS

    # -- what happens -----------------------------------------------------------------------------

    def _schedule(self) -> None:
        for name in self.names:
            self._again_and_again(lambda n=name: self._application(n), 0, 100 * MS)  # type: ignore[misc]
            self._again_and_again(lambda n=name: self._sync_one(n), 0, 400 * MS)  # type: ignore[misc]
            self._again_and_again(lambda n=name: self._trim_one(n), 1 * S, 3 * S)  # type: ignore[misc]
        self._again_and_again(self._fault, 200 * MS, 1 * S)

    def _again_and_again(self, event: Callable[[], None], least_us: int, most_us: int) -> None:
        def again() -> None:
            event()
            self.at(self.rnd.randint(least_us, most_us), again)

        self.at(self.rnd.randint(least_us, most_us), again)

    def _application(self, name: str) -> None:
        if self.is_over:
            return
        count = self.rnd.choice([1, 1, 1, 2, 3])
        self.write(name, self.rnd.choice(list(Operation)), *self.rnd.sample(KEYS, count))

    def _sync_one(self, name: str) -> None:
        node = self.nodes[name]
        node.store.sync()
        if self.rnd.random() < 0.1 and node.store.is_open and node.store.phase is Phase.SERVING:
            node.copies = [*node.copies[-2:], node.store.disk.copy()]

    def _trim_one(self, name: str) -> None:
        node = self.nodes[name]
        if not node.store.disk.feed or self.rnd.random() < 0.5:
            return
        entry = self.rnd.choice(node.store.disk.feed)
        held = (session.sender.keeps_feed_after for session in node.sessions.values())
        node.store.trim(min([entry.revision, *(one for one in held if one is not None)]))

    # -- what goes wrong --------------------------------------------------------------------------

    def _fault(self) -> None:
        if self.is_over:
            return
        what = self.rnd.choice(
            ["kill", "kill", "machine", "server", "server loses", "cut", "one way", "clock", "copy"]
        )
        sources = self._sources() if what == "copy" else []
        name = self.rnd.choice(sources or self.names)
        node = self.nodes[name]
        pause_us = self.rnd.choice([100 * MS, 1 * S, 4 * S])
        before = self.faults
        self.faults += 1
        match what:
            case "kill" if node.is_up and not self._must_remember(name):
                self._down(name, pause_us, loses=False)
            case "machine" if node.is_up and not self._must_remember(name):
                self._down(name, pause_us, loses=True)
            case "server" if node.is_up:
                self.crash_server(name, loses=False)
            case "server loses" if node.is_up:
                self.crash_server(name, loses=True)
            case "cut":
                self._cut(self._links_of(name), pause_us)
            case "one way":
                link = (name, self.rnd.choice(list(self.graph[name])))
                self._cut([link if self.rnd.random() < 0.5 else link[::-1]], pause_us)
            case "clock":
                node.skew_us = self.rnd.choice([0, -5 * S, -200 * MS, 200 * MS, 5 * S])
                self.note(f"the clock of {name} is off by {node.skew_us / 1e6} s")
            case "copy" if node.is_up and self._can_restore(name):
                self._old_copy(name, pause_us)
            case _:
                self.faults = before

    def _links_of(self, name: str) -> list[tuple[str, str]]:
        others = [other for other in self.names if other != name]
        return [(name, other) for other in others] + [(other, name) for other in others]

    def _sources(self) -> list[str]:
        """The nodes of which others have a part of a transfer: they are worth a restore."""
        pages = [
            vector for node in self.nodes.values() for vector in node.store.disk.beyond.values()
        ]
        origins = {origin for vector in pages for origin in vector}
        return [name for name in self.names if self.nodes[name].store.origin in origins]

    def _can_restore(self, name: str) -> bool:
        """One node at a time, as the guarantees say, while its peers are there and remember."""
        others = [node for node in self.nodes.values() if node.name != name]
        return not self._restored and all(
            node.is_up and self.now_us - node.began_us > REMEMBER_US for node in others
        )

    def _must_remember(self, name: str) -> bool:
        """Whether another node is back from an old copy and has not caught up."""
        if self._restored in ("", name):
            return False
        store = self.nodes[self._restored].store
        return not store.is_open or store.phase is not Phase.SERVING

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
            way = (session.source.name, session.target.name)
            # Some ends notice at once, others only by silence.
            if {way, way[::-1]} & set(links) and self.rnd.random() < 0.5:
                self.break_session(session)

        def mended() -> None:
            self.cut -= set(links)
            self.note(f"mended {links}")

        self.at(pause_us, mended)

    def _old_copy(self, name: str, pause_us: int) -> None:
        self._restored = name
        copied = self.rnd.choice([*self.nodes[name].copies, Disk()])
        self.kill(name)
        self.restore(name, copied)
        if self.rnd.random() < 0.5:
            # It serves while it is cut off, and may even be restarted.
            self._cut(self._links_of(name), pause_us)
            self._up(name)
            if self.rnd.random() < 0.5:
                self.at(pause_us // 2, lambda: self._restart(name))
        else:
            self.at(pause_us, lambda: self._up(name))

    def _restart(self, name: str) -> None:
        if self.nodes[name].is_up:
            self.kill(name)
            self._up(name)


def play(seed: int, strategy: ConflictResolutionStrategy, shape: str) -> Told:
    """Play one history. Raises Violation."""
    with few_buckets():
        history = History(seed, strategy, shape)
        try:
            return history.play()
        except AssertionError as wrong:
            story = "\n".join(history.story[-STORY_LINES:])
            raise Violation(
                f"{wrong}\n{history.graph}\n{story}\n"
                f"again with: python -m tests.sim {seed} {strategy.value} {shape}"
            ) from wrong
