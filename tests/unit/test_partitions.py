"""Which partitions a node has, who is in them, and which one serves a tenant."""

import pytest
import yaml

from sidecar.config import Config, checked
from sidecar.core.residency import GLOBAL, partition_of
from sidecar.errors import Refused
from sidecar.metrics import Metrics
from sidecar.partitions import Partitions
from sidecar.peer.calls import PeerCalls
from sidecar.peer.client import Dialler

EU, US, AP = "eu-central-1", "us-west-1", "ap-southeast-1"
IN_EU, IN_BOTH = partition_of([EU]), partition_of([EU, US])
NODES = {"eu1": EU, "eu2": EU, "us1": US, "ap1": AP}
TENANTS = f"""
acme: {{regions: [{EU}]}}
bank-*: {{home: {US}, regions: [{US}, {EU}]}}
bank-free: {{home: {AP}}}
"""


def config_of(node: str) -> Config:
    regions = [
        {
            "id": region,
            "zones": [
                {
                    "id": region,
                    "nodes": [
                        {"id": name, "endpoint": f"{name}:1"}
                        for name, of in NODES.items()
                        if of == region
                    ],
                }
            ],
        }
        for region in (EU, US, AP)
    ]
    replication = {
        "strategy": "multi_master",
        "local_region": NODES[node],
        "regions": regions,
        "tenants": yaml.safe_load(TENANTS),
    }
    return checked({"node": node, "replication": replication})


def partitions_of(node: str) -> Partitions:
    url = "unix:///nowhere/valkey.sock"
    return Partitions(config_of(node), url, Metrics(), Dialler(1.0), PeerCalls(1.0))


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (
            "eu1",
            {
                GLOBAL: {"eu2", "us1", "ap1"},
                IN_EU: {"eu2"},
                IN_BOTH: {"eu2", "us1"},
            },
        ),
        ("us1", {GLOBAL: {"eu1", "eu2", "ap1"}, IN_BOTH: {"eu1", "eu2"}}),
        ("ap1", {GLOBAL: {"eu1", "eu2", "us1"}}),
    ],
)
async def test_a_node_has_the_partitions_of_its_region_with_the_nodes_of_theirs(
    node: str, expected: dict[str, set[str]]
) -> None:
    found = list(partitions_of(node))
    assert found[0].name == GLOBAL, "others are asked about it where nothing is named"
    assert {one.name: {t.node for t in one.shipping.targets} for one in found} == expected
    for one in found:
        assert one.me.partition == one.store.keys.partition == one.name
        assert set(one.peers.rows.members) == expected[one.name] | {node}
        named = {NODES[name] for name in expected[one.name] | {node}}
        assert set(one.concerns.regions) == named, "a write concern counts its regions"
    assert len({one.me.residency for one in found}) == 1


async def test_a_tenant_is_served_by_its_partition_or_not_at_all() -> None:
    eu, us, ap = (partitions_of(node) for node in ("eu1", "us1", "ap1"))
    assert eu.of("acme").name == IN_EU
    assert eu.of("bank-1").name == us.of("bank-1").name == IN_BOTH
    for one in (eu, us, ap):
        assert one.of("default").name == one.of("bank-free").name == GLOBAL
    for one, tenant, allowed in (
        (us, "acme", EU),
        (ap, "acme", EU),
        (ap, "bank-1", f"{EU}, {US}"),
    ):
        with pytest.raises(Refused) as refused:
            one.of(tenant)
        assert (refused.value.code, refused.value.status) == ("tenant_not_here", 403)
        assert allowed in refused.value.message
