"""The shape of the settings: names, defaults, limits, and the relations between them.

Owns what a setting may be and what does not go together. It reads nothing: where settings come from
and which source is the stronger is the business of `config`.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from sidecar.core.conflict import USES_PRIORITIES, ConflictResolutionStrategy
from sidecar.core.residency import Residency
from sidecar.core.tenants import Place, Tenants
from sidecar.core.topology import (
    Node,
    NodeId,
    Problem,
    Region,
    RegionId,
    ReplicationStrategy,
    Topology,
    Zone,
    ZoneId,
    problems,
    spell,
)
from sidecar.errors import Refused
from sidecar.section import Section
from sidecar.security.settings import SecuritySettings, idle_proofs
from sidecar.values import (
    Address,
    DatabaseUrl,
    Endpoint,
    ForeignId,
    Id,
    KeyPrefix,
    ListenAddress,
    Name,
    Relation,
    ResourceType,
    StoreUrl,
    TenantName,
    TenantPattern,
    Whole,
    safe_url,
)

ENVIRONMENT = "INFERADB"


# -- sections --------------------------------------------------------------------------------------


class Listen(Section):
    app: ListenAddress = "127.0.0.1:8080"
    peer: ListenAddress | None = None
    admin: ListenAddress = "127.0.0.1:8082"


class RedisSettings(Section):
    url: StoreUrl = Field(default="embedded:./data", repr=False)
    prefix: KeyPrefix = "sidecar"

    @property
    def safe_url(self) -> str:
        """The URL without its password, for logs and status."""
        return safe_url(self.url)


class StoreSettings(Section):
    """What one region's OpenFGA calls a store, and its models by their names here."""

    store: ForeignId
    models: dict[Name, ForeignId] = Field(default={})


class DatabaseSettings(Section):
    """The database behind the sidecar. `stores`: by tenant and region, for openfga only."""

    dialect: Literal["spicedb", "openfga", "passthrough"]
    url: DatabaseUrl
    on_unknown: Literal["refuse", "pass"] = "refuse"
    token_file: Path | None = None
    max_connections: Whole = Field(default=256, ge=1, le=65_536)
    stores: dict[TenantName, dict[Id, StoreSettings]] = Field(default={})


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    file: Path | None = None


class Agent(Section):
    """`batch_size` and `buffer_size` count changes."""

    max_retries: Whole = Field(default=5, ge=0, le=1_000)
    retry_delay_ms: Whole = Field(default=100, ge=1, le=60_000)
    batch_size: Whole = Field(default=100, ge=1, le=10_000)
    request_timeout_secs: Whole = Field(default=10, ge=1, le=600)
    buffer_size: Whole = Field(default=10_000, ge=1, le=10_000_000)


class NodeSettings(Section):
    id: Id
    endpoint: Endpoint


class ZoneSettings(Section):
    id: Id
    name: Name | None = None
    nodes: tuple[NodeSettings, ...] = ()


class RegionSettings(Section):
    id: Id
    name: Name | None = None
    is_primary: bool = False
    zones: tuple[ZoneSettings, ...] = ()


class ConflictOverride(Section):
    """Another strategy for one relation or for one resource type."""

    relation: Relation | None = None
    resource_type: ResourceType | None = None
    strategy: ConflictResolutionStrategy


class Tenant(Section):
    """Where writes of a tenant go (`home`) and where it may be at all (`regions`).

    Its name may be a pattern with `*`; the exact name beats patterns, the longest pattern others.
    """

    home: Id | None = None
    regions: tuple[Id, ...] | None = None


class Replication(Section):
    strategy: ReplicationStrategy = ReplicationStrategy.ACTIVE_ACTIVE
    local_region: Id | None = None
    conflict_resolution: ConflictResolutionStrategy = ConflictResolutionStrategy.LAST_WRITE_WINS
    region_priorities: tuple[Id, ...] = ()
    conflict_overrides: tuple[ConflictOverride, ...] = ()
    custom_script: Path | None = None
    tenants: dict[TenantPattern, Tenant] = Field(default={})
    agent: Agent = Agent()
    window: Whole = Field(default=128, ge=1, le=1_024)
    feed_retention_s: Whole = Field(default=3_600, ge=0, le=2_592_000)
    feed_max_entries: Whole = Field(default=10_000_000, ge=1, le=1_000_000_000)
    max_clock_skew_ms: Whole = Field(default=60_000, ge=1, le=86_400_000)
    probe_interval_max_s: Whole = Field(default=30, ge=1, le=3_600)
    anti_entropy_interval_s: Whole = Field(default=600, ge=1, le=86_400)
    regions: tuple[RegionSettings, ...] = ()
    replication_targets: dict[Id, tuple[Id, ...]] | None = None


