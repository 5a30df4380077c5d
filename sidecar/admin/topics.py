"""What the dashboard shows of this node alone: its conflicts, what is held, its tenants."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from sidecar.admin.conflicts import conflict_json
from sidecar.api.answers import compact
from sidecar.core.tenants import Tenants
from sidecar.errors import Unavailable
from sidecar.partition import Partition
from sidecar.store.conflicts import place_of

MAX_CONFLICTS = 50
"""Conflicts that are shown; the page asks `GET /conflicts` for more."""
MAX_CONDITION = 2_000
"""Characters of a condition that are shown; the rest is cut."""
MAX_HELD = 50
MAX_TENANTS = 200
"""Tenants that are shown; how many there are is told in any case."""
COUNTED_AT_ONCE = 2_000
"""Relationships counted in one call to Redis, which it blocks for about a millisecond."""
REST = 30
"""Between two calls rests so many times what one took: counting takes 3 % of a core."""
RECOUNT_S = 60.0


class ConflictsTopic:
    """The event `conflicts`: the newest ones, whenever there is a new one."""

    name, period_s = "conflicts", 1.0

    def __init__(self, partitions: Sequence[Partition]) -> None:
        self._partitions = partitions
        self._newest: list[str] | None = None

    async def news(self) -> str | None:
        """The newest conflicts of all partitions, if there are others than before."""
        stores = [one.store for one in self._partitions]
        tops = [await store.conflicts(None, 1) for store in stores]
        newest = [entry.cursor for top in tops for entry in top]
        if newest == self._newest:
            return None
        logs = [await store.conflicts(None, MAX_CONFLICTS) for store in stores]
        entries = sorted((e for entries in logs for e in entries), key=place_of, reverse=True)
        shown = [conflict_json(entry) for entry in entries[:MAX_CONFLICTS]]
        self._newest = newest
        cut = [_without_long_conditions(text) for text in shown]
        more = compact(entries[MAX_CONFLICTS - 1].cursor if len(entries) >= MAX_CONFLICTS else None)
        return f'{{"conflicts":[{",".join(cut)}],"cursor":{more}}}'

    def forget(self) -> None:
        """What comes next is news."""
        self._newest = None


def _without_long_conditions(text: str) -> str:
    """The same conflict with long conditions cut: then a condition is the beginning of its text."""
    if len(text) <= MAX_CONDITION:
        return text
    conflict = json.loads(text)
    for version in conflict.values():
        if isinstance(version, dict) and "condition" in version:
            condition = compact(version["condition"])
            if len(condition) > MAX_CONDITION:
                version["condition"] = condition[:MAX_CONDITION] + "…"
    return compact(conflict)


class HeldTopic:
    """The event `held`: what the database behind this node refuses, when that changes."""

    name, period_s = "held", 2.0

    def __init__(self, held: Callable[[int], Awaitable[list[dict[str, str]]]]) -> None:
        self._held = held
        self._told: str | None = None

    async def news(self) -> str | None:
        """The first of them, if they are others than before."""
        rows = await self._held(MAX_HELD)
        text = compact({"held": rows[:MAX_HELD]})
        if text == self._told:
            return None
        self._told = text
        return text

    def forget(self) -> None:
        """What comes next is news."""
        self._told = None


class TenantsTopic:
    """The event `tenants`: who is configured, who has something here, and how much.

    Of a tenant that may not be in this region nothing is here, so nothing is shown but its line of
    the configuration.
    """

    name, period_s = "tenants", 1.0

    def __init__(self, partitions: Sequence[Partition], tenants: Tenants) -> None:
        self._partitions, self._tenants = partitions, tenants
        self._counts: Mapping[str, int] | None = None
        self._told: str | None = None
        self._counting = _Counting(partitions)

    async def news(self) -> str | None:
        """The tenants, if something has changed; counts on by a call or two."""
        await self._counting.go_on()
        names = sorted({t for one in self._partitions for t in await one.store.tenants()})
        configured = self._tenants.places
        rows = [*dict.fromkeys([*configured, *names])]
        text = compact(
            {
                "tenants": [self._row(name, set(names)) for name in rows[:MAX_TENANTS]],
                "total": len(rows),
                "counted_at": self._counting.counted_at_ms,
            }
        )
        if text == self._told:
            return None
        self._told = text
        return text

    def _row(self, name: str, here: set[str]) -> dict[str, Any]:
        place = self._tenants.places.get(name) or self._tenants.of(name)
        return {
            "tenant": name,
            "is_configured": name in self._tenants.places,
            "is_here": name in here,
            "home": place.home,
            "regions": None if place.regions is None else sorted(place.regions),
            "relationships": self._counting.counts.get(name),
        }

    def forget(self) -> None:
        """What comes next is news."""
        self._told = None


class _Counting:
    """Counts the relationships of each tenant, a piece at a time, while somebody looks."""

    def __init__(self, partitions: Sequence[Partition]) -> None:
        self._partitions = partitions
        self.counts: Mapping[str, int] = {}
        self.counted_at_ms: int | None = None
        self._ended_s = -RECOUNT_S
        self._found: Counter[str] = Counter()
        self._at = 0, 0

    async def go_on(self) -> None:
        """Count for at most a second, most of it resting."""
        clock = asyncio.get_running_loop().time
        until_s = clock() + 1.0
        if self._at == (0, 0) and clock() - self._ended_s < RECOUNT_S:
            return
        while clock() < until_s:
            partition, bucket = self._at
            if partition == len(self._partitions):
                self.counts, self._found, self._at = self._found, Counter(), (0, 0)
                self._ended_s, self.counted_at_ms = clock(), time.time_ns() // 1_000_000
                return
            began_s = clock()
            try:
                store = self._partitions[partition].store
                following, counted = await store.tuples_per_tenant(bucket, COUNTED_AT_ONCE)
            except Unavailable:
                self._found, self._at = Counter(), (0, 0)
                raise
            self._found.update(counted)
            self._at = (partition, following) if following is not None else (partition + 1, 0)
            await asyncio.sleep((clock() - began_s) * REST)
