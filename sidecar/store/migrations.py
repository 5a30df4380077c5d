"""Stored data of an earlier release, made into that of this one, before anything else reads it.

Owns which formats can be taken over and by which scripts. Readers and the other scripts know one
format. How a migration goes on is the script's own: it is called again and again, does a bounded
part each time and answers how far it is. It must bear being begun anew at any call, for a node may
be killed in between. The last call sets the new number in `meta`, together with the last change.

A script is called with the key of `meta` and, in ARGV 1, what the call before answered ("" at the
beginning). It replies `{"more", place}` or `{"done", ""}`.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final

from sidecar.errors import Broken, Refused
from sidecar.store.keys import Keys
from sidecar.store.link import Link
from sidecar.store.scripts import Script

log = logging.getLogger(__name__)

STORE_FORMAT: Final = 1

MIGRATIONS: Final[Mapping[int, str]] = {}
"""Format -> the script that makes the next one of it. There has been one format so far."""


async def migrate(
    link: Link,
    keys: Keys,
    node: str,
    script: Callable[[str], Script],
    *,
    migrations: Mapping[int, str] = MIGRATIONS,
    wanted: int = STORE_FORMAT,
) -> None:
    """Bring what is stored to the format `wanted`; an empty store has none.

    The data of another node than `node` are left alone; that they are refused is decided elsewhere.

    Raises Refused("wrong_store") for a format of a later release, and for one that nothing leads
    from, with what to do about it; nothing is changed then.
    """
    owner, stored = await link.call("HMGET", keys.meta, "node", "format")
    if stored is None or owner != node.encode():
        return
    found = _number(stored)
    steps = _steps(found, migrations, wanted)
    for number, name in steps:
        log.warning(
            "stored data are brought to another format",
            extra={"partition": keys.partition, "now": number, "next": number + 1},
        )
        calls = await _run(link, keys, script(name))
        reached = _number(await link.call("HGET", keys.meta, "format") or b"")
        if reached != number + 1:
            raise Broken(f"lua/{name}.lua ends at format {reached}, not {number + 1}")
        log.warning(
            "stored data have another format now",
            extra={"partition": keys.partition, "format": reached, "calls": calls},
        )


def _steps(found: int, migrations: Mapping[int, str], wanted: int) -> list[tuple[int, str]]:
    """Which scripts lead from one format to the other. Raises Refused."""
    if found > wanted:
        raise Refused(
            "wrong_store",
            f"redis.url: this data has format {found} of a later release, this release reads "
            f"format {wanted}; start the later release again, or begin with an empty store, which "
            "gets everything from its peers",
        )
    missing = next((number for number in range(found, wanted) if number not in migrations), None)
    if missing is not None:
        raise Refused(
            "wrong_store",
            f"redis.url: this data has format {found}, and this release takes over none before "
            f"{min(migrations, default=wanted)}; start a release in between first, or begin with "
            "an empty store, which gets everything from its peers",
        )
    return [(number, migrations[number]) for number in range(found, wanted)]


async def _run(link: Link, keys: Keys, script: Script) -> int:
    """Call a script until it is done; how often."""
    calls, place = 0, b""
    while True:
        calls += 1
        outcome, place = await link.run(script, keys.meta, place)
        if outcome == b"done":
            return calls
        if outcome != b"more":
            raise Broken(f"lua/{script.name}.lua answers {outcome!r}")


def _number(stored: bytes) -> int:
    # What is no number was not written by us: no release leads there.
    return int(stored) if stored.isdigit() else 0