class Config(Section):
    """Every setting of one node. `load` makes one; relations between settings hold."""

    node: Id | None = None
    listen: Listen = Listen()
    redis: RedisSettings = RedisSettings()
    database: DatabaseSettings | None = None
    security: SecuritySettings | None = None
    drain_timeout_s: Whole = Field(default=20, ge=0, le=3_600)
    drain_grace_s: Whole | None = Field(default=None, ge=0, le=3_600)
    log: Log = Log()
    replication: Replication = Replication()

    @model_validator(mode="after")
    def _relations_hold(self) -> Self:
        found = [
            *(_under_replication(problem) for problem in problems(_shape(self.replication))),
            *(_under_replication(problem) for problem in _replication_problems(self.replication)),
            *_database_problems(self),
            *_drain_problems(self),
        ]
        if found:
            raise PydanticCustomError("relations", "settings disagree", {"problems": found})
        return self

    @cached_property
    def topology(self) -> Topology:
        """The deployment, seen from this node's region."""
        return _shape(self.replication, resolve_node(self, Named(self.node, "node", 1), 1).region)

    @cached_property
    def tenants(self) -> Tenants:
        """Where tenants are at home, and where they may be."""
        return Tenants(
            {
                name: Place(
                    None if tenant.home is None else RegionId(tenant.home),
                    None if tenant.regions is None else frozenset(map(RegionId, tenant.regions)),
                )
                for name, tenant in self.replication.tenants.items()
            }
        )

    @cached_property
    def residency(self) -> Residency:
        """Which tenants are stored where."""
        return Residency(self.tenants)

    @cached_property
    def this_node(self) -> Node:
        return resolve_node(self, Named(self.node, "node", 1), 1)

    @property
    def app_address(self) -> Address:
        return Address.parse(self.listen.app)

    @property
    def peer_address(self) -> Address:
        """As set; otherwise loopback at the port of this node's endpoint."""
        if self.listen.peer is not None:
            return Address.parse(self.listen.peer)
        host, port = Address.parse(self.this_node.endpoint)
        return Address("::1" if host == "::1" else "127.0.0.1", port)

    @property
    def admin_address(self) -> Address:
        return Address.parse(self.listen.admin)

    def remarks(self) -> tuple[str, ...]:
        """What is allowed and has no effect, one line each; for `check-config` and the log."""
        return tuple(f"{spell(place)}: {text}" for place, text in _idle_settings(self))


# -- relations between settings --------------------------------------------------------------------

# Without `regions` the sidecar stands alone; peers could not find it, so its endpoint is a default.
LONE_REGION, LONE_NODE, LONE_ENDPOINT = "local", "node1", "localhost:8081"


def _shape(replication: Replication, local_region: str | None = None) -> Topology:
    """The topology that the settings describe, sound or not."""
    configured = replication.regions
    first = configured[0].id if configured else LONE_REGION
    local = RegionId(local_region or replication.local_region or first)
    if not configured:
        node = Node(NodeId(LONE_NODE), local, ZoneId(local), LONE_ENDPOINT)
        is_primary = replication.strategy is ReplicationStrategy.PRIMARY_REPLICA
        lone = Region(local, str(local), is_primary, (Zone(ZoneId(local), str(local), (node,)),))
        regions: tuple[Region, ...] = (lone,)
    else:
        regions = tuple(_region(region) for region in configured)
    targets = replication.replication_targets
    return Topology(
        replication.strategy,
        local,
        regions,
        None
        if targets is None
        else {RegionId(source): tuple(map(RegionId, named)) for source, named in targets.items()},
    )


def _region(region: RegionSettings) -> Region:
    region_id = RegionId(region.id)
    zones = tuple(
        Zone(
            ZoneId(zone.id),
            zone.name or zone.id,
            tuple(
                Node(NodeId(node.id), region_id, ZoneId(zone.id), node.endpoint)
                for node in zone.nodes
            ),
        )
        for zone in region.zones
    )
    return Region(region_id, region.name or region.id, region.is_primary, zones)


def _under_replication(problem: Problem) -> Problem:
    return Problem(("replication", *problem.place), problem.text)


def _replication_problems(replication: Replication) -> Iterator[Problem]:
    yield from _empty_regions(replication)
    yield from _priorities(replication)
    yield from _overrides(replication)
    yield from _custom(replication)
    yield from _tenants(replication)
    yield from _sets(replication)


