"""Which tenants live apart: every set of regions that tenants are bound to is a partition.

A partition is present on the nodes of its regions and on no other, so that nothing has to be
filtered on the way to them. Owns its name, and what two nodes must agree on.
"""

import json
from collections.abc import Collection, Mapping
from hashlib import blake2b

from sidecar.core.tenants import Tenants
from sidecar.core.topology import RegionId

GLOBAL = "global.0"
"""The partition of the tenants that may be everywhere, the first of one."""

_NAME_BYTES = 5


class Residency:
    """Where the tenants of a deployment are stored.

    sets: partition -> its regions, sorted; without GLOBAL, which is everywhere. fingerprint: equal
    where every tenant has the same partition; "" where all are in GLOBAL.
    """

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        places = {name: place.regions for name, place in tenants.places.items()}
        bound = {regions for regions in places.values() if regions is not None}
        named = {partition_of(regions): tuple(sorted(regions)) for regions in bound}
        self.sets: Mapping[str, tuple[RegionId, ...]] = dict(sorted(named.items()))
        self.fingerprint = _digest(_meant(places)) if bound else ""

    def partition_of(self, tenant: str) -> str:
        """The partition of a tenant, whether it is on this node or not."""
        return partition_of(self._tenants.of(tenant).regions)


def partition_of(regions: Collection[str] | None) -> str:
    """The name of the partition of a set of regions, on whatever node; None: all regions.

    A set that happens to be all of them is a set: regions may come to the topology later.
    """
    return GLOBAL if regions is None else f"set-{_digest(sorted(set(regions)))}.0"


def _meant(places: Mapping[str, Collection[str] | None]) -> list[object]:
    """The entries that decide about regions. One without may still stand before a pattern's."""
    has_patterns = any("*" in name and regions is not None for name, regions in places.items())
    return [
        [name, None if regions is None else sorted(regions)]
        for name, regions in sorted(places.items())
        if has_patterns or regions is not None
    ]


def _digest(value: object) -> str:
    return blake2b(json.dumps(value).encode(), digest_size=_NAME_BYTES).hexdigest()
