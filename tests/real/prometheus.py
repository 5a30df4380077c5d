"""Prometheus and promtool: where they are, and fetching them where they are not installed.

Debian's package is unpacked into `.real_cache/` and not installed, so that nothing runs as a
service. What is in PATH is used instead.
"""

import os
import shutil
import tempfile
from pathlib import Path

from tests.real.commands import CACHE, run

UNPACKED = CACHE / "prometheus"
TOOLS = ("prometheus", "promtool")


def tool(name: str) -> Path | None:
    """The program of that name, if it can be had without fetching."""
    if found := shutil.which(name):
        return Path(found)
    cached = UNPACKED / "usr" / "bin" / name
    return cached if cached.is_file() else None


def missing() -> str:
    """Why Prometheus cannot be run here; empty when it can."""
    absent = [name for name in TOOLS if tool(name) is None]
    return f"{' and '.join(absent)} cannot be found" if absent else ""


def fetch() -> None:
    """Raises OSError with what went wrong."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise OSError("neither installed nor a package of Debian: apt-get is not here")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        try:
            run("apt-get", "download", "--quiet", "prometheus", folder=folder)
        except OSError:
            if os.geteuid() != 0:
                raise
            # The lists of a fresh machine are empty.
            run("apt-get", "update", "--quiet")
            run("apt-get", "download", "--quiet", "prometheus", folder=folder)
        (package,) = folder.glob("prometheus_*.deb")
        run("dpkg", "--extract", str(package), str(folder / "unpacked"))
        # At its place at once or not at all: an interrupted run leaves no half of it.
        shutil.rmtree(UNPACKED, ignore_errors=True)
        (folder / "unpacked").replace(UNPACKED)
