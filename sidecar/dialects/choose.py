"""Which dialect the configuration asks for."""

from sidecar.core.topology import RegionId
from sidecar.dialects.dialect import Dialect
from sidecar.dialects.openfga import OpenFGA, Store
from sidecar.dialects.passthrough import Passthrough
from sidecar.dialects.spicedb import SpiceDB
from sidecar.settings import DatabaseSettings


def dialect_of(database: DatabaseSettings, region: RegionId) -> Dialect:
    """The dialect of the database, as this region speaks it."""
    match database.dialect:
        case "spicedb":
            return SpiceDB()
        case "openfga":
            stores = {
                tenant: {
                    RegionId(where): Store(here.store, dict(here.models))
                    for where, here in regions.items()
                }
                for tenant, regions in database.stores.items()
            }
            return OpenFGA(stores, region)
        case "passthrough":
            return Passthrough()
