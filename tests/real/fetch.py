"""Fetch what the tests against real programs need; say what cannot be had, and end with 0.

Usage: python -m tests.real.fetch. What is there already is not fetched again, and what cannot be
had skips the tests that need it, no others.

SpiceDB: the Python packages are the extra `real` of pyproject.toml and go into the environment of
this interpreter; the engine's shared library comes from an npm package and goes into `.real_cache/`
of the checkout. Both come from the registries that pip and npm are set up with.
`SPICEDB_LIBRARY_PATH` names a library to use instead. Prometheus: `prometheus.py`.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.real import browser, prometheus
from tests.real.commands import CACHE, ROOT, run

VERSION = "0.7.1"
PACKAGE = "spicedb_embedded"
ARCHITECTURES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}


def platform_name() -> str:
    """As the npm packages are named, `linux-x64`; empty where there is none."""
    architecture = ARCHITECTURES.get(platform.machine().lower())
    return f"linux-{architecture}" if sys.platform == "linux" and architecture else ""


def cached_package() -> Path:
    """Where the npm package is unpacked."""
    return CACHE / f"spicedb-embedded-{VERSION}-{platform_name()}"


def library_path() -> Path:
    """Where the engine's shared library is, or will be."""
    if named := os.environ.get("SPICEDB_LIBRARY_PATH"):
        return Path(named)
    return cached_package() / "prebuilds" / platform_name() / "libspicedb.so"


def has_package() -> bool:
    if importlib.util.find_spec(PACKAGE) is None or importlib.util.find_spec("grpc") is None:
        return False
    return importlib.metadata.version(PACKAGE) == VERSION


def missing() -> str:
    """Why SpiceDB cannot be run here; empty when it can."""
    if not has_package():
        return f"the Python package spicedb-embedded {VERSION} is not installed"
    if not platform_name() and "SPICEDB_LIBRARY_PATH" not in os.environ:
        return f"the engine is not built for {sys.platform} {platform.machine()}"
    if not library_path().is_file():
        return f"the engine's shared library is not at {library_path()}"
    return ""


def fetch_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = project["project"]["optional-dependencies"]["real"]
    run(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted)


def fetch_library() -> None:
    name = platform_name()
    if not name or "SPICEDB_LIBRARY_PATH" in os.environ:
        return
    if shutil.which("npm") is None:
        raise OSError("npm is not installed, and the engine's shared library is an npm package")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        package = f"spicedb-embedded-{name}@{VERSION}"
        run("npm", "pack", "--silent", package, "--pack-destination", folder)
        (packed,) = Path(folder).glob("*.tgz")
        with tarfile.open(packed) as archive:
            archive.extractall(folder, filter="data")
        # At its place at once or not at all: an interrupted run leaves no half of it.
        shutil.rmtree(cached_package(), ignore_errors=True)
        (Path(folder) / "package").replace(cached_package())


def fetch_spicedb() -> None:
    """Raises OSError with what went wrong, both of it."""
    reasons: list[str] = []
    for is_there, fetch in (
        (has_package(), fetch_package),
        (library_path().exists(), fetch_library),
    ):
        if not is_there:
            try:
                fetch()
            except (OSError, subprocess.TimeoutExpired) as error:
                reasons.append(str(error))
    importlib.invalidate_caches()
    if reasons:
        raise OSError("; ".join(reasons))


def fetch_browser() -> None:
    """Raises OSError with what went wrong."""
    if importlib.util.find_spec("selenium") is None:
        fetch_package()
        importlib.invalidate_caches()
    browser.fetch()


class Thing(NamedTuple):
    """What tests may need. `missing` says why it is not there, "" when it is; `fetch` raises
    OSError; `where` says where it is then.
    """

    name: str
    missing: Callable[[], str]
    fetch: Callable[[], None]
    where: Callable[[], object]


THINGS = (
    Thing("SpiceDB", missing, fetch_spicedb, library_path),
    Thing(
        "Prometheus", prometheus.missing, prometheus.fetch, partial(prometheus.tool, "prometheus")
    ),
    Thing("a browser", browser.missing, fetch_browser, partial(shutil.which, "chromium")),
)


def main() -> None:
    for thing in THINGS:
        why = ""
        if thing.missing():
            try:
                thing.fetch()
            except (OSError, subprocess.TimeoutExpired) as error:
                why = f"; {error}"
        if reason := thing.missing():
            said = f"NO {thing.name.upper()}: {reason}{why}. Tests that need it will be skipped."
        else:
            said = f"{thing.name}: {thing.where()}"
        print(said, flush=True)


if __name__ == "__main__":
    main()
