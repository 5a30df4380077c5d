"""The shape of a deployment: what the builder accepts, who ships to whom, what is refused."""

import pytest

from sidecar.core.topology import (
    NodeId,
    RegionId,
    ReplicationStrategy,
    Topology,
    TopologyBuilder,
    TopologyError,
    ZoneId,
)

WEST, EU, AP = RegionId("us-west-1"), RegionId("eu-central-1"), RegionId("ap-southeast-1")


def seed_example() -> TopologyBuilder:
    return (
        TopologyBuilder(ReplicationStrategy.ACTIVE_ACTIVE, RegionId("us-west-1"))
        .add_region(RegionId("us-west-1"), "US West", False)
        .add_zone(RegionId("us-west-1"), ZoneId("us-west-1a"), "Zone A")
        .add_node(RegionId("us-west-1"), ZoneId("us-west-1a"), NodeId("node1"), "localhost:50051")
        .add_region(RegionId("eu-central-1"), "EU Central", False)
        .add_zone(RegionId("eu-central-1"), ZoneId("eu-central-1a"), "Zone A")
        .add_node(
            RegionId("eu-central-1"), ZoneId("eu-central-1a"), NodeId("node2"), "localhost:50052"
        )
        .set_replication_targets(RegionId("us-west-1"), [RegionId("eu-central-1")])
        .set_replication_targets(RegionId("eu-central-1"), [RegionId("us-west-1")])
    )


def three_regions(
    strategy: ReplicationStrategy, primary: RegionId | None = None
) -> TopologyBuilder:
    builder = TopologyBuilder(strategy, WEST)
    for number, region in enumerate((WEST, EU, AP), start=1):
        zone = ZoneId(f"{region}a")
        builder.add_region(region, region.upper(), region == primary)
        builder.add_zone(region, zone, "Zone A")
        builder.add_node(region, zone, NodeId(f"node{number}"), f"localhost:{50050 + number}")
    return builder


def targets(topology: Topology, node: str) -> list[str]:
    return [target.id for target in topology.targets_of(node)]


def test_the_example_of_the_seed_builds_and_each_node_ships_to_the_other() -> None:
    topology = seed_example().build()
    assert [node.id for node in topology.nodes()] == ["node1", "node2"]
    assert topology.region_of("node2") == "eu-central-1"
    assert topology.node("node1").endpoint == "localhost:50051"
    assert targets(topology, "node1") == ["node2"]
    assert targets(topology, "node2") == ["node1"]


def test_the_primary_replica_example_of_the_seed_builds_without_nodes() -> None:
    topology = (
        TopologyBuilder(ReplicationStrategy.PRIMARY_REPLICA, WEST)
        .add_region(WEST, "US West", True)
        .add_region(EU, "EU Central", False)
        .build()
    )
    assert topology.nodes() == ()
    assert topology.region(WEST).is_primary


def test_without_targets_every_region_ships_to_every_other() -> None:
    topology = three_regions(ReplicationStrategy.ACTIVE_ACTIVE).build()
    assert targets(topology, "node2") == ["node1", "node3"]
    assert topology.is_full_mesh()


def test_nodes_of_one_region_replicate_to_each_other_first() -> None:
    topology = (
        seed_example()
        .add_node(WEST, ZoneId("us-west-1a"), NodeId("node3"), "localhost:50053")
        .build()
    )
    assert targets(topology, "node1") == ["node3", "node2"]
    assert targets(topology, "node2") == ["node1", "node3"]


def test_a_ring_is_connected_and_needs_relays() -> None:
    ring = three_regions(ReplicationStrategy.ACTIVE_ACTIVE)
    ring.set_replication_targets(WEST, [EU])
    ring.set_replication_targets(EU, [AP])
    ring.set_replication_targets(AP, [WEST])
    topology = ring.build()
    assert topology.is_strongly_connected()
    assert not topology.is_full_mesh()
    assert list(topology.relayed()) == [(WEST, AP), (EU, WEST), (AP, EU)]


def test_a_region_that_ships_nowhere_is_refused_where_every_region_writes() -> None:
    star = three_regions(ReplicationStrategy.MULTI_MASTER).set_replication_targets(WEST, [EU, AP])
    with pytest.raises(TopologyError, match="writes of eu-central-1 would never reach us-west-1"):
        star.build()


def test_a_replica_that_ships_nowhere_is_fine() -> None:
    star = three_regions(ReplicationStrategy.PRIMARY_REPLICA, primary=WEST)
    topology = star.set_replication_targets(WEST, [EU, AP]).build()
    assert topology.reachable_from(WEST) == {WEST, EU, AP}
    assert topology.reachable_from(EU) == {EU}


@pytest.mark.parametrize(
    ("builder", "complaint"),
    [
        (three_regions(ReplicationStrategy.PRIMARY_REPLICA), "needs one region with is_primary"),
        (
            three_regions(ReplicationStrategy.ACTIVE_ACTIVE, WEST).add_region(
                RegionId("sa-east-1"), "SA", True
            ),
            r"regions\[3\].is_primary: sa-east-1 and us-west-1 are both primary",
        ),
        (seed_example().add_region(WEST, "Again"), r"regions\[2\].id: region 'us-west-1' is there"),
        (
            seed_example().add_zone(WEST, ZoneId("us-west-1a"), "Again"),
            r"regions\[0\].zones\[1\].id: zone 'us-west-1a' is there twice",
        ),
        (
            seed_example().add_node(EU, ZoneId("eu-central-1a"), NodeId("node1"), "localhost:1"),
            r"regions\[1\].zones\[0\].nodes\[1\].id: node 'node1' is also in region us-west-1",
        ),
        (
            seed_example().add_node(
                EU, ZoneId("eu-central-1a"), NodeId("node3"), "localhost:50051"
            ),
            "'localhost:50051' is the endpoint of node node1 already",
        ),
        (
            seed_example().set_replication_targets(WEST, [EU, AP]),
            r"replication_targets.us-west-1\[1\]: there is no region 'ap-southeast-1'",
        ),
        (
            seed_example().set_replication_targets(AP, [EU]),
            "replication_targets.ap-southeast-1: there is no region",
        ),
        (seed_example().set_replication_targets(WEST, [WEST, EU]), "does not target itself"),
        (seed_example().set_replication_targets(WEST, [EU, EU]), "'eu-central-1' is there twice"),
        (seed_example().add_zone(AP, ZoneId("a"), "A"), "no region 'ap-southeast-1'; add it first"),
        (
            seed_example().add_node(WEST, ZoneId("b"), NodeId("node3"), "localhost:1"),
            "no zone 'b' in region 'us-west-1'; add it first",
        ),
        (
            TopologyBuilder(ReplicationStrategy.ACTIVE_ACTIVE, WEST),
            "local_region: there is no region 'us-west-1'; regions: none",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_its_place(
    builder: TopologyBuilder, complaint: str
) -> None:
    with pytest.raises(TopologyError, match=complaint):
        builder.build()


@pytest.mark.parametrize("text", ["", "US", "-a", "a_b", "a" * 33, "a b", "a\n", "ä"])
def test_a_bad_id_never_comes_into_being(text: str) -> None:
    with pytest.raises(TopologyError, match="is not an id"):
        NodeId(text)


def test_asking_for_an_unknown_node_names_the_known_ones() -> None:
    with pytest.raises(TopologyError, match="no node 'node9'; nodes: node1, node2"):
        seed_example().build().node("node9")
