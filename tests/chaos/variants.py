"""Copies of the tree with something changed: nodes that run them show whether a run sees it."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.world import ROOT


@dataclass(frozen=True, slots=True)
class Patch:
    """In this file of the tree, the one place where `right` stands becomes `wrong`."""

    file: str
    right: str
    wrong: str


@dataclass(frozen=True, slots=True)
class Variant:
    """A product with a fault. strategy: the one under which it shows; None: any."""

    why: str
    strategy: str | None
    patches: Sequence[Patch]


# Alone it would do no harm: a session begins where the receiver's Redis is, and a gap is told. So
# here an acknowledgement is believed, as it would be where it moves a cursor or trims a feed.
ACKNOWLEDGE_FIRST = """\
    async def on_batches(self, batches):
        newest = json.loads(batches[-1][1].splitlines()[-1])
        self._store._advance(0, {newest["origin"]: int(newest["timestamp"])})
        self._late = asyncio.create_task(self._merge_late(batches))
        number = batches[-1][0].get("batch")
        return acknowledge(number, AckOutcome.APPLIED, self._store.vector, self._store.durable)

    async def _merge_late(self, batches):
        try:
            await self._store.merge(b"\\n".join(lines for _, lines in batches))
        except Unavailable:
            pass

"""

GAPS_PASS = [
    Patch(
        "lua/merge.lua",
        "if tx.previous > reached and not parked.follows(tx.origin) then",
        "if false then",
    ),
    Patch("lua/merge.lua", "if tx.previous > reached then", "if false then"),
]

BROKEN = {
    "ack-before-merge": Variant(
        "a batch is acknowledged before it is merged, and counts as received",
        None,
        [
            *GAPS_PASS,
            Patch(
                "sidecar/agent/incoming.py",
                "    async def on_batches(self, ",
                ACKNOWLEDGE_FIRST + "    async def _on_batches_aloud(self, ",
            ),
        ],
    ),
    "no-beyond": Variant(
        "what overtaken writes had overwritten is forgotten",
        "delete_wins",
        [
            Patch(
                "lua/lib/state.lua",
                "if old.beyond or unreached or extra then",
                "if false then",
            ),
            Patch(
                "lua/lib/state.lua",
                "if unreached or extra then beyond = state.above(unreached, extra, reached) end",
                "",
            ),
        ],
    ),
    "no-context": Variant(
        "an arriving write does not take away what it had overwritten",
        "source_priority",
        [
            Patch(
                "lua/lib/state.lua",
                "local covered = at <= (context[origin] or 0)",
                "local covered = false",
            )
        ],
    ),
    "one-winner": Variant(
        "only the winner of each comparison is kept",
        "insert_wins",
        [
            Patch(
                "lua/lib/state.lua",
                "return rules.keeps_losers and siblings or { siblings[1] }",
                "return { siblings[1] }",
            )
        ],
    ),
    "stored-wins": Variant(
        "what is stored stays, also under a later write",
        "lww",
        [
            Patch(
                "lua/lib/state.lua",
                "if rules.wins(siblings[index], siblings[best]) then best = index end",
                "",
            )
        ],
    ),
    "gap-is-skipped": Variant(
        "what is missing before a batch is taken for received, and a resumed session begins late",
        None,
        [
            *GAPS_PASS,
            Patch(
                "sidecar/core/sender.py",
                "        self._go_back(here)\n        reached = {",
                "        self._go_back(here)\n"
                "        self._sent = {o: t + 20_000 for o, t in self._sent.items()}\n"
                "        reached = {",
            ),
        ],
    ),
}


def tree_with(folder: Path, patches: Sequence[Patch], appendfsync: str | None = None) -> Path:
    """A copy of the code in `folder`, patched; appendfsync: of the embedded Valkey."""
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("sidecar", "lua"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    for patch in patches:
        file = folder / patch.file
        text = file.read_text(encoding="utf-8")
        assert text.count(patch.right) == 1, f"{patch.file} says {patch.right!r} differently now"
        file.write_text(text.replace(patch.right, patch.wrong), encoding="utf-8")
    if appendfsync is not None:
        file = folder / "sidecar/store/embedded.py"
        setting = re.compile(r'"appendfsync": "\w+"')
        text, count = setting.subn(
            f'"appendfsync": "{appendfsync}"', file.read_text(encoding="utf-8")
        )
        assert count == 1, "the embedded Valkey is set up differently now"
        file.write_text(text, encoding="utf-8")
    return folder
