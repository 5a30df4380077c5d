"""Regions, zones and nodes, and which region ships to which.

Owns the shape of a deployment and the rules that make it sound. Pure: it knows no file, no
environment and no address beyond the text of an endpoint; whether a node is reachable is not its
business.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Self

from sidecar.errors import Refused

ID_RULE = "1 to 32 of a-z, 0-9 and '-', not starting with '-'"
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


class TopologyError(Refused, ValueError):
    """A topology that cannot work; the message names the place and what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__("bad_topology", message)


def is_id(text: str) -> bool:
    """Whether `text` may name a region, a zone or a node."""
    return _ID.fullmatch(text) is not None


class _Id(str):
    """An id is its text; being a type of its own keeps region and node ids apart."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not is_id(text):
            raise TopologyError(f"{text!r} is not an id: {ID_RULE}")
        return super().__new__(cls, text)


class RegionId(_Id):
    """Names a geographic region, as `us-west-1`."""

    __slots__ = ()


class ZoneId(_Id):
    """Names an availability zone within its region, as `us-west-1a`."""

    __slots__ = ()


class NodeId(_Id):
    """Names a node; unique in the whole topology, because versions carry it."""

    __slots__ = ()


class ReplicationStrategy(StrEnum):
    ACTIVE_ACTIVE = "active_active"
    PRIMARY_REPLICA = "primary_replica"
    MULTI_MASTER = "multi_master"


@dataclass(frozen=True, slots=True)
class Node:
    """One sidecar with its data set; `endpoint` is the `host:port` of its peer listener."""

    id: NodeId
    region: RegionId
    zone: ZoneId
    endpoint: str


@dataclass(frozen=True, slots=True)
class Zone:
    id: ZoneId
    name: str
    nodes: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Region:
    id: RegionId
    name: str
    is_primary: bool = False
    zones: tuple[Zone, ...] = ()

    def nodes(self) -> tuple[Node, ...]:
        return tuple(node for zone in self.zones for node in zone.nodes)


@dataclass(frozen=True, slots=True)
class Topology:
    """A deployment as one of its regions sees it.

    `replication_targets` names the regions each region ships to; None means every region to every
    other. A region that a given map leaves out ships to no other region.
    """

    strategy: ReplicationStrategy
    local_region: RegionId
    regions: tuple[Region, ...]
    replication_targets: Mapping[RegionId, tuple[RegionId, ...]] | None = None

    def nodes(self) -> tuple[Node, ...]:
        """Every node, in configured order."""
        return tuple(node for region in self.regions for node in region.nodes())

    def node(self, node_id: str) -> Node:
        for node in self.nodes():
            if node.id == node_id:
                return node
        raise TopologyError(f"there is no node {node_id!r}; nodes: {_listed(self._node_ids())}")

    def region(self, region_id: str) -> Region:
        for region in self.regions:
            if region.id == region_id:
                return region
        known = _listed(region.id for region in self.regions)
        raise TopologyError(f"there is no region {region_id!r}; regions: {known}")

    @property
    def primary(self) -> RegionId | None:
        """The region with `is_primary`; promotions are not its business."""
        return next((region.id for region in self.regions if region.is_primary), None)

    def region_of(self, node_id: str) -> RegionId:
        return self.node(node_id).region

    def target_regions(self, region_id: str) -> tuple[RegionId, ...]:
        """The other regions that `region_id` ships to, in configured order."""
        if self.replication_targets is None:
            return tuple(region.id for region in self.regions if region.id != region_id)
        return self.replication_targets.get(RegionId(region_id), ())

    def targets_of(self, node_id: str) -> tuple[Node, ...]:
        """The nodes that `node_id` ships to: its own region's others, then the target regions'."""
        home = self.region_of(node_id)
        near = tuple(node for node in self.region(home).nodes() if node.id != node_id)
        far = (node for target in self.target_regions(home) for node in self.region(target).nodes())
        return near + tuple(far)

    def reachable_from(self, region_id: str) -> frozenset[RegionId]:
        """The regions that a write of `region_id` arrives in, its own among them."""
        reached = {RegionId(region_id)}
        frontier = list(reached)
        while frontier:
            found = set(self.target_regions(frontier.pop())) - reached
            reached |= found
            frontier.extend(found)
        return frozenset(reached)

    def unreached(self) -> Iterator[tuple[RegionId, RegionId]]:
        """Pairs (from, to) of regions where the writes of the first never arrive in the second."""
        for source in self.regions:
            reached = self.reachable_from(source.id)
            yield from ((source.id, to.id) for to in self.regions if to.id not in reached)

    def relayed(self) -> Iterator[tuple[RegionId, RegionId]]:
        """Pairs (from, to) of regions without a direct session: their writes need a relay."""
        for source in self.regions:
            direct = {source.id, *self.target_regions(source.id)}
            yield from ((source.id, to.id) for to in self.regions if to.id not in direct)

    def is_strongly_connected(self) -> bool:
        return next(self.unreached(), None) is None

    def is_full_mesh(self) -> bool:
        return next(self.relayed(), None) is None

    def _node_ids(self) -> Iterator[str]:
        return (node.id for node in self.nodes())


class Problem(NamedTuple):
    """What is wrong, and where: a path of names and positions, as `("regions", 1, "id")`."""

    place: tuple[str | int, ...]
    text: str


def problems(topology: Topology) -> list[Problem]:
    """Everything that keeps a topology from working, in the order of its parts.

    Connections are judged only when the parts themselves are sound.
    """
    found = [
        *_repeated_ids(topology),
        *_primaries(topology),
        *_local_region(topology),
        *_targets(topology),
    ]
    return found or list(_connections(topology))


def _repeated_ids(topology: Topology) -> Iterator[Problem]:
    regions: set[str] = set()
    nodes: dict[str, str] = {}
    endpoints: dict[str, str] = {}
    for i, region in enumerate(topology.regions):
        if region.id in regions:
            yield Problem(("regions", i, "id"), f"region {region.id!r} is there twice")
        regions.add(region.id)
        zones: set[str] = set()
        for j, zone in enumerate(region.zones):
            place = ("regions", i, "zones", j)
            if zone.id in zones:
                text = f"zone {zone.id!r} is there twice in region {region.id}"
                yield Problem((*place, "id"), text)
            zones.add(zone.id)
            for k, node in enumerate(zone.nodes):
                spot = (*place, "nodes", k)
                if node.id in nodes:
                    text = f"node {node.id!r} is also in region {nodes[node.id]}; ids are unique"
                    yield Problem((*spot, "id"), text)
                elif node.endpoint in endpoints:
                    other = endpoints[node.endpoint]
                    text = f"{node.endpoint!r} is the endpoint of node {other} already"
                    yield Problem((*spot, "endpoint"), text)
                nodes.setdefault(node.id, region.id)
                endpoints.setdefault(node.endpoint, node.id)


def _primaries(topology: Topology) -> Iterator[Problem]:
    primaries = [(i, region.id) for i, region in enumerate(topology.regions) if region.is_primary]
    if len(primaries) > 1:
        first, (i, second) = primaries[0][1], primaries[1]
        place = ("regions", i, "is_primary")
        yield Problem(place, f"{second} and {first} are both primary; at most one region may be")
    elif not primaries and topology.strategy is ReplicationStrategy.PRIMARY_REPLICA:
        text = "primary_replica needs one region with is_primary: true"
        yield Problem(("regions",), text)


def _local_region(topology: Topology) -> Iterator[Problem]:
    known = [region.id for region in topology.regions]
    if topology.local_region not in known:
        text = f"there is no region {topology.local_region!r}; regions: {_listed(known)}"
        yield Problem(("local_region",), text)


def _targets(topology: Topology) -> Iterator[Problem]:
    known = [region.id for region in topology.regions]
    for source, targets in (topology.replication_targets or {}).items():
        place = ("replication_targets", source)
        if source not in known:
            text = f"there is no region {source!r}; regions: {_listed(known)}"
            yield Problem(place, text)
        for i, target in enumerate(targets):
            if target not in known:
                text = f"there is no region {target!r}; regions: {_listed(known)}"
                yield Problem((*place, i), text)
            elif target == source:
                text = "a region does not target itself; its nodes replicate to each other anyway"
                yield Problem((*place, i), text)
            elif target in targets[:i]:
                yield Problem((*place, i), f"region {target!r} is there twice")


def _connections(topology: Topology) -> Iterator[Problem]:
    # A replica that cannot ship back is a matter of who may be promoted, so not wrong by itself.
    if topology.strategy is ReplicationStrategy.PRIMARY_REPLICA:
        return
    missing = next(topology.unreached(), None)
    if missing is not None:
        source, to = missing
        text = (
            f"writes of {source} would never reach {to}: with {topology.strategy} every region "
            "needs a path to every other (leave replication_targets out for all to all)"
        )
        yield Problem(("replication_targets",), text)


def _listed(ids: Iterable[str]) -> str:
    return ", ".join(ids) or "none"


class TopologyBuilder:
    """Puts a topology together step by step; mistakes are told by `build`.

    Regions without nodes are allowed here: a plan of regions is a topology too.
    """

    def __init__(self, strategy: ReplicationStrategy, local_region: RegionId) -> None:
        self._strategy = strategy
        self._local_region = local_region
        self._regions: list[tuple[RegionId, str, bool]] = []
        self._zones: list[tuple[RegionId, ZoneId, str]] = []
        self._nodes: list[Node] = []
        self._targets: dict[RegionId, tuple[RegionId, ...]] | None = None

    def add_region(self, region: RegionId, name: str, is_primary: bool = False) -> Self:
        self._regions.append((region, name, is_primary))
        return self

    def add_zone(self, region: RegionId, zone: ZoneId, name: str) -> Self:
        self._zones.append((region, zone, name))
        return self

    def add_node(self, region: RegionId, zone: ZoneId, node: NodeId, endpoint: str) -> Self:
        self._nodes.append(Node(node, region, zone, endpoint))
        return self

    def set_replication_targets(self, region: RegionId, targets: Sequence[RegionId]) -> Self:
        """Name the regions that `region` ships to; once one is named, unnamed ones ship nowhere."""
        self._targets = {**(self._targets or {}), region: tuple(targets)}
        return self

    def build(self) -> Topology:
        """The topology, or a TopologyError that says what is wrong with it."""
        self._refuse_strays()
        regions = tuple(
            Region(region, name, is_primary, self._zones_of(region))
            for region, name, is_primary in self._regions
        )
        topology = Topology(self._strategy, self._local_region, regions, self._targets)
        for place, text in problems(topology):
            raise TopologyError(f"{spell(place)}: {text}")
        return topology

    def _refuse_strays(self) -> None:
        regions = {region for region, _, _ in self._regions}
        zones = {(region, zone) for region, zone, _ in self._zones}
        for region, zone, _ in self._zones:
            if region not in regions:
                raise TopologyError(f"zone {zone!r}: there is no region {region!r}; add it first")
        for node in self._nodes:
            if (node.region, node.zone) not in zones:
                where = f"zone {node.zone!r} in region {node.region!r}"
                raise TopologyError(f"node {node.id!r}: there is no {where}; add it first")

    def _zones_of(self, region: RegionId) -> tuple[Zone, ...]:
        return tuple(
            Zone(zone, name, self._nodes_of(region, zone))
            for owner, zone, name in self._zones
            if owner == region
        )

    def _nodes_of(self, region: RegionId, zone: ZoneId) -> tuple[Node, ...]:
        return tuple(node for node in self._nodes if (node.region, node.zone) == (region, zone))


def spell(place: Sequence[str | int]) -> str:
    """A path as people write it: `regions[1].zones[0].id`."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")
