"""The histories have teeth: each broken rule is found, and it is said how soon."""

import itertools
from collections.abc import Callable

import pytest

from sidecar.core.conflict import ConflictResolutionStrategy
from tests.sim import test_scenarios as stories
from tests.sim import variants
from tests.sim.histories import Violation, play
from tests.sim.shapes import SHAPES
from tests.sim.test_scenarios import each_strategy
from tests.sim.variants import VARIANTS

HISTORIES = 150
"""Far more than any of them needs: each was found in the first 20."""


@pytest.mark.parametrize("name", VARIANTS)
def test_a_broken_rule_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find(name, 5_000, monkeypatch)


@each_strategy
@pytest.mark.parametrize(
    ("breaks", "story"),
    [
        (
            variants.forget_over_a_restart_what_it_lacks,
            stories.test_a_node_that_is_behind_takes_no_writes_before_it_has_caught_up,
        ),
        (
            variants.forget_over_a_restart_what_was_exposed,
            stories.test_a_write_from_an_old_copy_is_written_again_where_a_tombstone_was_collected,
        ),
    ],
)
def test_a_story_finds_what_histories_meet_too_rarely(
    breaks: variants.Break,
    story: Callable[[ConflictResolutionStrategy], None],
    strategy: ConflictResolutionStrategy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    breaks(monkeypatch)
    with pytest.raises(AssertionError):
        story(strategy)


@pytest.mark.soak
@pytest.mark.parametrize("first_seed", [6_000, 7_000, 8_000])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_broken_rule_is_found_from_anywhere(
    name: str, first_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    find(name, first_seed, monkeypatch)


def find(name: str, first_seed: int, patch: pytest.MonkeyPatch) -> None:
    breaks, strategy = VARIANTS[name]
    breaks(patch)
    count, violation = histories_until_found(first_seed, strategy)
    print(f"{name}: found in history {count}: {violation.splitlines()[0][:120]}")


def histories_until_found(first_seed: int, strategy: str) -> tuple[int, str]:
    """How many histories it took, and what was wrong in the last one."""
    shapes = itertools.cycle(SHAPES)
    for count in range(1, HISTORIES + 1):
        try:
            play(first_seed + count, ConflictResolutionStrategy(strategy), next(shapes))
        except Violation as violation:
            return count, str(violation)
    pytest.fail(f"not found in {HISTORIES} histories")
