"""Where tenants are at home: the exact name, then the longest pattern, then everywhere."""

import pytest

from sidecar.core.tenants import EVERYWHERE, Place, Tenants
from sidecar.core.topology import RegionId

EU, US = RegionId("eu-central-1"), RegionId("us-west-1")

TENANTS = Tenants(
    {
        "acme": Place(EU),
        "acme*": Place(US),
        "acme-eu-*": Place(EU, frozenset({EU})),
        "*": Place(US, frozenset({EU, US})),
    }
)


@pytest.mark.parametrize(
    ("tenant", "place"),
    [
        ("acme", Place(EU)),
        ("acme2", Place(US)),
        ("acme-eu-shop", Place(EU, frozenset({EU}))),
        ("acme-eu", Place(US)),
        ("other", Place(US, frozenset({EU, US}))),
    ],
)
def test_the_exact_name_then_the_longest_pattern(tenant: str, place: Place) -> None:
    assert TENANTS.of(tenant) == place


def test_a_tenant_that_nothing_names_may_be_everywhere() -> None:
    assert Tenants({"acme": Place(EU)}).of("other") == EVERYWHERE
    assert Tenants().of("acme") == EVERYWHERE
    assert Tenants({"a*": Place(EU)}).of("b") == EVERYWHERE
