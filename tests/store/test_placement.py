"""Partitions of one Redis: apart from each other, and none opens with tenants of another one."""

import functools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from sidecar.core.residency import GLOBAL, Residency, partition_of
from sidecar.core.tenants import Place, Tenants
from sidecar.core.topology import RegionId
from sidecar.errors import Refused
from sidecar.store.keys import Keys
from sidecar.store.placement import check_placement
from sidecar.store.reset import DataSet
from tests.servers import RealValkey
from tests.store.conftest import Node, numbered, running_node

EU, US = RegionId("eu-central-1"), RegionId("us-west-1")
IN_EU, IN_BOTH = partition_of([EU]), partition_of([EU, US])
Bound = Mapping[str, Sequence[RegionId]]


@asynccontextmanager
async def opened(
    valkey: RealValkey, partition: str, bound: Bound, region: RegionId = EU
) -> AsyncIterator[Node]:
    """A partition of node1, in this region, under settings that bind these tenants."""
    places = {name: Place(None, frozenset(regions)) for name, regions in bound.items()}
    residency = Residency(Tenants(places))
    here = {GLOBAL, *(name for name, regions in residency.sets.items() if region in regions)}
    check = functools.partial(check_placement, here=here, partition_of=residency.partition_of)
    async with running_node(valkey, "node1", partition=partition, check=check) as node:
        await node.store.opened()
        yield node


async def refusal(valkey: RealValkey, partition: str, bound: Bound, region: RegionId = EU) -> str:
    with pytest.raises(Refused) as refused:
        async with opened(valkey, partition, bound, region):
            pass
    assert refused.value.code == "tenant_elsewhere"
    assert "export the tenant, delete it, change `regions` on all nodes" in refused.value.message
    return refused.value.message


async def test_a_tenant_that_is_bound_later_must_be_moved_first(valkey: RealValkey) -> None:
    async with opened(valkey, GLOBAL, {}) as node:
        await node.write(*numbered(150), tenant="acme")
        await node.write("+doc:1 viewer user:a", tenant="bank")
    message = await refusal(valkey, GLOBAL, {"acme": [EU]})
    assert f"the tuples of acme are stored in partition {GLOBAL}" in message
    assert "bank" not in message
    async with opened(valkey, GLOBAL, {}) as node:
        await node.write(*numbered(150, "-doc:{} viewer user:a"), tenant="acme")
    # It may still be remembered as deleted.
    async with opened(valkey, GLOBAL, {"acme": [EU]}) as node:
        assert await node.listed("bank") == ["doc:1 viewer user:a"]


async def test_a_tenant_whose_set_has_changed_is_found_in_the_former_one(
    valkey: RealValkey,
) -> None:
    """Also when no tenant is bound to these regions any more, so that nothing runs there."""
    before: Bound = {"acme": [EU], "bank": [EU]}
    async with opened(valkey, IN_EU, before) as node:
        await node.write("+doc:1 viewer user:a", tenant="acme")
    async with opened(valkey, GLOBAL, before):
        pass
    assert f"acme are stored in partition {IN_EU}" in await refusal(
        valkey, IN_EU, {"acme": [EU, US], "bank": [EU]}
    )
    for after in ({"acme": [EU, US]}, {}, {"acme": [US]}):
        assert f"acme are stored in partition {IN_EU}" in await refusal(valkey, GLOBAL, after)
    # Nor may a node take what it has into another region.
    assert f"acme are stored in partition {IN_EU}" in await refusal(valkey, GLOBAL, before, US)
    async with opened(valkey, IN_EU, before) as node:
        await node.write("-doc:1 viewer user:a", tenant="acme")
    async with opened(valkey, GLOBAL, {"acme": [EU, US]}):
        pass


async def test_many_tenants_are_counted_and_some_named(valkey: RealValkey) -> None:
    names = [f"acme-{number}" for number in range(8)]
    async with opened(valkey, GLOBAL, {}) as node:
        for name in names:
            await node.write("+doc:1 viewer user:a", tenant=name)
    message = await refusal(valkey, GLOBAL, {"acme-*": [EU]})
    assert ", ".join(names[:5]) + " and 3 more" in message


async def test_partitions_of_one_redis_have_nothing_in_common(valkey: RealValkey) -> None:
    bound: Bound = {"acme": [EU], "bank": [EU, US]}
    async with (
        opened(valkey, GLOBAL, bound) as everywhere,
        opened(valkey, IN_EU, bound) as eu,
        opened(valkey, IN_BOTH, bound) as both,
    ):
        nodes = {"default": everywhere, "acme": eu, "bank": both}
        for number, (tenant, node) in enumerate(nodes.items()):
            guard = {"idempotency_key": "once", "request_hash": tenant}
            for is_repeat in (False, True):
                written = await node.write(f"+doc:{number} a user:a", tenant=tenant, **guard)
                assert written.replayed is is_repeat
        for number, (tenant, node) in enumerate(nodes.items()):
            assert await node.listed(tenant) == [f"doc:{number} a user:a"]
            assert await node.store.tenants() == [tenant]
            assert await node.store.feed_length() == 2, "its beginning and one write"
            assert node.store.vector.keys() == {node.store.origin}
        assert len({node.store.scope for node in nodes.values()}) == 3, "cursors are not mixed up"


async def test_a_reset_takes_every_partition_and_only_those_of_the_prefix(
    valkey: RealValkey,
) -> None:
    bound: Bound = {"acme": [EU]}
    async with opened(valkey, GLOBAL, bound) as everywhere, opened(valkey, IN_EU, bound) as eu:
        await everywhere.write("+doc:1 viewer user:a", "+doc:2 viewer user:a")
        await eu.write("+doc:1 viewer user:a", tenant="acme")
    async with running_node(valkey, "node2", prefix="node11") as other:
        await other.store.opened()
        await other.write("+doc:1 viewer user:a")
    data = DataSet(valkey.url, Keys("node1"), 5.0)
    try:
        stored = await data.stored()
        assert (stored.node, stored.tuples, stored.transactions) == ("node1", 3, 4)
        await data.empty()
        assert (await data.stored()).keys == 0
    finally:
        await data.close()
    async with running_node(valkey, "node2", prefix="node11") as other:
        await other.store.opened()
        assert await other.listed() == ["doc:1 viewer user:a"]
