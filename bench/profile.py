"""Where the time of a node goes: its process under cProfile.

`python -m bench --profile NAME` measures a figure once with every node run through this module, and
shows the functions of each. The event loop itself is left out, because cProfile cannot tell its
work from its waiting. Small functions look dearer than they are: believe the order, and try a
change with the benchmark itself. For a sampled picture of a node without that, use
`py-spy record -p PID` or `pyinstrument`, which are not dependencies.

As a program: `python -m bench.profile FILE COMMAND...` is `sidecar COMMAND...`, and leaves its
statistics in FILE when it ends.
"""

import cProfile
import marshal
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sidecar.commands.demo import DemoNode

ROWS = 30
SUFFIX = ".cprofile"


class Profiled:
    """Starts nodes under the profiler; their statistics go where `profiles` finds them."""

    def command(self, node: DemoNode, config: Path) -> list[str]:
        # Beside the node's folder: a node may be given a new one.
        into = node.folder.with_suffix(SUFFIX)
        _, *rest = node.command(config)
        arguments = rest[rest.index("sidecar") + 1 :]
        return [sys.executable, "-m", "bench.profile", str(into), *arguments]


def profiles(folder: Path) -> list[Path]:
    """What nodes below this folder have left."""
    return sorted(folder.rglob(f"*{SUFFIX}"))


def show(file: Path, console: Console) -> None:
    """The functions of one node that took most themselves."""
    functions = _functions(file)
    total = sum(each.own_s for each in functions)
    table = Table(
        "function",
        "where",
        title=f"{file.parent.name}/{file.stem}: {total:.2f} s in functions",
        title_justify="left",
    )
    for name in ("calls", "own %", "with callees %"):
        table.add_column(name, justify="right")
    for each in sorted(functions, key=lambda one: one.own_s, reverse=True)[:ROWS]:
        table.add_row(
            escape(each.name),
            escape(each.where),
            f"{each.calls:,}",
            f"{100 * each.own_s / total:.1f}",
            f"{100 * each.with_callees_s / total:.1f}",
        )
    console.print(table)


@dataclass(frozen=True, slots=True)
class _Function:
    name: str
    where: str
    calls: int
    own_s: float
    with_callees_s: float


def _functions(file: Path) -> list[_Function]:
    """All but the event loop itself: its time is mostly waiting."""
    rows = marshal.loads(file.read_bytes())
    return [
        _Function(
            name, f"{'/'.join(Path(path).parts[-2:])}:{line}" if line else "", calls, own, all_
        )
        for (path, line, name), (_, calls, own, all_, _) in rows.items()
        if (Path(path).name, name) != ("runners.py", "run")
    ]


def main() -> None:
    into, *arguments = sys.argv[1:]
    # What takes long to import is no part of what is looked for.
    from sidecar import app, cli, config

    del app, config
    sys.argv = ["sidecar", *arguments]
    profile = cProfile.Profile()
    try:
        profile.runcall(cli.main)
    finally:
        profile.dump_stats(into)


if __name__ == "__main__":
    main()
