"""Whether every tenant that is stored is stored where the settings say.

A tenant whose regions were changed is not moved by itself: its tuples lie in another partition than
the one that is asked for it, perhaps on nodes that may not have them. Owns finding such tuples and
what is said about them.
"""

from collections.abc import Callable, Collection

from sidecar.errors import Refused
from sidecar.store import scripts
from sidecar.store.keys import PARTITION, Keys
from sidecar.store.link import Link

MAX_NAMED = 5


async def check_placement(
    link: Link, keys: Keys, here: Collection[str], partition_of: Callable[[str], str]
) -> None:
    """Look at the partition of `keys`; that of everywhere also looks at those of former settings.

    here: the partitions of this node. partition_of: where a tenant belongs. Raises
    Refused("tenant_elsewhere"), Unavailable.
    """
    looked_at = {keys.partition}
    if keys.partition == PARTITION:
        known = await link.call("SMEMBERS", keys.partitions)
        looked_at |= {name.decode() for name in known} - set(here)
    elif not await link.call("SISMEMBER", keys.partitions, keys.partition):
        # Asked first: a full Redis takes no SADD, and must open.
        await link.call("SADD", keys.partitions, keys.partition)
    for partition in sorted(looked_at):
        stored = await link.call("SMEMBERS", keys.of(partition).tenants)
        tenants = sorted(name.decode() for name in stored)
        strangers = [t for t in tenants if partition not in here or partition_of(t) != partition]
        found = [t for t in strangers if await _shows(link, keys.of(partition), t)]
        if found:
            raise _elsewhere(partition, found)


async def _shows(link: Link, keys: Keys, tenant: str) -> bool:
    """Whether a tenant has a visible tuple; what is remembered as deleted is none."""
    cursor = ""
    while True:
        page = await link.run(scripts.script("page"), keys.meta, tenant, "", "", "", "", 1, cursor)
        _, rest, _, _, *rows = page
        if rows or not rest:
            return bool(rows)
        cursor = rest.decode()


def _elsewhere(partition: str, tenants: list[str]) -> Refused:
    more = f" and {len(tenants) - MAX_NAMED} more" if len(tenants) > MAX_NAMED else ""
    return Refused(
        "tenant_elsewhere",
        f"replication.tenants: the tuples of {', '.join(tenants[:MAX_NAMED])}{more} are stored in "
        f"partition {partition}, and the `regions` of this configuration say another one; tenants "
        "are not moved by themselves: set `regions` back, export the tenant, delete it, change "
        "`regions` on all nodes, and import it (docs/tenants.md)",
    )
