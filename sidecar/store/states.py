"""The text of a tuple's state in Redis, as readers need it: only the visible part.

`lua/lib/state.lua` writes the text and says what it looks like.
"""

import json
from typing import NamedTuple

from sidecar.core.relationship import Relationship
from sidecar.core.vector import Version
from sidecar.errors import Refused


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


class Shown(NamedTuple):
    """The winner of a state: condition and expires_at as stored, "" for none."""

    is_visible: bool
    version: Version
    condition: str = ""
    expires_at: str = ""


def winner(text: str) -> Shown:
    """The winner of a state by its text. Raises Refused("damaged") for what is not one."""
    sign, rest = text[:1], text[1:]
    payload: tuple[object, ...] = ("", "")
    try:
        if rest.startswith("{"):
            at, origin, _, *payload_list = json.loads(rest)["siblings"][0]
            payload = tuple(payload_list)
        else:
            at, origin = rest.split(" ")[:2]
        version = (int(at), str(origin))
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        sign = ""
    match sign, payload:
        case "+" | "-", (str(condition), str(expires_at)):
            return Shown(sign == "+", version, condition, expires_at)
        case _:
            raise Refused("damaged", "what is stored is not the state of a tuple")
