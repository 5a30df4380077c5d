"""What the commands that ask an admin listener share: the client, and how things are told.

Owns the failure of a URL that is no admin listener, and what keeps a peer's text from steering a
terminal. What is asked is the business of `conflicts` and `operations`.
"""

import json
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rich.console import Console

from sidecar.commands.bulk import ADMIN, Sidecar, bearer_of, check_url
from sidecar.errors import Refused

NOT_FOUND = 404
WAIT_S = 2.0

PIPE_COLUMNS = 10_000
"""Width where there is no terminal: each entry stays in one line, so that `grep` finds it whole."""


token_file: ContextVar[Path | None] = ContextVar("token_file", default=None)
"""Where the operator's token is (--token-file): the same for all that one command asks."""


@asynccontextmanager
async def admin_of(url: str, what: str) -> AsyncIterator[Sidecar]:
    """A client of the admin listener at `url`, which is asked for `what`.

    Raises Refused for what is no admin listener, Unavailable when nobody answers.
    """
    check_url(url, ADMIN)
    bearer = bearer_of("--token-file", token_file.get())
    async with Sidecar(
        url, wait_s=WAIT_S, warn=lambda _: None, listener=ADMIN, bearer=bearer
    ) as client:
        try:
            yield client
        except Refused as refused:
            if refused.status != NOT_FOUND:
                raise
            raise Refused(
                "not_found",
                f"{url} knows no {what}; --url should be the {ADMIN.name} of a sidecar, such as "
                f"{ADMIN.example}",
                NOT_FOUND,
            ) from refused


def tell_lines(objects: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, as the admin listener gives it, on standard output."""
    for one in objects:
        line = json.dumps(one, ensure_ascii=False, separators=(",", ":"))
        sys.stdout.buffer.write(line.encode("utf-8", "replace") + b"\n")
    sys.stdout.buffer.flush()


def console() -> Console:
    """Standard output, for tables."""
    made = Console(highlight=False, markup=False)
    if not made.is_terminal:
        made.width = PIPE_COLUMNS
    return made


def moment(rfc3339: str) -> str:
    """A time to the second, as people read it."""
    return rfc3339.removesuffix("Z").replace("T", " ").partition(".")[0]


def printable(text: str) -> str:
    """What a peer wrote must not steer the terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