def _empty_regions(replication: Replication) -> Iterator[Problem]:
    for i, region in enumerate(replication.regions):
        if not any(zone.nodes for zone in region.zones):
            text = f"region {region.id} has no node; give it zones with nodes, or leave it out"
            yield Problem(("regions", i, "zones"), text)


def _priorities(replication: Replication) -> Iterator[Problem]:
    listed = replication.region_priorities
    known = _region_ids(replication)
    for i, region in enumerate(listed):
        if region in listed[:i]:
            yield Problem(("region_priorities", i), f"region {region!r} is there twice")
    source_priority = ConflictResolutionStrategy.SOURCE_PRIORITY
    if source_priority not in _strategies(replication):
        return
    if not listed:
        text = "source_priority needs it: list the regions, the highest priority last"
        yield Problem(("region_priorities",), text)
    # A region that is not there yet may be named. But a name that is no region beside a region that
    # is not named is a slip of the pen, and would silently give that region the lowest priority.
    unnamed = [region for region in known if region not in listed]
    for i, region in enumerate(listed):
        if region not in known and unnamed:
            text = f"there is no region {region!r}, and {unnamed[0]!r} is not listed"
            yield Problem(("region_priorities", i), text)


def _overrides(replication: Replication) -> Iterator[Problem]:
    seen: set[tuple[str | None, str | None]] = set()
    for i, override in enumerate(replication.conflict_overrides):
        matched = (override.relation, override.resource_type)
        if sum(word is not None for word in matched) != 1:
            text = "needs either relation or resource_type"
            yield Problem(("conflict_overrides", i), text)
        elif matched in seen:
            text = f"{override.relation or override.resource_type!r} has an override already"
            yield Problem(("conflict_overrides", i), text)
        seen.add(matched)


def _custom(replication: Replication) -> Iterator[Problem]:
    is_used = ConflictResolutionStrategy.CUSTOM in _strategies(replication)
    if is_used and replication.custom_script is None:
        text = "conflict resolution custom needs the path of a Lua script"
        yield Problem(("custom_script",), text)
    if replication.custom_script is not None and not is_used:
        text = "is not used: set conflict_resolution: custom, or leave it out"
        yield Problem(("custom_script",), text)


def _tenants(replication: Replication) -> Iterator[Problem]:
    known = _region_ids(replication)
    for name, tenant in replication.tenants.items():
        place = ("tenants", name)
        allowed = tenant.regions if tenant.regions is not None else tuple(known)
        if tenant.regions == ():
            yield Problem((*place, "regions"), "is empty; leave it out for all regions")
        for i, region in enumerate(tenant.regions or ()):
            if region not in known:
                yield Problem((*place, "regions", i), _no_region(region, known))
        if tenant.home is not None and tenant.home not in known:
            yield Problem((*place, "home"), _no_region(tenant.home, known))
        elif tenant.home is not None and tenant.home not in allowed:
            text = f"{tenant.home!r} is not one of its regions: {', '.join(allowed)}"
            yield Problem((*place, "home"), text)


def _sets(replication: Replication) -> Iterator[Problem]:
    """Each set of regions replicates for itself, so it needs paths of its own."""
    topology = _shape(replication)
    for name, tenant in replication.tenants.items():
        place = ("tenants", name, "regions")
        if tenant.regions is None:
            continue
        if replication.strategy is ReplicationStrategy.PRIMARY_REPLICA:
            text = "has no place with primary_replica, where one region takes all writes"
            yield Problem(place, text)
        elif missing := next(topology.within(tenant.regions).unreached(), None):
            source, to = missing
            text = (
                f"writes of {source} would never reach {to} within {', '.join(tenant.regions)}: "
                "the regions of a tenant need a path to each other that leads through no other one"
            )
            yield Problem(place, text)


def _drain_problems(config: Config) -> Iterator[Problem]:
    if config.drain_grace_s is not None and config.drain_grace_s > config.drain_timeout_s:
        text = f"is a part of drain_timeout_s, so at most {config.drain_timeout_s}"
        yield Problem(("drain_grace_s",), text)


def _database_problems(config: Config) -> Iterator[Problem]:
    database = config.database
    if database is None:
        return
    place = ("database", "stores")
    if database.dialect != "openfga":
        if database.stores:
            yield Problem(place, f"only openfga has stores, not {database.dialect}")
        return
    if not database.stores:
        yield Problem(place, "openfga needs it: for each store its id in each region")
    known = _region_ids(config.replication)
    for name, regions in database.stores.items():
        allowed = config.tenants.of(name).regions
        for region in regions:
            if region not in known:
                yield Problem((*place, name, region), _no_region(region, known))
        for region in known:
            if region not in regions and (allowed is None or region in allowed):
                yield Problem((*place, name), f"has no id for region {region}")
        yield from _models((*place, name), regions)
    yield from _ambiguous_stores(database.stores)


