"""`sidecar status --node-only`, `accept-loss`, `parked`, `promote`: one node, and acts of a person.

Owns what is asked of the admin listener and how the answer is told.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from rich.table import Table

from sidecar.commands.asking import admin_of, console, moment, printable
from sidecar.commands.behind import database_facts
from sidecar.commands.bulk import REQUEST_TIMEOUT_S, Sidecar
from sidecar.core.relationship import format_expires_at
from sidecar.errors import Refused

JsonObject = dict[str, Any]


async def status_of(url: str) -> JsonObject:
    """What the node whose admin listener is at `url` says of itself."""
    async with admin_of(url, "status") as client:
        return await client.get("/status")


async def parked_at(url: str) -> list[JsonObject]:
    """The transactions that wait there, one of each origin."""
    async with admin_of(url, "parked transactions") as client:
        return await _parked(client)


async def accept_loss(url: str, partition: str | None = None) -> JsonObject:
    """Let that node go on without what it lacks. Raises Refused (409) when nothing is missing.

    partition: which of its partitions; None: the only one that lacks something.
    """
    asked = "" if partition is None else f"?{urlencode({'partition': partition})}"
    async with admin_of(url, "loss to accept") as client:
        return await client.post(f"/accept-loss{asked}", "default", b"{}")


async def promote(url: str, region: str, wait_s: float | None) -> JsonObject:
    """Make a region the primary; wait_s: drain the old one first. Raises Refused, Unavailable."""
    body: JsonObject = {"region": region} | ({} if wait_s is None else {"wait_s": wait_s})
    async with admin_of(url, "promotion") as client:
        limit_s = REQUEST_TIMEOUT_S + (wait_s or 0.0)
        return await client.post("/promote", "default", json.dumps(body).encode(), limit_s=limit_s)


async def release_parked(url: str, origin: str) -> JsonObject:
    """Have what is parked of an origin there tried again; returns what it was. Raises Refused."""
    return await _deal_with_parked(url, origin, "/parked/release")


async def drop_parked(url: str, origin: str) -> JsonObject:
    """Drop what is parked of an origin there; returns what it was. Raises Refused."""
    return await _deal_with_parked(url, origin, "/parked/drop")


async def _deal_with_parked(url: str, origin: str, path: str) -> JsonObject:
    async with admin_of(url, "parked transactions") as client:
        found = await _parked(client)
        one = next((each for each in found if each["origin"] == origin), None)
        if one is None:
            known = ", ".join(each["origin"] for each in found) or "nothing"
            raise Refused("not_parked", f"nothing of {origin} is parked there; parked is {known}")
        named = f'{{"origin":"{one["origin"]}","timestamp":"{one["timestamp"]}"}}'
        # The one that was looked at, not one that has come meanwhile.
        await client.post(path, "default", named.encode())
        return one


async def _parked(client: Sidecar) -> list[JsonObject]:
    answer = await client.get("/parked")
    if not isinstance(answer.get("parked"), list):
        raise Refused("bad_answer", "GET /parked gave no list of parked transactions")
    return list(answer["parked"])


# --- what a person reads --------------------------------------------------------------------------


def tell_status(status: JsonObject) -> None:
    """Print it: what it is, what it waits for, and its targets; one partition after the other."""
    _tell_one(status, (("node", _who(status)),))
    for name, one in status.get("partitions", {}).items():
        console().print()
        _tell_one(one, (("partition", name), ("tenants of", ", ".join(one["regions"]))))


def _who(status: JsonObject) -> str:
    return f"{status['node']} in {status['region']}, release {status['release']}"


def _tell_one(status: JsonObject, named: Iterable[tuple[str, str]]) -> None:
    out = console()
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for name, text in (*named, *_facts(status)):
        facts.add_row(name, printable(text))
    out.print(facts)
    if not status["targets"]:
        return
    out.print()
    table = Table(box=None, pad_edge=False)
    for heading in (
        "target",
        "session",
        "lag",
        "backlog",
        "acknowledged",
        "transfer",
        "last error",
    ):
        table.add_column(heading, overflow="fold")
    for node, target in status["targets"].items():
        table.add_row(*map(printable, _target(node, target, status["transfers_out"].get(node))))
    out.print(table)


def promoted_in_words(done: JsonObject) -> Iterator[str]:
    """What a promotion came to, a line each."""
    by = f"epoch {done['epoch']}" if done["epoch"] else "is_primary, never promoted"
    if done["promoted"]:
        yield f"{done['region']} is the primary ({by}, raised by {done['node']})"
    else:
        yield f"{done['region']} is the primary already ({by})"
    for node, reason in done["untold"].items():
        yield f"{node} does not know it yet, and goes by what it knew until it hears: {reason}"


def tell_parked(parked: Sequence[Mapping[str, str]]) -> None:
    """Print them as rows."""
    if not parked:
        console().print("nothing is parked")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("origin", "timestamp", "since (UTC)", "reason"):
        table.add_column(heading, overflow="fold")
    for one in parked:
        cells = (one["origin"], one["timestamp"], _moment_of(one["since"]), one["reason"])
        table.add_row(*map(printable, cells))
    console().print(table)


def _facts(status: JsonObject) -> Iterator[tuple[str, str]]:
    yield "phase", status["phase"]
    if status["serves_not_because"]:
        yield "serves nothing", status["serves_not_because"]
    if status["takes_no_writes_because"]:
        yield "takes no writes", status["takes_no_writes_because"]
    yield from database_facts(status.get("database"))
    yield from _primacy(status)
    yield "incarnation", status["origin"] or "none yet"
    if status["feed_length"] is not None:
        trimmed = int(status["trimmed"])
        behind = f", trimmed up to {trimmed}" if trimmed else ""
        yield "feed", f"{status['feed_length']:,} transactions{behind}"
        yield "unsettled tuples", f"{status['unsettled']:,}{_held(status)}"
        yield "parked", _parked_in_words(status["parked"])
    if status["transfer_in"]:
        transfer = status["transfer_in"]
        yield "state transfer", f"from {transfer['source']}, {_share(transfer)}"
    yield from _new_rules(status["rules"])
    yield "members", ", ".join(status["members"])
    for node, health in status.get("health", {}).items():
        if health != "healthy":
            yield "health", f"{node} is {health}"
    if status["removed"]:
        yield "removed nodes", ", ".join(status["removed"])
    durable = status["durable"]
    for origin, timestamp in sorted(status["vector"].items()):
        ended = status["ended"].get(origin)
        marks = f", ended at {ended}" if ended else ""
        if durable.get(origin) != timestamp:
            marks += f", durable {durable.get(origin, 0)}"
        yield "has", f"{origin} up to {timestamp}{marks}"


def _new_rules(rules: JsonObject) -> Iterator[tuple[str, str]]:
    if waits_for := rules["change_waits_for"]:
        yield "new rules", f"{rules['fingerprint']}, wait for {', '.join(waits_for)}"


def _primacy(status: JsonObject) -> Iterator[tuple[str, str]]:
    if status.get("primary"):
        epoch = status["epoch"]
        by = f"promoted, epoch {epoch['number']}" if epoch else "by is_primary"
        yield "primary", f"{status['primary']}, {by}"


def _held(status: JsonObject) -> str:
    held_by = status["collection"]["held_by"]
    return f", wait for {held_by}" if held_by and status["unsettled"] else ""


def _parked_in_words(parked: Sequence[Mapping[str, str]]) -> str:
    if not parked:
        return "nothing"
    return ", ".join(one["origin"] for one in parked) + "; `sidecar parked` says why"


def _target(node: str, target: JsonObject, transfer: JsonObject | None) -> tuple[str, ...]:
    stands = "connected" if target["connected"] else "not connected"
    session = "unreachable" if target["unreachable"] else stands
    if target.get("paused"):
        session = "paused"
    error = "" if target["connected"] else target["last_error"] or ""
    sent = _share(transfer) if transfer else ""
    lag = f"{target['lag_ms']:,.0f} ms"
    return node, session, lag, _backlog(target), target["acknowledged"], sent, error


def _backlog(target: JsonObject) -> str:
    """How many entries of the feed wait for it, and how many are on their way."""
    if target["backlog"] is None:
        return "not known"
    about = "about " if target["backlog_is_estimate"] else ""
    on_the_way = f", {target['in_flight']} of {target['window']} batches sent"
    return f"{about}{target['backlog']:,}{on_the_way if target['in_flight'] else ''}"


def _share(transfer: Mapping[str, Any]) -> str:
    return f"{100 * transfer['buckets'] // transfer['of']} %"


def _moment_of(timestamp: str) -> str:
    return moment(format_expires_at(int(timestamp)))
