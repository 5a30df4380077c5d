"""How figures are shown: a table for people, lines of JSON for programs."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.figure import Figure
from sidecar.store.embedded import server_command

_LIBRARIES = ("aiohttp", "uvloop", "redis", "hiredis", "pydantic")


@cache
def machine() -> dict[str, object]:
    """What the figures were measured on."""
    binary = server_command(Path("unused"))[0]
    server = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    words = dict(word.split("=", 1) for word in server.stdout.split() if "=" in word)
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "valkey": words.get("v", "?"),
        **{name: version(name) for name in _LIBRARIES},
    }


def json_line(figure: Figure) -> str:
    """One figure, with the machine it was measured on."""
    return json.dumps({**figure.to_json(), "machine": machine()})


def show(figures: Sequence[Figure], console: Console) -> None:
    """All figures, and the machine."""
    table = Table()
    table.add_column("what", no_wrap=True)
    for name in ("floor", "product", "unit", "ratio", "min–max", "bar", ""):
        table.add_column(name, justify="left" if name == "unit" else "right")
    for each in figures:
        has_floor = each.floor is not None and each.ratio is not None
        table.add_row(
            each.what,
            _number(each.floor) if each.floor is not None else "–",
            _number(each.value),
            each.unit,
            f"{each.ratio:.2f}" if has_floor else "–",
            f"{each.least:.2f}–{each.most:.2f}" if has_floor else "–",
            _bar(each),
            {None: "", True: "ok", False: "[bold red]missed[/]"}[each.ok],
        )
    console.print(table)
    runs = " or ".join(str(n) for n in sorted({each.runs for each in figures}))
    console.print(
        f"Floor and product: medians of {runs} runs in turns. Ratio: the median over neighbouring "
        "runs, and its extremes.",
        style="dim",
    )
    console.print(", ".join(f"{name} {value}" for name, value in machine().items()), style="dim")


def _number(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _bar(figure: Figure) -> str:
    if figure.bar is None:
        return "reported"
    return f"{'≤' if figure.is_ceiling else '≥'} {figure.bar:g}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
