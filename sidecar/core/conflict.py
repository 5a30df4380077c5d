"""Strategies: each one a ranking of siblings. The sibling that ranks highest is what readers see.

A strategy never sees writes that were overwritten, so it decides concurrent writes only. At run
time Lua decides, with the same rankings (`lua/lib/strategy.lua`); tests hold the two together.
What a custom strategy decides only its script knows (`core/script.py`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import blake2b

from sidecar.core.relationship import Operation
from sidecar.core.vector import Version, order


class ConflictResolutionStrategy(StrEnum):
    """How the winner of concurrent writes is chosen; the value is the word in the configuration."""

    LAST_WRITE_WINS = "lww"
    SOURCE_PRIORITY = "source_priority"
    INSERT_WINS = "insert_wins"
    DELETE_WINS = "delete_wins"
    CUSTOM = "custom"


USES_PRIORITIES = {
    ConflictResolutionStrategy.SOURCE_PRIORITY,
    ConflictResolutionStrategy.CUSTOM,
}
"""A custom script is told the priority of each sibling's region."""


@dataclass(frozen=True, slots=True)
class Sibling:
    """One write of a tuple that no known write has overwritten."""

    operation: Operation
    condition: str | None = None
    expires_at: int | None = None


Resolve = Callable[[Mapping[Version, Sibling]], Version]
"""What stands for a custom script where there is no Lua: the winner of two or more siblings."""


@dataclass(frozen=True, slots=True)
class Override:
    """Another strategy for the tuples of one relation, or of one resource type."""

    strategy: ConflictResolutionStrategy
    relation: str | None = None
    resource_type: str | None = None

    def fits(self, resource: str, relation: str) -> bool:
        """Whether it is meant for this tuple."""
        if self.relation is not None:
            return relation == self.relation
        return resource.partition(":")[0] == self.resource_type


@dataclass(frozen=True, slots=True)
class Rules:
    """The strategies of a deployment: all nodes must have the same, or they would disagree.

    priority: node id -> priority of its region; a node that is not listed has 0. overrides: the
    first that fits a tuple decides. script: text of the custom script. keeps_losers: losers stay
    until they are collected, also under lww.
    """

    strategy: ConflictResolutionStrategy
    priority: Mapping[str, int]
    overrides: tuple[Override, ...] = ()
    script: str = ""
    keeps_losers: bool = False
    resolve: Resolve | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls,
        strategy: ConflictResolutionStrategy,
        region_priorities: Sequence[str] = (),
        region_of: Mapping[str, str] | None = None,
        overrides: Sequence[Override] = (),
        script: str = "",
    ) -> "Rules":
        """Rules for a topology: later in `region_priorities` is higher, not listed is 0."""
        used = {strategy, *(override.strategy for override in overrides)}
        priority: dict[str, int] = {}
        if used & USES_PRIORITIES and region_priorities:
            # The seed numbers the listed regions from 0; a region that is not listed ties with the
            # first one and the version decides between them.
            height = {region: index for index, region in enumerate(region_priorities)}
            regions = region_of or {}
            priority = {n: height.get(r, 0) for n, r in sorted(regions.items())}
        return cls(strategy, priority, tuple(overrides), script)

    def at(self, resource: str, relation: str, *, keeps_losers: bool = False) -> "Rules":
        """The rules for one tuple: those of the first override that fits, or the general ones."""
        fitting = (o.strategy for o in self.overrides if o.fits(resource, relation))
        strategy = next(fitting, self.strategy)
        if strategy is self.strategy and not self.overrides and not keeps_losers:
            return self
        return replace(self, strategy=strategy, overrides=(), keeps_losers=keeps_losers)

    @property
    def drops_losers(self) -> bool:
        """Whether losers may go at once: the order of versions extends causality."""
        is_lww = self.strategy is ConflictResolutionStrategy.LAST_WRITE_WINS
        return is_lww and not self.keeps_losers

    def to_json(self) -> str:
        """What the scripts take: canonical JSON text."""
        rules: dict[str, object] = {
            "strategy": self.strategy.value,
            "priority": dict(self.priority),
        }
        if self.overrides:
            rules["overrides"] = [
                {
                    "strategy": override.strategy.value,
                    "relation": override.relation or "",
                    "resource_type": override.resource_type or "",
                }
                for override in self.overrides
            ]
        if self.script:
            rules["script"] = blake2b(self.script.encode(), digest_size=16).hexdigest()
        return json.dumps(rules, sort_keys=True, separators=(",", ":"))

    @property
    def fingerprint(self) -> str:
        """A word a person can read, then a hash: equal where the nodes would decide alike."""
        digest = blake2b(self.to_json().encode(), digest_size=6).hexdigest()
        more = "+overrides" if self.overrides else ""
        return f"{self.strategy.value}{more}:{digest}"

    def rank(self, version: Version, sibling: Sibling) -> tuple[object, ...]:
        """Sort key of a sibling: the winner has the highest."""
        last_write = order(version)
        match self.strategy:
            case ConflictResolutionStrategy.LAST_WRITE_WINS:
                return last_write
            case ConflictResolutionStrategy.SOURCE_PRIORITY:
                node = version[1].partition(".")[0]
                return (self.priority.get(node, 0), *last_write)
            case ConflictResolutionStrategy.INSERT_WINS:
                return (sibling.operation is Operation.INSERT, *last_write)
            case ConflictResolutionStrategy.DELETE_WINS:
                return (sibling.operation is Operation.DELETE, *last_write)
            case ConflictResolutionStrategy.CUSTOM:
                # Only where there is nothing to choose from.
                return last_write

    def winner(self, siblings: Mapping[Version, Sibling]) -> Version:
        """The version that readers see. Total, and the same on every node."""
        if self.strategy is ConflictResolutionStrategy.CUSTOM and len(siblings) > 1:
            if self.resolve is None:
                raise ValueError("a custom strategy is decided by its script")
            return self.resolve(siblings)
        return max(siblings, key=lambda version: self.rank(version, siblings[version]))
