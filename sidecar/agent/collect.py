"""Collection: what every node has seen and nobody shows any more goes.

Also the pulse of `Peers`, which decides what that is.
"""

import asyncio
from collections.abc import Callable

from sidecar.agent.orphans import let_go
from sidecar.agent.peers import Peers
from sidecar.errors import Unavailable
from sidecar.metrics import Metrics
from sidecar.store.redis_store import RedisStore

TICK_S = 0.5


async def collect(
    store: RedisStore, peers: Peers, metrics: Metrics, now_us: Callable[[], int]
) -> None:
    """For ever; a store that is away is waited for. now_us: the wall clock."""

    async def pause() -> None:
        await asyncio.sleep(0)

    while True:
        await store.opened()
        try:
            await peers.tick()
            store.refuse(peers.refusal, peers.write_refusal)
            metrics.parked(len(await store.parked()))
            await peers.collect(pause)
            await let_go(store, peers)
            metrics.clock_ahead(peers.clock_ahead_us / 1e6)
            oldest = await store.oldest_unsettled()
            # Another node wrote it, whose clock may be ahead.
            waits_s = max(0.0, (now_us() - oldest) / 1e6) if oldest else 0.0
            metrics.unsettled(await store.unsettled(), peers.stability.held_by, waits_s)
        except Unavailable:
            # Said once where it was noticed.
            await asyncio.sleep(TICK_S)
        await asyncio.sleep(TICK_S)
