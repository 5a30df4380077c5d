"""The id of a request: taken from the application or made here, in each line of the log that is
about it, passed on with it, and given back with its answer.

Owns the names of the headers and what is taken for an id. An id is a note for people: one that is
too long or not printable is not refused, another takes its place.
"""

import itertools
import secrets
from typing import Final

from aiohttp import web
from multidict import istr

from sidecar import logs
from sidecar.hops import Head, Passed

REQUEST_ID: Final = istr("X-Request-Id")
"""Between an application and its node."""

FROM_NODE: Final = istr("X-Sidecar-Request-Id")
"""Between nodes: what an application sent under the other name stays as it came."""

MAX_ID: Final = 128

_RAW: Final = REQUEST_ID.lower().encode()
_OWN: Final = f"{secrets.token_hex(5)}-"
_numbers = itertools.count(1)


def take(request: web.BaseRequest, header: str) -> None:
    """What this task logs from now on is about this request.

    header: where its id is looked for. Between nodes none is made: a session is no request.
    """
    given = request.headers.get(header)
    if given and len(given) <= MAX_ID and given.isascii() and given.isprintable():
        logs.speak_of_request(given)
    elif header is REQUEST_ID:
        # A number after what is this process's own: a random one for each would cost more.
        logs.speak_of_request(f"{_OWN}{next(_numbers):x}")


def add_to(head: Head) -> None:
    """Give the id back in an answer of another server, unless that gives one itself."""
    if logs.request_id() and not any(name.lower() == _RAW for name, _ in head):
        head.append((REQUEST_ID.encode(), logs.request_id().encode()))


def give_back(answer: web.StreamResponse) -> None:
    """The same, in an answer of any kind that has not begun."""
    if isinstance(answer, Passed):
        add_to(answer.head)
    elif request_id := logs.request_id():
        answer.headers[REQUEST_ID] = request_id
