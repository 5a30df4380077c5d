"""Databases for the tests against real ones; where SpiceDB cannot be had, says so at the end."""

from collections.abc import Iterator

import pytest

from tests.real.databases import Database, running_openfga, running_spicedb
from tests.real.fetch import missing


@pytest.fixture(scope="session")
def spicedb_is_here() -> None:
    """Skips what needs SpiceDB where it cannot be run."""
    if reason := missing():
        pytest.skip(f"no SpiceDB: {reason}")


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
    """The last line of a run, after what passed; workers of the run say nothing."""
    if not hasattr(config, "workerinput") and (reason := missing()):
        writer = config.get_terminal_writer()
        told = f"SKIPPED, NOT RUN AGAINST SPICEDB: {reason}. Try `make test-real`."
        writer.line(told, red=True, bold=True)
