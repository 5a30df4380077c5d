"""Writes that came with pages from a source which lost them later, and which no feed has.

They stand above the end of their incarnation (DESIGN.md 3.7): no vector will ever cover them. This
node writes their tuples again, as they show here: the new writes reach everybody, and overwrite
what the lost ones had.
"""

import logging

from sidecar.agent.peers import Peers, Replica
from sidecar.store.calls import Phase

log = logging.getLogger(__name__)


async def let_go(store: Replica, peers: Peers) -> None:
    """Forget what was taken over with pages, where nothing more depends on it.

    Raises Unavailable when the store is away or takes no writes.
    """
    has_more = True
    while has_more:
        is_whole = peers.stability.vector is not None
        orphans, has_more = await store.let_go(peers.rows.ended, is_whole)
        # Whoever has not heard of the latest writes would write above them.
        if orphans and (store.phase is not Phase.SERVING or not peers.is_level):
            return
        done = [orphan for orphan in orphans if await store.write_again(orphan)]
        if done:
            origins = sorted({orphan.lost[1] for orphan in done})
            log.warning(
                "writes that their node has lost came here with a state transfer, and are written "
                "again by this node",
                extra={"origins": ", ".join(origins), "tuples": len(done)},
            )
        has_more = has_more or bool(done)