def _models(place: tuple[str | int, ...], regions: dict[str, StoreSettings]) -> Iterator[Problem]:
    """Every region has the same models, and an id stands for one of them."""
    names = {name: None for here in regions.values() for name in here.models}
    meant: dict[str, str] = {}
    for region, here in regions.items():
        for name in names:
            if name not in here.models:
                text = f"has no id for the model {name!r}, which another region has"
                yield Problem((*place, region, "models"), text)
        for name, model in here.models.items():
            if meant.setdefault(model, name) != name:
                text = f"is the id of the model {meant[model]!r} already"
                yield Problem((*place, region, "models", name), text)


def _ambiguous_stores(stores: dict[str, dict[str, StoreSettings]]) -> Iterator[Problem]:
    meant: dict[str, str] = {}
    for tenant, regions in stores.items():
        for region, here in regions.items():
            if meant.setdefault(here.store, tenant) != tenant:
                text = f"is the id of the store {meant[here.store]!r} already"
                yield Problem(("database", "stores", tenant, region, "store"), text)


def _idle_settings(config: Config) -> Iterator[Problem]:
    replication = config.replication
    known = _region_ids(replication)
    uses_priorities = bool(USES_PRIORITIES & _strategies(replication))
    if replication.region_priorities and not uses_priorities:
        text = f"has no effect with conflict_resolution {replication.conflict_resolution}"
        yield Problem(("replication", "region_priorities"), text)
    for i, region in enumerate(replication.region_priorities):
        if uses_priorities and region not in known:
            text = f"there is no region {region!r} yet"
            yield Problem(("replication", "region_priorities", i), text)
    for i, configured in enumerate(replication.regions):
        uses_primary = replication.strategy is ReplicationStrategy.PRIMARY_REPLICA
        if configured.is_primary and not uses_primary:
            text = f"has no effect with strategy {replication.strategy}"
            yield Problem(("replication", "regions", i, "is_primary"), text)
    if config.security is not None:
        yield from idle_proofs(config.security)
    missing = next(config.topology.unreached(), None)
    if missing is not None:
        source, to = missing
        text = f"writes of {source} would never reach {to}; do not promote {source}"
        yield Problem(("replication", "replication_targets"), text)


def _region_ids(replication: Replication) -> list[str]:
    return [region.id for region in _shape(replication).regions]


def _strategies(replication: Replication) -> set[ConflictResolutionStrategy]:
    overrides = (override.strategy for override in replication.conflict_overrides)
    return {replication.conflict_resolution, *overrides}


def _no_region(region: str, known: Iterable[str]) -> str:
    return f"there is no region {region!r}; regions: {', '.join(known)}"


# -- which node is this ----------------------------------------------------------------------------

FILE, ENVIRON, COMMAND_LINE = 1, 2, 3


def bad_config(message: str) -> Refused:
    return Refused("bad_config", message)


class Named(NamedTuple):
    """A node as it was named: where, and how strong that place is."""

    node: str | None
    place: str
    strength: int


def resolve_node(config: Config, named: Named, region_strength: int) -> Node:
    """The node that `named` means; unnamed, the only one of the local region.

    A local region in a weaker place gives way to the node, so that one file can serve all nodes;
    in the same place or a stronger one it contradicts it.
    """
    shape = _shape(config.replication)
    local_region = config.replication.local_region
    if named.node is None:
        return _only_node(shape, local_region)
    node = next((node for node in shape.nodes() if node.id == named.node), None)
    if node is None:
        known = ", ".join(node.id for node in shape.nodes())
        raise bad_config(f"{named.place}: there is no node {named.node!r}; nodes: {known}")
    if local_region not in (None, node.region) and region_strength >= named.strength:
        raise bad_config(
            f"replication.local_region: {local_region!r} contradicts {named.place}, because node "
            f"{node.id} is in {node.region}; leave one of them out"
        )
    return node


def first_node(config: Config) -> str:
    """The id of some node of the topology."""
    return str(_shape(config.replication).nodes()[0].id)


def _only_node(shape: Topology, local_region: str | None) -> Node:
    if local_region is None:
        candidates, where = shape.nodes(), "the topology"
    else:
        candidates, where = shape.region(local_region).nodes(), f"region {local_region}"
    if len(candidates) != 1:
        listed = ", ".join(node.id for node in candidates)
        hint = f"name one with --node, {ENVIRONMENT}__NODE or node"
        raise bad_config(f"node: {where} has several nodes ({listed}); {hint}")
    return candidates[0]
