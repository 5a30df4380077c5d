"""`sidecar status`: all nodes of a deployment as one of them sees them, on a terminal.

Owns how `GET /deployment` is told to people: a row for each node, and below it in words whatever is
not as it should be. Fits 100 columns.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sidecar.commands.asking import admin_of, console, printable
from sidecar.errors import Refused, Unavailable

JsonObject = dict[str, Any]

REFRESH_S = 1.0
MAX_REMARKS = 20
"""Lines below the table; a last one says how many more there are."""

_LEFT = ("region", "node", "health")
_RIGHT = ("lag", "tx", "backlog", "incarnation", "epoch", "collection", "parked", "held")
NONE = "–"


async def deployment_of(url: str) -> JsonObject:
    """All nodes, asked of the one whose admin listener is at `url`."""
    async with admin_of(url, "deployment") as client:
        return _checked(await client.get("/deployment"))


async def watch_deployment(url: str, tell: Callable[[JsonObject, str], None]) -> None:
    """Tell it each second for ever; after the first answer also that there is none any more.

    tell: takes what was said last, and why there is nothing newer ("": it is new).
    """
    async with admin_of(url, "deployment") as client:
        shown = _checked(await client.get("/deployment"))
        tell(shown, "")
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                shown, away = _checked(await client.get("/deployment")), ""
            except Unavailable as unavailable:
                away = unavailable.message
            tell(shown, away)


def _checked(answer: JsonObject) -> JsonObject:
    if not isinstance(answer.get("nodes"), dict):
        raise Refused("bad_answer", "GET /deployment gave no nodes")
    return answer


# --- what a person reads --------------------------------------------------------------------------


def tell_deployment(shown: JsonObject) -> None:
    """Print it once."""
    console().print(overview(shown))


@contextlib.contextmanager
def refreshing(to: Console | None = None) -> Iterator[Callable[[JsonObject, str], None]]:
    """Tells each state in the place of the one before; where there is no terminal, below it."""
    out = to or console()
    if not out.is_terminal:

        def tell_below(shown: JsonObject, away: str) -> None:
            out.print(overview(shown, away))
            out.print()
            out.file.flush()

        yield tell_below
        return
    with Live(console=out, auto_refresh=False, transient=False) as live:
        yield lambda shown, away: live.update(overview(shown, away), refresh=True)


def overview(shown: JsonObject, away: str = "") -> Group:
    """The table, with what is wrong below it."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in _LEFT:
        table.add_column(heading, overflow="fold")
    for heading in _RIGHT:
        is_text = heading in {"incarnation", "collection"}
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold")
    for name, node in shown["nodes"].items():
        table.add_row(*map(printable, _row(name, node, shown)))
    parts: list[Any] = [Text(printable(_headline(shown, away))), Text(), table]
    if remarks := list(_remarks(shown)):
        parts.append(Text())
        parts += [Text(printable(line)) for line in remarks[:MAX_REMARKS]]
        if len(remarks) > MAX_REMARKS:
            parts.append(Text(f"… and {len(remarks) - MAX_REMARKS} more; --json has all"))
    return Group(*parts)


def _headline(shown: JsonObject, away: str) -> str:
    words = f"{shown['strategy']} as {shown['asked_by']} sees it"
    if shown["primary"]:
        epoch = shown["epoch"]
        words += f", primary {shown['primary']}"
        words += f" (promoted, epoch {epoch['number']})" if epoch else " (by is_primary)"
    return f"{words} · NOT NOW: {away}" if away else words


def _row(name: str, node: JsonObject, shown: JsonObject) -> tuple[str, ...]:
    lag_ms, transactions, backlog = _behind(name, shown)
    named = (node["region"], name)
    late = (_duration(lag_ms), _count(transactions), _count(backlog))
    if not node["is_reachable"]:
        incarnation = node["known"].get("origin", "").partition(".")[2] or NONE
        return (*named, "away", *late, incarnation, NONE, NONE, NONE, NONE)
    status = node["status"]
    all_of_it = [status, *status["partitions"].values()]
    parked = [one["parked"] for one in all_of_it]
    database = status["database"]
    return (
        *named,
        _health(status),
        *late,
        (status["origin"] or "").partition(".")[2] or NONE,
        str(status["epoch"]["number"]) if status["epoch"] else NONE,
        _collection(all_of_it),
        NONE if None in parked else _count(sum(map(len, parked))),
        NONE if database is None else _count(database["held"]),
    )


def _health(status: JsonObject) -> str:
    is_plain = status["phase"] == "serving" or status["status"] != "unhealthy"
    return str(status["status"] if is_plain else status["phase"])


def _collection(partitions: list[JsonObject]) -> str:
    """Who holds it back, while anything waits for it."""
    held_by = {one["collection"]["held_by"] for one in partitions if one["unsettled"]}
    return ", ".join(sorted(filter(None, held_by))) or "free"


def _behind(name: str, shown: JsonObject) -> tuple[float | None, int | None, int | None]:
    """What others have for a node and it has not acknowledged: oldest, and how many in all."""
    of_it = [
        partition["targets"][name]
        for node in shown["nodes"].values()
        if "status" in node
        for partition in (node["status"], *node["status"]["partitions"].values())
        if name in partition["targets"]
    ]
    if not of_it:
        return None, None, None
    return (
        max(one["lag_ms"] for one in of_it),
        _sum(one["lag_transactions"] for one in of_it),
        _sum(one["backlog"] for one in of_it),
    )


def _sum(counts: Iterator[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _remarks(shown: JsonObject) -> Iterator[str]:
    for name, node in shown["nodes"].items():
        if not node["is_reachable"]:
            yield f"{name} is away: {node['error']}{_last_heard(node['known'])}"
            continue
        status = node["status"]
        yield from (f"{name}: {reason}" for reason in status["reasons"])
        for partition in (status, *status["partitions"].values()):
            yield from _remarks_on(name, partition)


def _remarks_on(name: str, partition: JsonObject) -> Iterator[str]:
    for target, one in partition["targets"].items():
        if one["paused"]:
            yield f"{name}: replication to {target} is paused"
        if one["unreachable"]:
            yield f"{name}: target {target} is unreachable, {_count(one['backlog'])} wait for it"
    if partition["parked"]:
        origins = ", ".join(row["origin"] for row in partition["parked"])
        yield f"{name}: parked is {origins}; `sidecar parked` at that node says why"


def _last_heard(known: Mapping[str, Any]) -> str:
    heard_s = known.get("heard_s")
    return "" if heard_s is None else f"; last heard of {_duration(heard_s * 1000)} ago"


def _duration(ms: float | None) -> str:
    """Six characters at most."""
    if ms is None:
        return NONE
    for most_ms, unit_ms, unit in (
        (1_000, 1, "ms"),
        (120_000, 1_000, "s"),
        (7_200_000, 60_000, "m"),
    ):
        if ms < most_ms:
            return f"{ms / unit_ms:.0f} {unit}"
    return f"{min(ms / 3_600_000, 9_999):.0f} h"


def _count(count: int | None) -> str:
    """Six characters at most."""
    if count is None:
        return NONE
    if count < 100_000:
        return f"{count:,}"
    return f"{count // 1_000:,}k" if count < 10_000_000 else f"{count // 1_000_000:,}M"
