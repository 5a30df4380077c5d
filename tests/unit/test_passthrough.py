"""The dialect that understands nothing, and how the configuration chooses one."""

import pytest

from sidecar.config import checked
from sidecar.core.topology import RegionId
from sidecar.dialects.choose import dialect_of
from sidecar.dialects.dialect import Dialect, Kind, ReplicatedDialect, Request
from sidecar.dialects.passthrough import Passthrough

DIALECT = Passthrough()


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("GET", Kind.READ),
        ("HEAD", Kind.READ),
        ("POST", Kind.WRITE),
        ("PUT", Kind.WRITE),
        ("DELETE", Kind.WRITE),
        ("PROPFIND", Kind.WRITE),
    ],
)
def test_every_request_goes_through_and_none_is_replicated(method: str, kind: Kind) -> None:
    call = DIALECT.call_of(method, "/any/path")
    request = Request(method, "/any/path")
    assert (call.kind, call.looks_inside) == (kind, False)
    assert DIALECT.tenant_of("/any/path") == "default"
    assert DIALECT.localized(call, request, lambda token: False) is request
    assert DIALECT.write_of(call, request) is None
    assert not isinstance(DIALECT, ReplicatedDialect)


def chosen(dialect: str, **settings: object) -> Dialect:
    database = {"dialect": dialect, "url": "http://h", **settings}
    config = checked({"database": database})
    assert config.database is not None
    return dialect_of(config.database, config.this_node.region)


@pytest.mark.parametrize("name", ["spicedb", "openfga", "passthrough"])
def test_the_configuration_chooses(name: str) -> None:
    stores = {"shop": {"local": {"store": "S", "models": {"v1": "M"}}}}
    dialect = chosen(name, stores=stores) if name == "openfga" else chosen(name)
    assert dialect.name == name
    assert dialect.proven
    assert isinstance(dialect, ReplicatedDialect) is (name != "passthrough")


def test_openfga_speaks_with_the_ids_of_its_region() -> None:
    region = RegionId("local")
    dialect = chosen("openfga", stores={"shop": {str(region): {"store": "S"}}})
    assert isinstance(dialect, ReplicatedDialect)
    assert dialect.find("shop", {}, None).path == "/stores/S/read"
