"""OpenAPI 3.1 documents, put together from calls and the shapes of their bodies and answers.

Owns how a document is written, and what all calls have in common: the shape of a failure. What a
listener takes and answers is said in `api/openapi.py` and `admin/openapi.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import hdrs, web
from pydantic import TypeAdapter

from sidecar.api.answers import JSON_TYPE, Answers, compact
from sidecar.errors import Broken
from sidecar.health import RELEASE

Schema = Mapping[str, Any]
Guards = Sequence[Mapping[str, Sequence[str]]]

OPENAPI: Final = "/openapi.json"
EVENTS: Final = "text/event-stream"

TEXT: Final[Schema] = {"type": "string"}
FLAG: Final[Schema] = {"type": "boolean"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
NUMBER: Final[Schema] = {"type": "number", "minimum": 0}
DIGITS: Final[Schema] = {
    "type": "string",
    "pattern": "^[0-9]{1,16}$",
    "description": "A text, because it is larger than some JSON readers' numbers.",
}
VECTOR: Final[Schema] = {
    "type": "object",
    "description": "Origin to timestamp in microseconds since 1970.",
    "additionalProperties": DIGITS,
}
ERROR: Final[Schema] = {
    "type": "object",
    "required": ["error", "message"],
    "properties": {
        "error": {"type": "string", "pattern": "^[a-z0-9_]+$"},
        "message": {"type": "string", "description": "What, where, what is allowed."},
    },
}


@dataclass(frozen=True, slots=True)
class Call:
    """One call. answer: schema of a 200. refusals: statuses of its failures.

    body: a schema; a call without takes none, or does not look at it. media: of a 200. guards:
    names of what lets a request in, in alternatives; none: anybody may call it.
    """

    method: str
    path: str
    summary: str
    answer: Schema = field(default_factory=lambda: {"type": "object"})
    refusals: Sequence[int] = ()
    body: Schema | None = None
    is_body_optional: bool = False
    parameters: Sequence[Schema] = ()
    media: str = JSON_TYPE
    other_answers: Mapping[int, Schema] = field(default_factory=dict)
    guards: Guards = ()


def ref(name: str) -> Schema:
    """A schema by its name in the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def shape(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object with these fields; others may come with later releases."""
    return {
        "type": "object",
        "required": sorted(required),
        "properties": {**required, **(optional or {})},
    }


def listed(schema: Schema) -> Schema:
    """A list of these."""
    return {"type": "array", "items": schema}


def maybe(schema: Schema) -> Schema:
    """This, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def by_name(schema: Schema) -> Schema:
    """An object of these, by some name."""
    return {"type": "object", "additionalProperties": schema}


def header(name: str, schema: Schema, description: str) -> Schema:
    """A header that may be given."""
    return {"name": name, "in": "header", "schema": schema, "description": description}


def query(name: str, schema: Schema, description: str) -> Schema:
    """A parameter that may be given."""
    return {"name": name, "in": "query", "schema": schema, "description": description}


def schemas_of(bodies: Mapping[str, TypeAdapter[Any]]) -> dict[str, Schema]:
    """The schemas of bodies as they are checked, by name, with those that they refer to."""
    found: dict[str, Schema] = {}
    for name, adapter in bodies.items():
        schema = adapter.json_schema(ref_template="#/components/schemas/{model}")
        found |= schema.pop("$defs", {})
        found[name] = schema
    return found


def document(
    title: str,
    description: str,
    calls: Iterable[Call],
    schemas: Mapping[str, Schema],
    guards: Mapping[str, Schema],
) -> dict[str, Any]:
    """The document of one listener."""
    paths: dict[str, dict[str, Any]] = {}
    for call in calls:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "description": description, "version": RELEASE},
        "paths": paths,
        "components": {"schemas": {"Error": ERROR, **schemas}, "securitySchemes": dict(guards)},
    }


def _operation(call: Call) -> dict[str, Any]:
    guarded = (401, 403) if call.guards else ()
    statuses = sorted({*call.refusals, *call.other_answers, *guarded})
    answers: dict[str, Any] = {
        "200": {"description": "Done.", "content": {call.media: {"schema": call.answer}}}
    }
    for status in statuses:
        schema = call.other_answers.get(status, ref("Error"))
        answers[str(status)] = {
            "description": _WORDS.get(status, "Refused."),
            "content": {JSON_TYPE: {"schema": schema}},
        }
    name = call.path.strip("/").replace("/", "_").replace(".", "_") or "page"
    operation: dict[str, Any] = {
        "operationId": f"{call.method.lower()}_{name}",
        "summary": call.summary,
        "responses": answers,
    }
    if call.guards:
        operation["security"] = list(call.guards)
    if call.parameters:
        operation["parameters"] = list(call.parameters)
    if call.body is not None:
        operation["requestBody"] = {
            "required": not call.is_body_optional,
            "content": {JSON_TYPE: {"schema": call.body}},
        }
    return operation


_WORDS = {
    400: "What is asked is not valid; the message says where, and what is allowed.",
    401: "Who asks has not said who it is, or not rightly.",
    403: "Not allowed here, or to who asks.",
    409: "It does not fit the present state.",
    410: "What it refers to is gone, or was lost.",
    413: "Too much at once.",
    415: "The body is not JSON in UTF-8, or compressed in another way than gzip or deflate.",
    422: "The idempotency key belongs to another request.",
    503: "Not at the moment; Retry-After says when to try again.",
    504: "Not in time.",
}


class Documented:
    """`GET /openapi.json` of one listener. What does not name just its calls is not served."""

    def __init__(self, written: Mapping[str, Any], answers: Answers) -> None:
        self._text, self._answers = compact(written), answers
        self._places = {
            (method.upper(), path)
            for path, operations in written["paths"].items()
            for method in operations
        }

    async def get(self, request: web.Request) -> web.Response:
        """The document. Raises Broken."""
        if wrong := self._places ^ _routes(request.app):
            listed = ", ".join(" ".join(place) for place in sorted(wrong))
            raise Broken(f"{OPENAPI} and the calls of this listener do not agree about {listed}")
        return self._answers.json(self._text)


def _routes(app: web.Application) -> set[tuple[str, str]]:
    """Method and path of each call; without what only refuses, and HEAD, which GET takes along."""
    return {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method not in {hdrs.METH_ANY, hdrs.METH_HEAD}
    }
