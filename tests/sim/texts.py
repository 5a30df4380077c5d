"""Changes and states as the texts in which they travel and are stored."""

import json
from typing import Any

from sidecar.core.conflict import Rules, Sibling
from sidecar.core.relationship import Identity, Operation
from sidecar.core.state import TupleState
from sidecar.core.wire import encode_vector


def identity_of(key: str, name: str) -> Identity:
    """The tuple stored under `tenant/resource` and `relation#subject`."""
    tenant, _, resource = key.partition("/")
    relation, _, subject = name.partition("#")
    return tenant, resource, relation, subject


def names_of(identity: Identity) -> tuple[str, str]:
    """The other way round."""
    tenant, resource, relation, subject = identity
    return f"{tenant}/{resource}", f"{relation}#{subject}"


def encode_state(state: TupleState, rules: Rules) -> str:
    """The text of a state, always in its long form; see `lua/lib/state.lua`."""
    best = rules.winner(state.siblings)
    versions = [best, *(v for v in state.siblings if v != best)]
    long: dict[str, Any] = {
        "siblings": [[str(v[0]), v[1], *_payload(state.siblings[v])] for v in versions],
        "revision": str(best[0]),
    }
    if state.beyond:
        long["beyond"] = encode_vector(state.beyond)
    return _sign(state.siblings[best]) + json.dumps(long)


def _payload(sibling: Sibling) -> tuple[str, str, str]:
    return _sign(sibling), sibling.condition or "", str(sibling.expires_at or "")


def _sign(sibling: Sibling) -> str:
    return "+" if sibling.operation is Operation.INSERT else "-"
