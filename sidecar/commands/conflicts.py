"""`sidecar conflicts`: the log of conflicts of one node, once or for as long as a person looks on.

Owns what is asked of the admin listener and how an entry is told: as a row of a table, or as a line
of JSON. Once, the newest entry comes first; while following, the newest comes last.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

from rich.table import Table

from sidecar.commands.asking import admin_of, console, moment, printable
from sidecar.commands.bulk import Sidecar
from sidecar.core.relationship import check_resource, format_expires_at
from sidecar.errors import Refused, Unavailable

PATH = "/conflicts"
PAGE = 1000
LOOK_AGAIN_S = 1.0
MAX_CONDITION_SHOWN = 60
"""Characters of a condition in the table; JSON has all of it."""

BEGINNING = "1-0"
"""A cursor below that of every entry."""

Entry = dict[str, Any]
Tell = Callable[[Sequence[Entry]], None]


async def show_conflicts(
    url: str,
    *,
    resource: str | None,
    limit: int,
    is_following: bool,
    tell: Tell,
    warn: Callable[[str], None],
) -> None:
    """Tell the newest `limit` conflicts of the node whose admin listener is at `url`.

    Following, it does not return. Raises Refused for bad input and what is no sidecar, Unavailable
    when nobody answers (following: at the beginning).
    """
    if resource is not None:
        check_resource(resource)
    async with admin_of(url, "conflicts") as client:
        if is_following:
            await _follow(client, resource, limit, tell, warn)
        else:
            tell(await _newest(client, resource, limit))


async def _follow(
    client: Sidecar, resource: str | None, limit: int, tell: Tell, warn: Callable[[str], None]
) -> None:
    """Tell the newest `limit` entries and then all that come, oldest first.

    A node that is away is said once. What leaves the log between two looks (more than 10,000
    conflicts in between) is not told.
    """
    most: int | None = limit
    seen = BEGINNING
    is_away = False
    while True:
        try:
            # The newest of any resource: what does not match must not be walked over at each look.
            newest = await _newest(client, None, 1, seen)
            if newest:
                news = await _newest(client, resource, most, seen)
                tell(news[::-1])
                seen = max((one["cursor"] for one in newest + news), key=_place)
            most, is_away = None, False
        except Unavailable as away:
            if not is_away:
                warn(f"{away.message}; goes on when it is back")
            is_away = True
        await asyncio.sleep(LOOK_AGAIN_S)


async def _newest(
    client: Sidecar, resource: str | None, most: int | None, newer_than: str = BEGINNING
) -> list[Entry]:
    """Entries of the log, newest first, at most `most` (None: all)."""
    found: list[Entry] = []
    asked = {"newer_than": newer_than} | ({} if resource is None else {"resource": resource})
    while most is None or len(found) < most:
        wanted = PAGE if most is None else min(PAGE, most - len(found))
        page = await client.get(f"{PATH}?{urlencode({**asked, 'limit': wanted})}")
        if not isinstance(page.get("conflicts"), list):
            raise Refused("bad_answer", f"GET {PATH} gave no list of conflicts")
        found += page["conflicts"]
        if page.get("cursor") is None:
            break
        asked["after"] = page["cursor"]
    return found


def _place(cursor: str) -> tuple[int, int]:
    revision, _, number = cursor.partition("-")
    return int(revision), int(number)


# --- what a person reads --------------------------------------------------------------------------


class ConflictTable:
    """Tells entries as rows on standard output; the heading comes once, above the first ones."""

    def __init__(self) -> None:
        self._console = console()
        self._has_heading = False

    def tell(self, entries: Sequence[Entry]) -> None:
        """Print them in this order."""
        if not entries and self._has_heading:
            return
        is_terminal = self._console.is_terminal
        table = Table(
            box=None, pad_edge=False, expand=is_terminal, show_header=not self._has_heading
        )
        table.add_column("merged here (UTC)", width=19, overflow="fold")
        for heading, share in (("tuple", 3), ("stored here", 4), ("arrived", 4), ("winner", 3)):
            table.add_column(heading, ratio=share if is_terminal else None, overflow="fold")
        table.add_column("strategy", width=15, overflow="fold")
        for entry in entries:
            table.add_row(*map(printable, _row(entry)))
        self._console.print(table)
        self._has_heading = True


def _row(entry: Entry) -> tuple[str, ...]:
    tenant = "" if entry["tenant"] == "default" else f"{entry['tenant']}/"
    named = f"{tenant}{entry['resource']}#{entry['relation']}@{entry['subject']}"
    if entry.get("kind") == "fenced":
        since = f"not shipped before {entry['primary']} was promoted, epoch {entry['epoch']}"
        written = _version(entry["written"])
        return moment(entry["listed_at"]), named, written, since, "merged like others", "fenced"
    stored, arrived, winner = entry["stored"], entry["arrived"], entry["winner"]
    if winner == arrived:
        won = f"arrived: {winner['operation']}"
    elif winner == stored:
        won = f"stored: {winner['operation']}"
    else:
        won = f"a third: {_version(winner)}"
    return (
        moment(entry["merged_at"]),
        named,
        _version(stored),
        _version(arrived),
        won,
        entry["strategy"],
    )


def _version(one: Entry) -> str:
    written = format_expires_at(int(one["timestamp"])).removesuffix("Z").replace("T", " ")
    text = f"{one['operation']} by {one['origin'].partition('.')[0]} at {written}"
    if "condition" in one:
        condition = json.dumps(one["condition"], ensure_ascii=False, separators=(",", ":"))
        is_long = len(condition) > MAX_CONDITION_SHOWN
        text += f" if {condition[: MAX_CONDITION_SHOWN - 1] + '…' if is_long else condition}"
    return text + (f" until {moment(one['expires_at'])}" if "expires_at" in one else "")
