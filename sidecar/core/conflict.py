"""Strategies: each one a ranking of siblings. The sibling that ranks highest is what readers see.

A strategy never sees writes that were overwritten, so it decides concurrent writes only. At run
time Lua decides, with the same rankings (`lua/lib/strategy.lua`); tests hold the two together.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Sibling:
    """One write of a tuple that no known write has overwritten."""

    operation: Operation
    condition: str | None = None
    expires_at: int | None = None


Rank = Callable[[Version, Sibling], tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Rules:
    """The strategy of a deployment: all nodes must have the same, or they would disagree.

    priority: node id -> priority of its region; a node that is not listed has 0.
    """

    strategy: ConflictResolutionStrategy
    priority: Mapping[str, int]

    @classmethod
    def of(
        cls,
        strategy: ConflictResolutionStrategy,
        region_priorities: Sequence[str] = (),
        region_of: Mapping[str, str] | None = None,
    ) -> "Rules":
        """Rules for a topology: later in `region_priorities` is higher, not listed is 0."""
        if strategy is not ConflictResolutionStrategy.SOURCE_PRIORITY:
            return cls(strategy, {})
        # The seed numbers the listed regions from 0; a region that is not listed ties with the
        # first one and the version decides between them.
        height = {region: index for index, region in enumerate(region_priorities)}
        regions = region_of or {}
        return cls(strategy, {n: height.get(r, 0) for n, r in sorted(regions.items())})

    def to_json(self) -> str:
        """What the scripts take: canonical JSON text."""
        return json.dumps(
            {"strategy": self.strategy.value, "priority": dict(self.priority)},
            sort_keys=True,
            separators=(",", ":"),
        )

    @property
    def fingerprint(self) -> str:
        """A word a person can read, then a hash: equal where the nodes would decide alike."""
        digest = blake2b(self.to_json().encode(), digest_size=6).hexdigest()
        return f"{self.strategy.value}:{digest}"

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
                raise ValueError("a custom strategy is decided by its script")

    def winner(self, siblings: Mapping[Version, Sibling]) -> Version:
        """The version that readers see. Total, and the same on every node."""
        return max(siblings, key=lambda version: self.rank(version, siblings[version]))
