"""Which node serves a request: the rules of the strategies, and the order of failover.

Pure decisions: how nodes are is told to it, and what it decides is carried out elsewhere
(`peer/forward.py`). Not to be confused with `core/routing.py`, which says who ships to whom.
"""

import itertools
from collections.abc import Callable, Iterator
from enum import StrEnum
from hashlib import blake2b
from typing import NamedTuple

from sidecar.core.tenants import Tenants, not_here
from sidecar.core.topology import (
    Node,
    NodeId,
    RegionId,
    ReplicationStrategy,
    Topology,
)
from sidecar.errors import Unavailable

RETRY_AFTER_S = 2


class RequestType(StrEnum):
    """What an application asks for."""

    READ = "read"
    WRITE = "write"


class NodeHealth(StrEnum):
    """How a node is. A degraded one serves, and says that something is amiss."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNREACHABLE = "unreachable"


class RoutingDecision(NamedTuple):
    """The node that is to serve a request, and the `host:port` of its peer listener."""

    region_id: RegionId
    node_id: NodeId
    endpoint: str


class Router:
    """Routes the requests that arrive at one node.

    health_of: how a node is, as far as this one knows. primary: the region that takes the writes
    under `primary_replica`, where it is not the configured one.
    """

    def __init__(
        self,
        topology: Topology,
        here: NodeId,
        health_of: Callable[[NodeId], NodeHealth],
        *,
        primary: Callable[[], RegionId | None] | None = None,
        tenants: Tenants | None = None,
    ) -> None:
        self._health_of = health_of
        self._here = topology.node(here)
        self._primary = primary or (lambda: self._topology.primary)
        self._tenants = tenants or Tenants()
        self.adapt(topology)

    def adapt(self, topology: Topology) -> None:
        """From here on requests go to the nodes of this topology."""
        self._topology = topology
        # Asked for each request, and mostly this.
        is_active_active = topology.strategy is ReplicationStrategy.ACTIVE_ACTIVE
        self._may_all_be_here = is_active_active and self._tenants.is_empty
        self._turns = {region.id: itertools.count() for region in topology.regions}

    def route(self, request: RequestType, tenant: str = "") -> RoutingDecision:
        """Where a request goes now.

        Raises Unavailable (`no_primary`, `no_home`, `no_healthy_node`) when nothing may serve it,
        Refused("tenant_not_here") when the tenant may not be in this region.
        """
        node = next(self.candidates(request, tenant), None)
        if node is None:
            raise self.nobody(request, tenant)
        return RoutingDecision(node.region, node.id, node.endpoint)

    def only_node(self, tenant: str, key: str) -> Node:
        """The one node that may serve a write with this idempotency key.

        Another one does not know whether it was carried out already, and could bring back what was
        deleted since. So it does not depend on who is healthy. Raises Unavailable where the region
        is not there.
        """
        home = self.home(RequestType.WRITE, tenant)
        if home is None or home == self._here.region:
            return self._here
        nodes = self._nodes_of(home)
        if not nodes:
            raise self.nobody(RequestType.WRITE, tenant)
        return max(nodes, key=lambda node: blake2b(f"{key}/{node.id}".encode()).digest())

    def is_here(self, request: RequestType, tenant: str = "") -> bool:
        """Whether this node serves a request itself: the usual case, decided without a search."""
        return self.may_be_here(request, tenant) and self._serves(self._here)

    def may_be_here(self, request: RequestType, tenant: str = "") -> bool:
        """Whether this node may serve a request, healthy or not."""
        if self._may_all_be_here:
            return True
        home = self.home(request, tenant)
        is_home = home is None or home == self._here.region
        return is_home and self.may_be_in(self._here.region, tenant)

    def candidates(self, request: RequestType, tenant: str = "") -> Iterator[Node]:
        """The nodes that may serve a request, the preferred ones first.

        Raises Refused("tenant_not_here") when the tenant may not be in this region.
        """
        if not self.may_be_in(self._here.region, tenant):
            raise not_here(tenant, self._here.region, self._tenants.of(tenant))
        home = self.home(request, tenant)
        regions = self._regions_from_here(tenant) if home is None else [home]
        for region in regions:
            yield from self._of_region(region)

    def home(self, request: RequestType, tenant: str = "") -> RegionId | None:
        """The one region that may take a request; None: any."""
        if request is RequestType.READ:
            return None
        match self._topology.strategy:
            case ReplicationStrategy.ACTIVE_ACTIVE:
                return None
            case ReplicationStrategy.PRIMARY_REPLICA:
                return self._primary()
            case ReplicationStrategy.MULTI_MASTER:
                return self._tenants.of(tenant).home or self._here.region

    def is_region_available(self, region: RegionId) -> bool:
        """Whether some node of a region serves."""
        return next(self._of_region(region), None) is not None

    def get_available_regions(self) -> list[RegionId]:
        """The regions in which some node serves, in configured order."""
        return [r.id for r in self._topology.regions if self.is_region_available(r.id)]

    def _regions_from_here(self, tenant: str) -> list[RegionId]:
        others = (r.id for r in self._topology.regions if r.id != self._here.region)
        return [self._here.region, *(r for r in others if self.may_be_in(r, tenant))]

    def may_be_in(self, region: RegionId, tenant: str) -> bool:
        """Whether a region may hold a tenant."""
        allowed = self._tenants.of(tenant).regions
        return allowed is None or region in allowed

    def _of_region(self, region: RegionId) -> Iterator[Node]:
        """Its nodes that serve: this one, those of the same zone, the rest; each in its turn."""
        serving = [node for node in self._nodes_of(region) if self._serves(node)]
        if len(serving) > 1:
            turn = next(self._turns[region]) % len(serving)
            serving = serving[turn:] + serving[:turn]
        yield from sorted(serving, key=self._distance)

    def _nodes_of(self, region: RegionId) -> list[Node]:
        """None of a region that is not there: the one that was promoted may have been removed."""
        return [node for node in self._topology.nodes() if node.region == region]

    def _serves(self, node: Node) -> bool:
        return self._health_of(node.id) is not NodeHealth.UNREACHABLE

    def _distance(self, node: Node) -> tuple[bool, bool, bool]:
        is_near = (node.region, node.zone) == (self._here.region, self._here.zone)
        return (
            node.id != self._here.id,
            not is_near,
            self._health_of(node.id) is not NodeHealth.HEALTHY,
        )

    def nobody(self, request: RequestType, tenant: str = "") -> Unavailable:
        """Why a request cannot be served by any node."""
        home = self.home(request, tenant)
        if home is None:
            return Unavailable(
                "no_healthy_node",
                "no node of the topology that may serve this is healthy, as far as node "
                f"{self._here.id} can tell",
                RETRY_AFTER_S,
            )
        if self._topology.strategy is ReplicationStrategy.PRIMARY_REPLICA:
            return Unavailable(
                "no_primary",
                f"no node of the primary region {home} is healthy, as far as node {self._here.id} "
                "can tell; writes wait for it, or for `sidecar promote` of another region",
                RETRY_AFTER_S,
            )
        return Unavailable(
            "no_home",
            f"writes of this tenant go to region {home}, and no node there is healthy, as far as "
            f"node {self._here.id} can tell",
            RETRY_AFTER_S,
        )
