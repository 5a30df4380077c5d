"""What the stories of real processes share: worlds that are ended, and their logs on failure."""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.world import World

MakeWorld = Callable[..., World]

_standing: list[World] = []


def _maker(stack: ExitStack) -> MakeWorld:
    def make(regions: int = 2, **settings: Any) -> World:
        world = World(regions, **settings)
        stack.callback(world.close)
        _standing.append(world)
        stack.callback(_standing.remove, world)
        return world

    return make


@pytest.fixture
def make_world() -> Iterator[MakeWorld]:
    """Makes worlds that end with the test; start them yourself."""
    with ExitStack() as stack:
        yield _maker(stack)


@pytest.fixture(scope="module")
def make_shared_world() -> Iterator[MakeWorld]:
    """Makes worlds that the tests of a module share."""
    with ExitStack() as stack:
        yield _maker(stack)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the nodes said when a story fails."""
    report = yield
    if report.failed:
        report.sections += [(f"nodes in {w.folder}", w.report()) for w in _standing]
    return report
