"""Calls of the peer listener about what is stored here: digests, comparison, tuples, repair.

Other nodes compare themselves with this one, and `sidecar verify` looks at all of them. Owns the
shape of these calls; what is read and said is the business of `agent/digests.py`.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from aiohttp import web

from sidecar.agent.digests import REACH_S, Digests, Piece, StoredTuple
from sidecar.api.answers import Answers, compact
from sidecar.core.compare import Reading
from sidecar.core.relationship import BUCKETS
from sidecar.core.session import Party
from sidecar.core.vector import Vector
from sidecar.core.wire import decode_vector, encode_vector
from sidecar.errors import Refused

DIGESTS: Final = "/peer/v1/digests"
COMPARE: Final = "/peer/v1/compare"
STRAYS: Final = "/peer/v1/strays"
STATES: Final = "/peer/v1/states"
REPAIR: Final = "/peer/v1/repair"

Body = Mapping[str, Any]


class Inspected(Protocol):
    """What these calls need of a partition."""

    me: Party
    digests: Digests


class Inspection:
    """The calls of one node, about its partitions; the first is meant where none is named."""

    def __init__(self, partitions: Iterable[Inspected], answers: Answers) -> None:
        self._partitions = {one.me.partition: one for one in partitions}
        self._default, self._node = next(
            (name, one.me.node) for name, one in self._partitions.items()
        )
        self._answers = answers

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        guarded = self._answers.guarded
        app.router.add_post(DIGESTS, guarded(self._get_digests))
        app.router.add_post(COMPARE, guarded(self._compare))
        app.router.add_post(STRAYS, guarded(self._find_strays))
        app.router.add_get(STATES + "/{bucket}", guarded(self._get_states))
        app.router.add_post(REPAIR, guarded(self._repair))

    def _json(self, answer: Mapping[str, object]) -> web.Response:
        return self._answers.json(compact({"node": self._node, **answer}))

    def _of(self, name: object) -> Inspected:
        """The partition of this name. Raises Refused("partition_mismatch")."""
        found = self._partitions.get(str(self._default if name is None else name))
        if found is None:
            raise Refused(
                "partition_mismatch",
                f"the asking node says partition {str(name)[:80]!r}, {self._node} has "
                f"{', '.join(map(repr, self._partitions))}; such nodes are not compared",
            )
        return found

    async def _get_digests(self, request: web.Request) -> web.Response:
        """{"first", "partition"?} -> the sums of some buckets from there on."""
        body = await _body(request)
        first, asked = _bucket(body.get("first")), self._of(body.get("partition"))
        asked.digests.check_serving()
        return self._json(asked_of(asked.me, first, await asked.digests.read(first)))

    async def _compare(self, request: web.Request) -> web.Response:
        """What `asked_of` made -> {"unequal", "undecided"}: lists of buckets."""
        body = await _body(request)
        here = self._of(body.get("partition", ""))
        for name in ("partitions", "rules"):
            if body.get(name) != getattr(here.me, name):
                raise Refused(
                    f"{name}_mismatch",
                    f"the asking node says {name} {str(body.get(name))[:80]!r}, {here.me.node} "
                    f"says {getattr(here.me, name)!r}; such nodes are not compared",
                )
        asked = reading_of(body)
        wait_s = body.get("wait_s", REACH_S)
        if not isinstance(wait_s, int | float) or not 0 <= wait_s <= REACH_S:
            raise Refused("bad_request", f"wait_s is a number up to {REACH_S:.0f}")
        vector, said = await here.digests.compare(asked, wait_s)
        return self._json(
            {
                "vector": encode_vector(vector),
                "unequal": sorted(said.unequal),
                "undecided": sorted(said.undecided),
            }
        )

    async def _find_strays(self, request: web.Request) -> web.Response:
        """{"partition"?} -> {"strays": [[bucket, key], …]}, after a walk over everything."""
        here = self._of((await _body(request)).get("partition"))
        strays = await here.digests.find_strays()
        listed = [[n, key] for n, members in sorted(strays.items()) for key in sorted(members)]
        return self._json({"strays": listed})

    async def _get_states(self, request: web.Request) -> web.Response:
        """All tuples of a bucket; with `?page=1` also the page that repairs another node.

        `partition`: of which, as in the bodies of the other calls.
        """
        text = request.match_info["bucket"]
        number = _bucket(int(text) if text.isascii() and text.isdigit() else None)
        digests = self._of(request.query.get("partition")).digests
        vector, tuples = await digests.tuples(number)
        answer: dict[str, object] = {
            "vector": encode_vector(vector),
            "tuples": [_tuple_json(one) for one in tuples],
        }
        if request.query.get("page") == "1":
            answer["page"] = await digests.page(number)
        return self._json(answer)

    async def _repair(self, request: web.Request) -> web.Response:
        """{"to", "from", "pages", "partition"?} -> {"appeared", "disappeared"}, once taken."""
        body = await _body(request)
        source, pages = body.get("from"), body.get("pages")
        here = self._of(body.get("partition"))
        if body.get("to") != self._node:
            raise Refused("wrong_node", f"this is {self._node}")
        if not isinstance(source, str) or source == self._node:
            raise Refused("bad_request", "from is the node whose pages these are, another one")
        if not isinstance(pages, list) or not all(isinstance(page, str) for page in pages):
            raise Refused("bad_request", "pages is a list of texts")
        taken = await here.digests.take(source, pages)
        return self._json({"appeared": taken.appeared, "disappeared": taken.disappeared})


def asked_of(me: Party, first: int, piece: Piece) -> dict[str, object]:
    """What a node says of a piece of its buckets, and what another one can compare itself with."""
    return {
        "node": me.node,
        "partition": me.partition,
        "partitions": me.partitions,
        "rules": me.rules,
        "vector": encode_vector(piece.reading.vector),
        "first": first,
        "following": piece.following,
        "sums": [piece.reading.sums[number] for number in range(first, piece.following)],
        "damaged": sorted(piece.damaged),
    }


def reading_of(body: Body) -> Reading:
    """The sums that were sent. Raises Refused("bad_request")."""
    first, sums = _bucket(body.get("first")), body.get("sums")
    is_list = isinstance(sums, list) and all(type(one) is int for one in sums)
    if not is_list or not sums or first + len(sums) > BUCKETS:
        raise Refused("bad_request", "sums is a list of whole numbers, one for each bucket")
    vector: Vector = decode_vector(body.get("vector"))
    return Reading(vector, dict(enumerate(sums, first)))


def _tuple_json(one: StoredTuple) -> dict[str, object]:
    tenant, resource, relation, subject = one.identity
    named: dict[str, object] = {
        "tenant": tenant,
        "resource": resource,
        "relation": relation,
        "subject": subject,
    }
    if one.is_stray:
        named["stray"] = True
    if one.shown is None:
        return {**named, "damaged": one.text}
    timestamp, origin = one.shown.version
    named |= {"visible": one.shown.is_visible, "timestamp": str(timestamp), "origin": origin}
    if one.shown.condition:
        named["condition"] = one.shown.condition
    if one.shown.expires_at:
        named["expires_at"] = one.shown.expires_at
    return named


def _bucket(number: object) -> int:
    if type(number) is not int or not 0 <= number < BUCKETS:
        raise Refused("bad_request", f"a bucket is a whole number below {BUCKETS}")
    return number


async def _body(request: web.Request) -> Body:
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Refused("bad_request", "the body is a JSON object")
    return body
