"""Three regions under faults: nothing acknowledged is lost, and all agree in the end."""

import os
import time
from pathlib import Path

import pytest

from tests.chaos.run import STRATEGIES, Plan, run
from tests.chaos.variants import BROKEN, tree_with


def survive(seconds: float, strategy: str, broken: str | None = None) -> list[str]:
    """The names of the checks that found something. SEED in the environment repeats a run."""
    seed = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
    result = run(Plan(seed=seed, seconds=seconds, strategy=strategy, broken=broken))
    assert result.requests, "the clients have written nothing"
    return [finding.check for finding in result.findings]


def test_three_regions_survive_ten_seconds_of_faults() -> None:
    assert survive(10.0, "delete_wins") == []


@pytest.mark.soak
@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_three_regions_survive_longer(strategy: str, turn: int) -> None:
    assert survive(60.0, strategy) == [], f"turn {turn}"


@pytest.mark.soak
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_product_does_not_survive(name: str) -> None:
    """The run as a whole has teeth, not only its checkers."""
    assert survive(60.0, BROKEN[name].strategy or "lww", name) != []


@pytest.mark.parametrize("name", BROKEN)
def test_the_product_can_still_be_broken_like_this(name: str, tmp_path: Path) -> None:
    """A patch that no longer fits would prove nothing."""
    tree = tree_with(tmp_path, BROKEN[name].patches, "everysec")
    for patch in BROKEN[name].patches:
        assert patch.wrong in (tree / patch.file).read_text(encoding="utf-8")
    assert '"appendfsync": "everysec"' in (tree / "sidecar/store/embedded.py").read_text()
