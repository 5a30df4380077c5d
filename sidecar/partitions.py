"""The partitions of a node: that of everywhere, and one for each set of regions it belongs to.

Owns which tenant is served by which partition, and what is told of all of them together. They share
the Redis, the metrics and the listeners, and are independent of each other otherwise: one that has
lost something catches up while the others serve.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Self

from sidecar.config import Config
from sidecar.core.residency import GLOBAL
from sidecar.core.tenants import not_here
from sidecar.metrics import Metrics
from sidecar.partition import Partition
from sidecar.peer.calls import PeerCalls
from sidecar.peer.client import Dialler
from sidecar.store.placement import check_placement


class Partitions:
    """Those of `config.this_node` at the Redis `url`, by name; GLOBAL comes first.

    Use as an async context manager: it opens the stores and closes them. `loops` are to run
    meanwhile. session_ended: told of a node whose session stood, and does no longer.
    """

    def __init__(
        self,
        config: Config,
        url: str,
        metrics: Metrics,
        dialler: Dialler,
        calls: PeerCalls,
        *,
        session_ended: Callable[[str], None] = lambda node: None,
    ) -> None:
        self._region, self._tenants = config.this_node.region, config.tenants
        sets = config.residency.sets
        names = (GLOBAL, *(name for name, regions in sets.items() if self._region in regions))
        check = partial(
            check_placement, here=frozenset(names), partition_of=config.residency.partition_of
        )
        self._by_name = {
            name: Partition(
                config,
                url,
                metrics,
                dialler,
                calls,
                name=name,
                check=check,
                session_ended=session_ended,
            )
            for name in names
        }
        # By the set itself: it is looked up for each request.
        self._by_regions = {
            None if one.regions is None else frozenset(one.regions): one for one in self
        }
        self._stack = AsyncExitStack()

    def __iter__(self) -> Iterator[Partition]:
        return iter(self._by_name.values())

    @property
    def everywhere(self) -> Partition:
        """The partition of the tenants that no set of regions binds."""
        return self._by_name[GLOBAL]

    def of(self, tenant: str) -> Partition:
        """The one that serves a tenant. Raises Refused("tenant_not_here")."""
        place = self._tenants.of(tenant)
        partition = self._by_regions.get(place.regions)
        if partition is None:
            raise not_here(tenant, self._region, place)
        return partition

    async def __aenter__(self) -> Self:
        for one in self:
            await self._stack.enter_async_context(one)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    async def adapt(self, config: Config) -> None:
        """Take up the topology of `config`, which is the same in everything else."""
        for one in self:
            await one.adapt(config)

    async def opened(self) -> None:
        """Wait until all stores are open."""
        for one in self:
            await one.store.opened()

    def loops(self) -> Iterator[Coroutine[None, None, None]]:
        """What runs as long as the node does."""
        for one in self:
            yield from one.loops()

    def call(self, node: str) -> None:
        """A node serves again: try to reach it now."""
        for one in self:
            one.shipping.call(node)

    async def hand_over(self, timeout_s: float) -> None:
        """Wait until every connected target has what was written here, for so long at most."""
        await asyncio.gather(*(one.shipping.hand_over(timeout_s) for one in self))
