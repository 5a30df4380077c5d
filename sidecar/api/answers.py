"""Answers of the app listener: JSON, its headers, and the one place where failures become answers.

Every answer says who gave it (`X-Served-By: region/node`); every failure is
`{"error": code, "message": text}`. Knows nothing of the calls.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from aiohttp import web

from sidecar.core.relationship import Relationship, format_expires_at
from sidecar.core.topology import Node
from sidecar.errors import Broken, SidecarError, Unavailable

log = logging.getLogger(__name__)

Route = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_MESSAGE = 600
"""Characters of a message; the rest of a longer one is cut."""

JSON_TYPE = "application/json"
_WORDS = {
    400: ("bad_http", "the request is not valid HTTP"),
    404: ("not_found", "no such path"),
    405: ("method_not_allowed", "this path does not take this method"),
    413: ("body_too_large", "the body is larger than allowed"),
    417: ("expectation_failed", "the only expectation that is met is 100-continue"),
    500: ("internal_error", "this node failed to answer; its log says more"),
    504: ("timeout", "this node did not answer in time"),
}


def relationship_json(one: Relationship) -> str:
    """JSON of a relationship; what it does not have is left out. ASCII, in one line."""
    text = (
        f'{{"resource":{quoted(one.resource)},"relation":{quoted(one.relation)},'
        f'"subject":{quoted(one.subject)}'
    )
    if one.condition is not None:
        text += f',"condition":{one.condition}'
    if one.expires_at is not None:
        text += f',"expires_at":"{format_expires_at(one.expires_at)}"'
    return text + "}"


class Answers:
    """Makes the answers of one node."""

    def __init__(self, node: Node) -> None:
        self.served_by = f"{node.region}/{node.id}"
        # Connections end with their next answer, because this node is about to end.
        self.is_ending = False
        self._headers = {"Content-Type": JSON_TYPE, "X-Served-By": self.served_by}

    def json(
        self, text: str, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        """An answer whose JSON text is ready."""
        merged = {**self._headers, **headers} if headers else self._headers
        return web.Response(body=text.encode(), status=status, headers=merged)

    def error(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        """`{"error", "message"}`; header bytes that are no text are shown as '?'."""
        shown = message[:MAX_MESSAGE].encode("utf-8", "replace").decode()
        return self.json(json.dumps({"error": code, "message": shown}), status, headers)

    def failure(self, failure: SidecarError) -> web.Response:
        """The answer to a refusal, to an outage, or to a broken invariant of ours."""
        if isinstance(failure, Broken):
            log.error("an invariant does not hold: %s", failure.message, exc_info=failure)
            return self.http(500)
        headers = None
        if isinstance(failure, Unavailable):
            headers = {"Retry-After": str(failure.retry_after_s)}
        elif failure.status == 401:
            headers = {"WWW-Authenticate": "Bearer"}
        return self.error(failure.status, failure.code, failure.message, headers)

    def http(
        self, status: int, message: str | None = None, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        """The answer to what HTTP itself went wrong with."""
        code, words = _WORDS.get(status, (f"http_{status}", "the request was not accepted"))
        return self.error(status, code, message or words, headers)

    def too_large(self, most_bytes: int) -> web.Response:
        """The answer to a body above the limit."""
        return self.http(413, f"the body is larger than {most_bytes} bytes after decompression")

    def guarded(self, route: Route) -> Route:
        """The route, with every foreseen failure turned into its answer."""

        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                return await route(request)
            except SidecarError as failure:
                return self.failure(failure)
            except web.HTTPRequestEntityTooLarge:
                return self.too_large(request.client_max_size)
            except web.HTTPException as failure:
                return self.http(failure.status)
            except web.RequestPayloadError as failure:
                reason = str(failure).strip().rpartition("\n")[2].strip()
                refused = self.error(400, "bad_body", f"the body cannot be read: {reason}")
                refused.force_close()
                return refused

        return answer


def compact(value: Any) -> str:
    """JSON without spaces, in ASCII."""
    return json.dumps(value, separators=(",", ":"))
