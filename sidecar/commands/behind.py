"""`sidecar adopt`, `reapply`, `held`: what a person does about the database behind a node.

Owns what is asked of the admin listener and how the answer is told.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from rich.table import Table

from sidecar.commands.asking import admin_of, console, moment, printable
from sidecar.commands.bulk import REQUEST_TIMEOUT_S
from sidecar.errors import Unavailable

JsonObject = dict[str, Any]

MAX_SHOWN = 1000
"""Held tuples that are asked for; the status says how many there are."""

REAPPLY_LIMIT_S = 10 * REQUEST_TIMEOUT_S


async def adopt(
    url: str, *, dry_run: bool, with_deletions: bool, advance: Callable[[JsonObject], None]
) -> JsonObject:
    """Have that node take over what its database holds; `advance` is told how far it is.

    Raises Refused, and Unavailable when it ends early; what was taken over until then stays.
    """
    asked = urlencode({"dry_run": int(dry_run), "deletions": int(with_deletions)})
    last: JsonObject = {}
    async with admin_of(url, "database to adopt") as client:
        async for last in client.lines(f"/database/adopt?{asked}"):
            advance(last)
    if "error" in last:
        raise Unavailable(last["error"], f"it ended early: {last['message']}{_so_far(last)}")
    if "done" not in last:
        raise Unavailable("no_answer", f"the node has ended its answer early{_so_far(last)}")
    return last


async def reapply(url: str) -> int:
    """Have that node tell its database everything again; how many tuples."""
    async with admin_of(url, "database to tell") as client:
        answer = await client.post("/database/reapply", "default", b"", limit_s=REAPPLY_LIMIT_S)
    return int(answer["marked"])


async def held_at(url: str) -> list[JsonObject]:
    """What the database behind that node refuses."""
    async with admin_of(url, "held tuples") as client:
        answer = await client.get(f"/database/held?limit={MAX_SHOWN}")
    return list(answer["held"])


async def release(url: str) -> int:
    """Have that node tell its database again what it refused; how many tuples."""
    async with admin_of(url, "held tuples") as client:
        return int((await client.post("/database/held/release", "default", b""))["released"])


# --- what a person reads --------------------------------------------------------------------------


def adopted_in_words(done: JsonObject) -> Iterator[str]:
    """A line for each thing to know."""
    would = "would be " if done["dry_run"] else ""
    there = f"{done['relationships']:,} relationships are in the database"
    yield f"{there}, {done['adopted']:,} {would}adopted, in {done['seconds']:.1f} s"
    match done["schema"]:
        case "adopted":
            yield f"its schema differs from the one here, and {would or 'was '}adopted"
        case "missing":
            yield "it has no schema, and one is shown here; `sidecar reapply` writes it again"
        case "waiting":
            yield "the schema here is not in the database yet, or refused there; see `sidecar held`"
    if done["deleted"]:
        yield (
            f"{done['deleted']:,} relationships were not in the database and {would or 'were '}"
            "deleted here"
        )
    elif done["missing"]:
        yield (
            f"{done['missing']:,} relationships are shown here and are not in the database; they "
            "may have been deleted there behind the sidecar's back (--with-deletions takes that "
            "over), or the database has lost them (`sidecar reapply` writes them again)"
        )
    if done["waiting"]:
        yield (
            f"{done['waiting']:,} relationships differ and were left out: the database has not "
            "been told of them yet, or refuses them (`sidecar status`, `sidecar held`)"
        )


def tell_held(held: Sequence[Mapping[str, str]]) -> None:
    """Print them as rows."""
    if not held:
        console().print("nothing is held")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("tenant", "relationship", "since (UTC)", "reason"):
        table.add_column(heading, overflow="fold")
    for one in held:
        named = f"{one['resource']} {one['relation']} {one['subject']}"
        cells = (one["tenant"], named, moment(one["since"]), one["reason"])
        table.add_row(*map(printable, cells))
    console().print(table)


def database_facts(database: JsonObject | None) -> Iterator[tuple[str, str]]:
    """What `sidecar status` shows of it; nothing where there is none."""
    if database is None:
        return
    away = database["away_because"]
    yield "database", f"{database['dialect']}, {'away: ' + away if away else 'up'}"
    if not database["replicates"]:
        yield "", "nothing is replicated"
        return
    if database["failing_because"]:
        yield "not told because", database["failing_because"]
    if database["pending"] is not None:
        more = ", and everything is being marked" if database["marking"] else ""
        yield "pending tuples", f"{database['pending']:,}{more}"
        yield "held tuples", _held_in_words(database["held"])
    yield "unknown outcomes", f"{database['unknown_outcomes']:,}"
    if database["adopting"]:
        yield "adopting", "yes"
    if database["misunderstood"]:
        count = f"{database['misunderstood']:,}"
        yield "unreplicated writes", f"{count} were not understood; run `sidecar adopt`"


def _held_in_words(count: int) -> str:
    return f"{count:,}; `sidecar held` says why" if count else "0"


def _so_far(last: JsonObject) -> str:
    if not last:
        return ""
    seen = f"{last['adopted']:,} of {last['relationships']:,} relationships that were read"
    return f"; {seen} were adopted until then, and another run goes on"
