"""Each set of regions that tenants are bound to has a partition, the same on every node."""

import re
from collections.abc import Sequence

import pytest

from sidecar.core.residency import GLOBAL, Residency, partition_of
from sidecar.core.session import Party, greet
from sidecar.core.tenants import Place, Tenants
from sidecar.core.topology import (
    NodeId,
    RegionId,
    ReplicationStrategy,
    Topology,
    TopologyBuilder,
    ZoneId,
)
from sidecar.errors import Refused

EU, US, AP = RegionId("eu-central-1"), RegionId("us-west-1"), RegionId("ap-southeast-1")


def residency(**bound: Sequence[RegionId] | None) -> Residency:
    """By tenant; `_` stands for `*`."""
    places = {
        name.replace("_", "*"): Place(None, None if regions is None else frozenset(regions))
        for name, regions in bound.items()
    }
    return Residency(Tenants(places))


def test_a_partition_is_named_by_its_regions_whatever_their_order() -> None:
    assert partition_of(None) == GLOBAL
    assert partition_of([EU, US]) == partition_of((US, EU, US)) != partition_of([EU])
    # Keys, tokens and stored data hold it: it must not change between releases.
    assert partition_of([EU]) == "set-66d8ba6e04.0"
    assert re.fullmatch(r"set-[0-9a-f]{10}\.0", partition_of([EU, US, AP]))


def test_tenants_with_the_same_regions_share_a_partition() -> None:
    bound = residency(acme=[EU], bank=[US, EU], bank2=[EU, US], free=None)
    assert bound.sets == {partition_of([EU]): (EU,), partition_of([EU, US]): (EU, US)}
    assert bound.partition_of("acme") == partition_of([EU])
    assert bound.partition_of("bank") == bound.partition_of("bank2") == partition_of([EU, US])
    assert bound.partition_of("free") == bound.partition_of("default") == GLOBAL


def test_all_regions_by_name_are_a_set_too() -> None:
    """A region that is added to the topology later does not get such a tenant."""
    assert residency(acme=[EU, US, AP]).partition_of("acme") != GLOBAL


@pytest.mark.parametrize(
    ("one", "other", "is_equal"),
    [
        (residency(), residency(free=None), True),
        (residency(acme=[EU]), residency(acme=[EU], free=None), True),
        (residency(acme=[EU, US]), residency(acme=[US, EU]), True),
        (residency(acme=[EU]), residency(), False),
        (residency(acme=[EU]), residency(acme=[US]), False),
        (residency(acme=[EU]), residency(acm_=[EU]), False),
        (residency(a_=[EU]), residency(a_=[EU], acme=None), False),
        (residency(acme=[EU]), residency(acme=[EU], bank=[EU]), False),
    ],
)
def test_nodes_agree_when_every_tenant_is_stored_in_the_same_place(
    one: Residency, other: Residency, is_equal: bool
) -> None:
    assert (one.fingerprint == other.fingerprint) is is_equal


def test_nodes_that_would_store_a_tenant_in_different_places_do_not_replicate() -> None:
    """Or a node that knows of no bound would carry a tenant to where it may not be."""
    regions = {"us1": "us", "eu1": "eu"}
    bound = residency(acme=[EU]).fingerprint
    for mine, theirs in ((bound, ""), ("", bound), (bound, residency(acme=[US]).fingerprint)):
        me = Party("eu1", "eu", GLOBAL, 1, 1, "lww:1", mine)
        source = Party("us1", "us", GLOBAL, 1, 1, "lww:1", theirs)
        hello = {"type": "hello", "protocols": [1, 1], "to": "eu1", **source.to_json()}
        with pytest.raises(Refused) as refused:
            greet(hello, me, regions)
        assert refused.value.code == "residency_mismatch"
        assert "the `regions` of some `tenants` differ" in refused.value.message
    same = Party("us1", "us", GLOBAL, 1, 1, "lww:1", bound)
    hello = {"type": "hello", "protocols": [1, 1], "to": "eu1", **same.to_json()}
    assert greet(hello, Party("eu1", "eu", GLOBAL, 1, 1, "lww:1", bound), regions)[0] == "us1"


def star() -> Topology:
    """ap and eu ship to us alone, and us to both."""
    build = TopologyBuilder(ReplicationStrategy.ACTIVE_ACTIVE, US)
    for region in (US, EU, AP):
        build.add_region(region, str(region)).add_zone(region, ZoneId("a"), "A")
        build.add_node(region, ZoneId("a"), NodeId(f"n-{region}"), f"{region}:1")
    build.set_replication_targets(US, [EU, AP])
    build.set_replication_targets(EU, [US])
    return build.set_replication_targets(AP, [US]).build()


def test_what_is_within_some_regions_ships_among_them_alone() -> None:
    part = star().within({US, EU})
    assert [node.id for node in part.nodes()] == [f"n-{US}", f"n-{EU}"]
    assert [node.id for node in part.targets_of(f"n-{US}")] == [f"n-{EU}"]
    assert part.is_strongly_connected()
    assert not star().within({EU, AP}).is_strongly_connected(), "us would have to relay"
