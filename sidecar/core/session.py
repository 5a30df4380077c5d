"""What both ends of a session say: who they are, whether they agree, what became of a batch.

What a node ships, and when, is decided in `core/sender.py`. Neither knows sockets, tasks or Redis.
"""

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sidecar.core.vector import Vector
from sidecar.core.wire import encode_frame, encode_vector
from sidecar.errors import Refused

PROTOCOLS = (1, 1)
"""The oldest and the newest version of the session protocol that this release speaks."""

TRANSFER = "transfer"
"""The origin of feed entries that tell watchers what a state transfer changed; never shipped."""

# What the other end said is quoted as far as a person reads it, however long or deep it is.
_quoting = reprlib.Repr()
_quoting.maxstring = _quoting.maxother = 80
quoted = _quoting.repr


@dataclass(frozen=True, slots=True)
class Party:
    """What both ends of a session must agree on, and who they are.

    residency: the fingerprint of which tenants are stored where; "": all are everywhere.
    """

    node: str
    region: str
    partition: str
    partitions: int
    format: int
    rules: str
    residency: str = ""

    def to_json(self) -> dict[str, object]:
        """The part of a hello that does not change while a node runs."""
        residency = {"residency": self.residency} if self.residency else {}
        return {
            "node": self.node,
            "region": self.region,
            "partition": self.partition,
            "partitions": self.partitions,
            "format": self.format,
            "rules": self.rules,
            **residency,
        }


class AckOutcome(StrEnum):
    """What became of a batch at the target."""

    APPLIED = "applied"
    GAP = "gap"


def heartbeat(facts: Mapping[str, object]) -> str | bytes:
    """The frame that makes idle different from stuck, and tells what a node knows of others."""
    return encode_frame({"type": "heartbeat", **facts})


def greet(hello: Mapping[str, object], me: Party, regions: Mapping[str, str]) -> tuple[str, int]:
    """Who is at the other end, and the protocol to speak; `regions` has the known nodes.

    Raises Refused when the two must not replicate: the message names both values.
    """
    if (kind := hello.get("type")) != "hello":
        raise Refused("bad_frame", f"a session begins with hello, not {quoted(kind)}")
    protocol = _common_protocol(hello.get("protocols"))
    node = hello.get("node")
    if hello.get("to") != me.node:
        raise Refused("wrong_node", f"expected {quoted(hello.get('to'))}, this is {me.node}")
    if not isinstance(node, str) or node not in regions or node == me.node:
        raise Refused(
            "unknown_node", f"{quoted(node)} is not another node of the topology of {me.node}"
        )
    # A node that stores every tenant everywhere says nothing of it.
    told = {"residency": "", **hello}
    theirs = {"residency": "", **me.to_json(), "node": node, "region": regions[node]}
    for name, mine in theirs.items():
        if told.get(name) != mine:
            raise Refused(
                f"{name}_mismatch",
                f"{node} says {name} {quoted(told.get(name))}, {me.node} says {mine!r}; "
                f"{_HINTS.get(name, '')}nothing is lost, the session resumes when they agree",
            )
    return node, protocol


_UNLIKE_TENANTS = "the `regions` of some `tenants` differ in their configurations; "
_HINTS = {"residency": _UNLIKE_TENANTS, "partition": _UNLIKE_TENANTS}


def welcome(me: Party, origin: str, protocol: int, facts: Mapping[str, object]) -> str | bytes:
    """The answer to a hello that agrees."""
    return encode_frame(
        {
            "type": "welcome",
            "protocol": protocol,
            **me.to_json(),
            "origin": origin,
            **facts,
        }
    )


def refuse(code: str, message: str) -> str | bytes:
    """The last frame of a session that cannot go on."""
    return encode_frame({"type": "refuse", "code": code, "message": message})


def acknowledge(
    number: object,
    outcome: AckOutcome,
    vector: Vector,
    durable: Vector,
    parked: Mapping[str, str] | None = None,
) -> str | bytes:
    """The answer to a batch, once its merge is in Redis. Refuses a batch without a number.

    parked: origin -> why its transactions wait at the target.
    """
    if not isinstance(number, int):
        raise Refused("bad_frame", f"a batch has a whole number, not {quoted(number)}")
    return encode_frame(
        {
            "type": "ack",
            "batch": number,
            "outcome": outcome.value,
            "vector": encode_vector(vector),
            "durable": encode_vector(durable),
            **({"parked": dict(parked)} if parked else {}),
        }
    )


def joined_of(head: Mapping[str, object]) -> frozenset[str] | None:
    """Nodes whose states the other end has joined since its rules changed; None: all of them."""
    if "joined" not in head:
        return None
    nodes = head["joined"]
    if not isinstance(nodes, list) or not all(isinstance(node, str) for node in nodes):
        raise Refused("bad_frame", "joined is a list of node ids")
    return frozenset(nodes)


def outcome_of(word: object) -> AckOutcome:
    try:
        return AckOutcome(str(word))
    except ValueError:
        raise Refused("bad_frame", f"{quoted(word)} is no outcome of a batch") from None


def _common_protocol(theirs: object) -> int:
    oldest, newest = PROTOCOLS
    is_pair = isinstance(theirs, list) and [type(v) for v in theirs] == [int, int]
    bounds: Iterable[int] = theirs if is_pair and isinstance(theirs, list) else (0, 0)
    their_oldest, their_newest = bounds
    common = min(newest, their_newest)
    if common < max(oldest, their_oldest):
        raise Refused(
            "protocol_mismatch",
            f"the other end speaks session protocols {quoted(theirs)}, this node {list(PROTOCOLS)}",
        )
    return common
