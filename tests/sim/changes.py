"""Histories in which operators change the conflict rules, node by node, while all else goes on."""

from sidecar.core.conflict import ConflictResolutionStrategy, Override, Rules
from sidecar.core.relationship import Operation
from tests import twins
from tests.sim.histories import STORY_LINES, History, Told, Violation
from tests.sim.world import KEYS, MS, S, few_buckets

LWW, _, INSERT_WINS, DELETE_WINS, _ = ConflictResolutionStrategy

RULES = [
    Rules.of(LWW),
    Rules.of(INSERT_WINS),
    Rules.of(DELETE_WINS),
    twins.custom(),
    Rules.of(
        LWW, overrides=[Override(INSERT_WINS, relation="r"), Override(DELETE_WINS, relation="w")]
    ),
]


class ChangingHistory(History):
    """Some changes from one set of rules to another; the last one ends before all is healed."""

    def __init__(self, seed: int, shape: str) -> None:
        before = RULES[seed % len(RULES)]
        super().__init__(seed, before.strategy, shape, before)
        self.oracle.is_lenient = True
        self._now = before

    def play(self) -> Told:
        """The same, and the last change comes to its end on every node."""
        told = super().play()
        assert self.run_until(self._is_changed, 60 * S), "the last change does not end"
        self.settle()
        return told

    def _is_changed(self) -> bool:
        self.sync()
        return all(node.store.joined is None for node in self.nodes.values())

    def _schedule(self) -> None:
        super()._schedule()
        self._again_and_again(self._change, 500 * MS, 8 * S)

    def _change(self) -> None:
        if self.is_over:
            return
        self._now = self.rnd.choice([rules for rules in RULES if rules is not self._now])
        self.note(f"the rules become {self._now.fingerprint}")
        after_us = 0
        for name in self.rnd.sample(self.names, len(self.names)):
            after_us += self.rnd.randint(100 * MS, 2 * S)
            self.at(after_us, lambda n=name, rules=self._now: self._restart_with(n, rules))  # type: ignore[misc]

    def _restart_with(self, name: str, rules: Rules) -> None:
        node = self.nodes[name]
        if self.is_over or rules is not self._now or self._must_remember(name):
            return
        if node.is_up:
            self.kill(name, loses=self.rnd.random() < 0.2)
        node.configure(rules)
        self.at(self.rnd.randint(50 * MS, 1 * S), lambda: self._up(name))

    def _before_healing(self) -> None:
        """A last change with conflicts that nobody will overwrite, settled by some nodes only."""
        self.mend()
        self.start()
        self.cut_off(*self.names)
        for name in self.names:
            for identity in KEYS:
                if self.rnd.random() < 0.5:
                    self.write(name, self.rnd.choice(list(Operation)), identity)
        self.run_for(200 * MS)
        self.mend()
        if self.rnd.random() < 0.5:
            self.cut_off(self.rnd.choice(self.names))
        self.run_for(self.rnd.randint(0, 4 * S))
        self._now = self.rnd.choice([rules for rules in RULES if rules is not self._now])
        for name in self.rnd.sample(self.names, len(self.names)):
            if self.nodes[name].is_up:
                self.kill(name)
            self.nodes[name].configure(self._now)
            self._up(name)
            self.mend()
            if self.rnd.random() < 0.5:
                self.cut_off(self.rnd.choice(self.names))
            self.run_for(self.rnd.randint(100 * MS, 4 * S))


def play_changes(seed: int, shape: str) -> Told:
    """Play one history. Raises Violation."""
    with few_buckets():
        history = ChangingHistory(seed, shape)
        try:
            return history.play()
        except AssertionError as wrong:
            story = "\n".join(history.story[-STORY_LINES:])
            raise Violation(f"{wrong}\n{history.graph}\n{story}\nseed {seed}, {shape}") from wrong
