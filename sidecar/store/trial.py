"""Trying a custom script: thousands of sets of siblings, each in every order, on a real server.

The script must say the same whatever the order of the list. It is asked first about all pairs of a
small world, then about larger sets of a wider one, so that what is shown is small. Nothing is
stored.
"""

import json
import random
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, islice, product
from pathlib import Path

from sidecar.core.conflict import Rules, Sibling
from sidecar.core.relationship import Operation
from sidecar.core.script import CustomScript
from sidecar.core.vector import Version
from sidecar.errors import Refused
from sidecar.store import scripts
from sidecar.store.embedded import EmbeddedValkey
from sidecar.store.link import Link, ScriptError, pool_of

RANDOM_SETS = 1_500
"""Each with all its subsets: some 8,000 sets."""
MOST_SIBLINGS = 4
SETS_PER_CALL = 100
"""Up to 2,400 questions: some milliseconds, for which a server that is in use stands still."""

Set = Sequence[tuple[Version, Sibling]]

_NODE = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
_NOW_US = 1_790_000_000_000_000


async def try_on_embedded(custom: CustomScript, rules: Rules) -> int:
    """Try a script on a Valkey of its own, gone afterwards; how many sets it was asked about.

    Raises Refused("bad_script") with the smallest set found, and Unavailable where there is no
    embedded server.
    """
    with tempfile.TemporaryDirectory(prefix="sidecar-") as folder:
        args = ("--appendonly", "no")
        async with EmbeddedValkey(Path(folder), args=args) as valkey:
            link = Link(pool_of(valkey.url, 10.0), 10.0)
            try:
                return await try_script(link, "trial", custom, rules)
            finally:
                await link.close()


async def try_script(link: Link, key: str, custom: CustomScript, rules: Rules) -> int:
    """The same on any server; `key` says in which slot the script runs, and is not touched."""
    script = scripts.script("try", custom)
    sets, count = _sets(custom, rules.priority), 0
    while batch := list(islice(sets, SETS_PER_CALL)):
        try:
            reply = await link.run(
                script,
                key,
                json.dumps(dict(rules.priority)),
                json.dumps([[_fields(*one) for one in some] for some in batch]),
            )
        except ScriptError as error:
            raise Refused("bad_script", f"{custom.file}: {script.explain(error.text)}") from error
        outcome, which, reason, *answers = (part.decode() for part in reply)
        if outcome == "wrong":
            raise _counter_example(custom, batch[int(which) - 1], reason, answers)
        count += len(batch)
    return count


def _fields(version: Version, sibling: Sibling) -> list[str]:
    sign = "+" if sibling.operation is Operation.INSERT else "-"
    until = "" if sibling.expires_at is None else str(sibling.expires_at)
    return [str(version[0]), version[1], sign, sibling.condition or "", until]


# -- what it is asked ----------------------------------------------------------------------------


def _sets(custom: CustomScript, priority: Mapping[str, int]) -> Iterator[Set]:
    """No two siblings of a set have the same origin: the later one would have seen the other."""
    plain = [Sibling(Operation.DELETE), Sibling(Operation.INSERT)]
    few = [*plain, Sibling(Operation.INSERT, "1"), Sibling(Operation.INSERT, "2")]
    few += [Sibling(Operation.INSERT, None, until) for until in (_NOW_US, _NOW_US + 1)]
    versions = product((1, 2), ("a.1", "b.1", "a.2"))
    small = list(product(versions, few))
    yield from (pair for pair in combinations(small, 2) if _is_set(pair))
    dice = random.Random(custom.source)
    nodes = [*("a", "b", "c"), *list(priority)[:8], *filter(_NODE.fullmatch, custom.texts)]
    conditions = [None, None, "1", '{"a":2}', *custom.texts]
    times = [1, 2, _NOW_US, _NOW_US + 1, *custom.numbers]
    times += [number + 1 for number in custom.numbers]
    untils = [None, None, *times]
    wide = list(product(nodes, "12"))
    for _ in range(RANDOM_SETS):
        size = dice.randint(2, min(MOST_SIBLINGS, len(wide)))
        chosen = []
        for node, incarnation in dice.sample(wide, size):
            is_insert = dice.random() < 0.6
            payload = (dice.choice(conditions), dice.choice(untils)) if is_insert else (None, None)
            operation = Operation.INSERT if is_insert else Operation.DELETE
            version = (dice.choice(times), f"{node}.{incarnation}")
            chosen.append((version, Sibling(operation, *payload)))
        # A small set that shows the fault is better than the large one that holds it.
        yield from (some for n in range(2, size) for some in combinations(chosen, n))
        yield chosen


def _is_set(pair: Set) -> bool:
    return pair[0][0][1] != pair[1][0][1]


# -- what is wrong -------------------------------------------------------------------------------


def _counter_example(
    custom: CustomScript, siblings: Set, reason: str, answers: Sequence[str]
) -> Refused:
    letters = "ABCD"
    one, other = (
        "".join(letters[place - 1] for place in json.loads(order)) for order in answers[:2]
    )
    told = "; ".join(
        f"{letter} = {_spelled(*sibling)}"
        for letter, sibling in zip(letters, siblings, strict=False)
    )
    if reason:
        what = f"it fails for the siblings {one}: {reason}"
    else:
        first, second = (letters[int(place) - 1] for place in answers[2:])
        what = f"of the siblings {one} it chooses {first}, of the same ones as {other} {second}"
    return Refused("bad_script", f"{custom.file}: {what}, where {told}")


def _spelled(version: Version, sibling: Sibling) -> str:
    timestamp, origin = version
    words = [f"{sibling.operation.value} at {timestamp} by {origin}"]
    if sibling.condition is not None:
        words.append(f"condition {sibling.condition}")
    if sibling.expires_at is not None:
        words.append(f"expires_at {sibling.expires_at}")
    return ", ".join(words)
