"""Every test of the simulator has few buckets: it has few tuples."""

from collections.abc import Iterator

import pytest

from tests.sim.world import few_buckets


@pytest.fixture(autouse=True)
def _with_few_buckets() -> Iterator[None]:
    with few_buckets():
        yield
