"""Write concern: how many regions must have a write, and how far each of them has come."""

from collections.abc import Iterable
from enum import StrEnum


class WriteConcern(StrEnum):
    """`X-Write-Concern`: local is the region that accepts the write."""

    LOCAL = "local"
    MAJORITY = "majority"
    ALL = "all"

    def regions_of(self, configured: int) -> int:
        """How many of so many configured regions must have the write; the accepting one counts."""
        match self:
            case WriteConcern.LOCAL:
                return 1
            case WriteConcern.MAJORITY:
                return configured // 2 + 1
            case WriteConcern.ALL:
                return configured


class Reached:
    """How far the writes of one origin have come in each region; a region has what one node has.

    It only grows: what a region once acknowledged stays acknowledged.
    """

    def __init__(self, regions: Iterable[str]) -> None:
        self._timestamps = dict.fromkeys(regions, 0)

    def note(self, region: str, timestamp: int) -> bool:
        """A node of the region has everything up to here; whether that is news."""
        if timestamp <= self._timestamps[region]:
            return False
        self._timestamps[region] = timestamp
        return True

    def in_regions(self, count: int) -> int:
        """The timestamp up to which so many regions have everything."""
        return sorted(self._timestamps.values(), reverse=True)[count - 1]

    def missing(self, timestamp: int) -> list[str]:
        """The regions that do not have it, in configured order."""
        return [region for region, reached in self._timestamps.items() if reached < timestamp]
