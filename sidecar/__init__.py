"""The programming interface: the names of InferaDB's multi-region replication, in Python.

Each name is imported when it is first asked for, so that the command line stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.core.conflict import ConflictResolutionStrategy
    from sidecar.core.relationship import Operation, Relationship
    from sidecar.core.router import NodeHealth, RequestType, Router, RoutingDecision
    from sidecar.core.tenants import Place, Tenants
    from sidecar.core.topology import (
        NodeId,
        RegionId,
        ReplicationStrategy,
        Topology,
        TopologyBuilder,
        TopologyError,
        ZoneId,
    )
    from sidecar.errors import Broken, Refused, SidecarError, Unavailable
    from sidecar.library.agent import (
        ReplicationAgent,
        ReplicationConfig,
        ReplicationStats,
        open_store,
    )
    from sidecar.library.change import Change
    from sidecar.library.changes import ChangeFeed, ChangeStream
    from sidecar.library.conflicts import Conflict, ConflictResolver, Resolution, Side, Why

__all__ = [
    "Broken",
    "Change",
    "ChangeFeed",
    "ChangeStream",
    "Conflict",
    "ConflictResolutionStrategy",
    "ConflictResolver",
    "NodeHealth",
    "NodeId",
    "Operation",
    "Place",
    "Refused",
    "RegionId",
    "Relationship",
    "ReplicationAgent",
    "ReplicationConfig",
    "ReplicationStats",
    "ReplicationStrategy",
    "RequestType",
    "Resolution",
    "Router",
    "RoutingDecision",
    "Side",
    "SidecarError",
    "Tenants",
    "Topology",
    "TopologyBuilder",
    "TopologyError",
    "Unavailable",
    "Why",
    "ZoneId",
    "open_store",
]

if not TYPE_CHECKING:  # a type checker would take it for a module that has every name
    _NAMES = {
        "sidecar.core.conflict": ("ConflictResolutionStrategy",),
        "sidecar.core.relationship": ("Operation", "Relationship"),
        "sidecar.core.router": ("NodeHealth", "RequestType", "Router", "RoutingDecision"),
        "sidecar.core.tenants": ("Place", "Tenants"),
        "sidecar.core.topology": (
            *("NodeId", "RegionId", "ReplicationStrategy", "Topology", "TopologyBuilder"),
            *("TopologyError", "ZoneId"),
        ),
        "sidecar.errors": ("Broken", "Refused", "SidecarError", "Unavailable"),
        "sidecar.library.agent": (
            *("ReplicationAgent", "ReplicationConfig", "ReplicationStats", "open_store"),
        ),
        "sidecar.library.change": ("Change",),
        "sidecar.library.changes": ("ChangeFeed", "ChangeStream"),
        "sidecar.library.conflicts": (
            *("Conflict", "ConflictResolver", "Resolution", "Side", "Why"),
        ),
    }
    _HOMES = {name: home for home, names in _NAMES.items() for name in names}

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return found

    def __dir__():
        return sorted({*globals(), *__all__})
