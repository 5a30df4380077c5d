"""Databases for the tests against real ones; what cannot be had is said at the end."""

from collections.abc import Iterator

import pytest

from tests.real import prometheus
from tests.real.databases import Database, running_openfga, running_spicedb
from tests.real.fetch import THINGS, missing


@pytest.fixture(scope="session")
def spicedb_is_here() -> None:
    """Skips what needs SpiceDB where it cannot be run."""
    if reason := missing():
        pytest.skip(f"no SpiceDB: {reason}")


@pytest.fixture(scope="session")
def prometheus_is_here() -> None:
    """Skips what needs Prometheus or promtool where they cannot be had."""
    if reason := prometheus.missing():
        pytest.skip(f"no Prometheus: {reason}")


@pytest.fixture
def spicedb(spicedb_is_here: None) -> Iterator[Database]:
    """An empty SpiceDB. A test that needs several opens `running_spicedb`."""
    with running_spicedb() as database:
        yield database


@pytest.fixture
def openfga() -> Iterator[Database]:
    """An OpenFGA stand-in without a store."""
    with running_openfga() as database:
        yield database


def pytest_unconfigure(config: pytest.Config) -> None:
    """The last lines of a run, after what passed; workers of the run say nothing."""
    if hasattr(config, "workerinput"):
        return
    writer = config.get_terminal_writer()
    for thing in THINGS:
        if reason := thing.missing():
            told = f"SKIPPED, NOT RUN AGAINST {thing.name.upper()}: {reason}. Try `make test-real`."
            writer.line(told, red=True, bold=True)
