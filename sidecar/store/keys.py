"""The names of the keys of one partition; nowhere else in Python are they spelled.

`lua/lib/keys.lua` is the other half: what only scripts touch is named there.
"""

from dataclasses import dataclass

PARTITION = "global.0"
"""The partition of the tenants that live everywhere, the first of one."""


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
    def tenants(self) -> str:
        """Set: tenants that have tuples."""
        return self._name("tenants")

    def tuples(self, tenant: str, resource: str) -> str:
        """Hash of one resource: `relation#subject` -> state."""
        return self._name(f"t:{tenant}/{resource}")
