"""Where the time of a node goes: its process under cProfile, counted in processor time.

`python -m bench --profile NAME` measures a figure once with every node run through this module, and
shows the functions of each. Waiting does not count; what uvloop does in C, sockets included, stands
under its own name. cProfile makes small functions look dearer than they are: believe the order, and
try a change with the benchmark itself. For a sampled picture of a node without that, use
`py-spy record -p PID` or `pyinstrument`, which are not dependencies.

As a program: `python -m bench.profile FILE COMMAND...` is `sidecar COMMAND...`, and leaves its
statistics in FILE when it ends.
"""

import cProfile
import pstats
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sidecar.demo import DemoNode

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
    stats = pstats.Stats(str(file)).get_stats_profile()
    total = sum(each.tottime for each in stats.func_profiles.values())
    table = Table(
        "function",
        "where",
        title=f"{file.parent.name}/{file.stem}: {total:.2f} s of processor time",
        title_justify="left",
    )
    for name in ("calls", "own %", "with callees %"):
        table.add_column(name, justify="right")
    rows = sorted(stats.func_profiles.items(), key=lambda row: row[1].tottime, reverse=True)
    for name, each in rows[:ROWS]:
        where = "/".join(Path(each.file_name).parts[-3:])
        table.add_row(
            name,
            f"{where}:{each.line_number}" if each.line_number else "",
            str(each.ncalls),
            f"{100 * each.tottime / total:.1f}",
            f"{100 * each.cumtime / total:.1f}",
        )
    console.print(table)


def main() -> None:
    into, *arguments = sys.argv[1:]
    # What takes long to import is no part of what is looked for.
    from sidecar import app, cli, config

    del app, config
    sys.argv = ["sidecar", *arguments]
    profile = cProfile.Profile(time.process_time)
    try:
        profile.runcall(cli.main)
    finally:
        profile.dump_stats(into)


if __name__ == "__main__":
    main()
