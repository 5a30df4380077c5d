"""The text of a tuple's state in Redis, as readers need it: only the visible part.

`lua/lib/state.lua` writes the text and says what it looks like.
"""

import json

from sidecar.core.relationship import Relationship


def visible(
    tenant: str, resource: str, field: bytes, value: bytes, now_us: int
) -> Relationship | None:
    """The relationship that readers see, or None: deleted, or expired at `now_us`."""
    if not value.startswith(b"+"):
        return None
    relation, _, subject = field.decode().partition("#")
    if not value.startswith(b"+{"):
        return Relationship(tenant, resource, relation, subject)
    _, _, _, condition, expires_at = json.loads(value[1:])["siblings"][0]
    expires_us = int(expires_at) if expires_at else None
    if expires_us is not None and expires_us <= now_us:
        return None
    return Relationship(tenant, resource, relation, subject, condition or None, expires_us)
