"""The tuples that are written: ten to a resource, and subjects as busy as in the real history.

The history in `tests/data` ends with 6,968 tuples of 2,083 subjects: three tenths of a subject for
each tuple.
"""

import json
from collections.abc import Iterator

from sidecar.core.relationship import Change, Operation, Relationship

TENANT = "default"
PER_RESOURCE = 10

Triple = tuple[str, str, str]


def triples(series: str, count: int) -> Iterator[Triple]:
    """`count` different tuples; other series have no name in common with them."""
    subjects = max(100, count * 3 // 10)
    for i in range(count):
        # A step of seven: the ten tuples of a resource have ten subjects.
        yield (
            f"document:{series}-{i // PER_RESOURCE:07}",
            "viewer",
            f"user:{series}-{i * 7 % subjects:07}",
        )


def insertion(triple: Triple) -> Change:
    """The change that inserts this tuple."""
    return Change(Operation.INSERT, Relationship(TENANT, *triple))


def check_bodies(series: str, requests: int) -> Iterator[bytes]:
    """Bodies of SpiceDB's `permissions/check`, about as many different tuples."""
    for resource, relation, subject in triples(series, requests):
        asked = {
            "consistency": {"minimizeLatency": True},
            "resource": _reference(resource),
            "permission": relation,
            "subject": {"object": _reference(subject)},
        }
        yield json.dumps(asked).encode()


def _reference(named: str) -> dict[str, str]:
    kind, _, identifier = named.partition(":")
    return {"objectType": kind, "objectId": identifier}


def write_bodies(series: str, requests: int, per_request: int) -> Iterator[bytes]:
    """Bodies of `relationships/write` with so many different relationships each."""
    found = triples(series, requests * per_request)
    for _ in range(requests):
        relationships = [
            {"resource": resource, "relation": relation, "subject": subject}
            for resource, relation, subject in (next(found) for _ in range(per_request))
        ]
        yield json.dumps({"relationships": relationships}).encode()
