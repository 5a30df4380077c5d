"""The names of the keys of one partition; nowhere else in Python are they spelled.

`lua/lib/keys.lua` is the other half: what only scripts touch is named there.
"""

from dataclasses import dataclass, replace
from typing import Self

from sidecar.core.residency import GLOBAL

PARTITION = GLOBAL
"""The partition of the tenants that live everywhere."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of a partition: `{<prefix>:<partition>}:<name>`, so that all lie in one cluster slot."""

    prefix: str
    partition: str = PARTITION

    def _name(self, name: str) -> str:
        return f"{{{self.prefix}:{self.partition}}}:{name}"

    @property
    def meta(self) -> str:
        """Hash: format, node, origin, partition count, strategy fingerprint, clock."""
        return self._name("meta")

    @property
    def feed(self) -> str:
        """Stream: one entry per transaction, id `<revision>-0`."""
        return self._name("feed")

    @property
    def floor(self) -> str:
        """Hash: origin -> timestamp up to which the feed does not hold all of its transactions."""
        return self._name("floor")

    @property
    def cursors(self) -> str:
        """Hash: target -> revision it has acknowledged."""
        return self._name("cursors")

    @property
    def conflicts(self) -> str:
        """Stream: the last conflicts, ids `<revision>-<n>`."""
        return self._name("conflicts")

    @property
    def tenants(self) -> str:
        """Set: tenants that have tuples."""
        return self._name("tenants")

    @property
    def partitions(self) -> str:
        """Set, in the partition of everywhere: the other partitions that this node ever had."""
        return replace(self, partition=PARTITION)._name("partitions")

    def of(self, partition: str) -> Self:
        """The same of another partition."""
        return replace(self, partition=partition)

    @property
    def vector(self) -> str:
        """Hash: origin -> timestamp."""
        return self._name("vector")

    @property
    def unsettled(self) -> str:
        """Sorted set: tuples that are not one live sibling, by timestamp."""
        return self._name("unsettled")

    @property
    def beyond(self) -> str:
        """Hash: bucket -> what was taken over with pages of a state transfer."""
        return self._name("beyond")

    @property
    def parked(self) -> str:
        """Hash: origin -> the transaction that waits, and why."""
        return self._name("parked")

    @property
    def aside(self) -> str:
        """List: transactions of an incarnation that knew too little, to be written again."""
        return self._name("aside")

    @property
    def dirty(self) -> str:
        """Sorted set, proxy mode: tuples of which the database is to be told, by revision."""
        return self._name("dirty")

    @property
    def held(self) -> str:
        """Hash, proxy mode: tuple -> why the database refuses it."""
        return self._name("held")

    @property
    def intents(self) -> str:
        """Hash, proxy mode: id -> a write that the database was asked to do."""
        return self._name("intents")

    @property
    def again(self) -> str:
        """Sorted set, proxy mode: tuples of which the database is told once more, by when."""
        return self._name("again")

    @property
    def pattern(self) -> str:
        """What SCAN matches: all keys of all partitions."""
        return f"{{{self.prefix}:*}}:*"

    def partition_in(self, name: str) -> str:
        """The partition that a key belongs to."""
        return name.removeprefix(f"{{{self.prefix}:").partition("}")[0]

    def known(self, node: str) -> str:
        """Hash: origin -> timestamp, the believed row of a node."""
        return self._name(f"known:{node}")

    def tuples(self, tenant: str, resource: str) -> str:
        """Hash of one resource: `relation#subject` -> state."""
        return self._name(f"t:{tenant}/{resource}")

    def stored(self, member: str) -> str:
        """The same by what `b:` sets hold: `tenant/resource`."""
        return self._name(f"t:{member}")
