"""Who serves what: the table of the strategies, and what happens when nodes fail."""

from collections import Counter

import pytest

from sidecar.core.router import NodeHealth, Router, RoutingDecision
from sidecar.core.router import RequestType as Type
from sidecar.core.tenants import Place, Tenants
from sidecar.core.topology import (
    NodeId,
    RegionId,
    ReplicationStrategy,
    Topology,
    TopologyBuilder,
    ZoneId,
)
from sidecar.errors import Refused, Unavailable

READ, WRITE = Type.READ, Type.WRITE
HEALTHY, DEGRADED, UNREACHABLE = NodeHealth
NODES = {"us": ["a1", "a2", "b1"], "eu": ["c1", "c2"], "ap": ["d1"]}


def topology(strategy: str = "active_active", here: str = "us") -> Topology:
    """us has a1 and a2 in zone a, b1 in zone b; eu is the primary."""
    builder = TopologyBuilder(ReplicationStrategy(strategy), RegionId(here))
    for region, nodes in NODES.items():
        builder.add_region(RegionId(region), region, region == "eu")
        for zone in sorted({node[0] for node in nodes}):
            builder.add_zone(RegionId(region), ZoneId(zone), zone)
        for node in nodes:
            endpoint = f"{node}.test:1"
            builder.add_node(RegionId(region), ZoneId(node[0]), NodeId(node), endpoint)
    return builder.build()


def router(
    strategy: str = "active_active", here: str = "a1", down: str = "", **more: object
) -> Router:
    away = down.split()

    def health_of(node: NodeId) -> NodeHealth:
        return UNREACHABLE if node in away else HEALTHY

    region = topology(strategy).region_of(here)
    return Router(topology(strategy, region), NodeId(here), health_of, **more)  # type: ignore[arg-type]


def served(router: Router, request: Type, tenant: str = "") -> set[str]:
    """All nodes that take turns at a request."""
    return {router.route(request, tenant).node_id for _ in range(12)}


@pytest.mark.parametrize(
    ("strategy", "down", "reads", "writes"),
    [
        ("active_active", "", {"a1"}, {"a1"}),
        ("active_active", "a1", {"a2"}, {"a2"}),
        ("active_active", "a1 a2", {"b1"}, {"b1"}),
        ("active_active", "a1 a2 b1", {"c1", "c2"}, {"c1", "c2"}),
        ("active_active", "a1 a2 b1 c1 c2", {"d1"}, {"d1"}),
        ("primary_replica", "", {"a1"}, {"c1", "c2"}),
        ("primary_replica", "a1", {"a2"}, {"c1", "c2"}),
        ("primary_replica", "a1 a2 b1", {"c1", "c2"}, {"c1", "c2"}),
        ("primary_replica", "c1", {"a1"}, {"c2"}),
        ("primary_replica", "c1 c2", {"a1"}, None),
        ("multi_master", "", {"a1"}, {"a1"}),
        ("multi_master", "a1 a2 b1", {"c1", "c2"}, None),
    ],
)
def test_who_serves_what(
    strategy: str, down: str, reads: set[str], writes: set[str] | None
) -> None:
    routes = router(strategy, down=down)
    assert served(routes, READ) == reads
    assert routes.is_here(READ) == (reads == {"a1"})
    assert routes.is_here(WRITE) == (writes == {"a1"})
    if writes is None:
        with pytest.raises(Unavailable) as refused:
            routes.route(WRITE)
        expected = "no_primary" if strategy == "primary_replica" else "no_home"
        assert refused.value.code == expected
        assert refused.value.retry_after_s > 0
    else:
        assert served(routes, WRITE) == writes


def test_a_decision_names_region_node_and_endpoint() -> None:
    decision = router("primary_replica", down="c2").route(WRITE)
    assert decision == RoutingDecision(RegionId("eu"), NodeId("c1"), "c1.test:1")


def test_when_nothing_is_healthy_the_refusal_says_so() -> None:
    with pytest.raises(Unavailable, match="a1 can tell") as refused:
        router(down="a1 a2 b1 c1 c2 d1").route(READ)
    assert refused.value.code == "no_healthy_node"


def test_nodes_of_a_region_take_turns_evenly() -> None:
    routes = router("primary_replica")
    turns = Counter(routes.route(WRITE).node_id for _ in range(100))
    assert turns == {"c1": 50, "c2": 50}


def test_a_degraded_node_serves_when_no_healthy_one_does() -> None:
    health = {"c1": DEGRADED, "c2": HEALTHY}
    routes = Router(
        topology("primary_replica"), NodeId("a1"), lambda node: health.get(node, HEALTHY)
    )
    assert served(routes, WRITE) == {"c2"}
    health["c2"] = UNREACHABLE
    assert served(routes, WRITE) == {"c1"}


def test_a_promoted_region_takes_the_writes() -> None:
    assert served(router("primary_replica", primary=lambda: RegionId("ap")), WRITE) == {"d1"}


def test_a_primary_that_was_taken_out_of_the_topology_serves_nothing() -> None:
    routes = router("primary_replica", primary=lambda: RegionId("gone"))
    assert served(routes, READ) == {"a1"}
    for ask in (lambda: routes.route(WRITE), lambda: routes.only_node("default", "key")):
        with pytest.raises(Unavailable, match="primary region gone") as refused:
            ask()
        assert refused.value.code == "no_primary"


def test_a_tenant_has_its_home_and_its_regions() -> None:
    eu, ap = RegionId("eu"), RegionId("ap")
    tenants = Tenants({"acme": Place(eu), "bound*": Place(ap, frozenset({eu, ap}))})
    routes = router("multi_master", tenants=tenants)
    assert served(routes, WRITE, "acme") == {"c1", "c2"}
    assert served(routes, READ, "acme") == {"a1"}
    assert served(routes, WRITE, "other") == {"a1"}
    with pytest.raises(Refused, match="may be in ap, eu only") as refused:
        routes.route(READ, "bound-1")
    assert (refused.value.code, refused.value.status) == ("tenant_not_here", 403)
    assert not routes.is_here(READ, "bound-1")
    inside = router("multi_master", here="c1", tenants=tenants, down="c1 c2")
    assert served(inside, READ, "bound-1") == {"d1"}
    assert served(router("multi_master", here="d1", tenants=tenants), WRITE, "bound-1") == {"d1"}


def test_regions_are_available_while_one_of_their_nodes_serves() -> None:
    routes = router(down="c1 d1")
    assert routes.is_region_available(RegionId("eu"))
    assert not routes.is_region_available(RegionId("ap"))
    assert routes.get_available_regions() == ["us", "eu"]
