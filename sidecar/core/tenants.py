"""Which tenant is at home where, and where it may be at all.

Tenants are named exactly, or by a pattern in which `*` stands for any characters: the exact name
decides, then the longest pattern. A tenant that no entry fits may be everywhere.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import NamedTuple

from sidecar.core.topology import RegionId
from sidecar.errors import Refused

CACHED = 10_000


class Place(NamedTuple):
    """home: the region that takes the writes; None: the one they arrive in.

    regions: those that may hold the tenant; None: all.
    """

    home: RegionId | None = None
    regions: frozenset[RegionId] | None = None


EVERYWHERE = Place()


class Tenants:
    """The places of tenants, by name or pattern."""

    def __init__(self, places: Mapping[str, Place] | None = None) -> None:
        self.places = dict(places or {})
        self._exact = {name: place for name, place in self.places.items() if "*" not in name}
        patterns = ((name, place) for name, place in self.places.items() if "*" in name)
        self._patterns = sorted(patterns, key=lambda named: (-len(named[0]), named[0]))
        self._cached = lru_cache(CACHED)(self._find)

    @property
    def is_empty(self) -> bool:
        """Whether every tenant may be everywhere and is at home where it is written."""
        return not self._exact and not self._patterns

    def of(self, tenant: str) -> Place:
        """The place of a tenant."""
        if not self._patterns:
            return self._exact.get(tenant, EVERYWHERE)
        return self._cached(tenant)

    def _find(self, tenant: str) -> Place:
        if tenant in self._exact:
            return self._exact[tenant]
        fitting = (place for pattern, place in self._patterns if fnmatchcase(tenant, pattern))
        return next(fitting, EVERYWHERE)


def not_here(tenant: str, region: RegionId, place: Place) -> Refused:
    """Why a request of a tenant is not served in a region."""
    allowed = ", ".join(sorted(place.regions or ()))
    return Refused(
        "tenant_not_here",
        f"tenant {tenant} may be in {allowed} only, and this is {region}; ask a node there",
        403,
    )
