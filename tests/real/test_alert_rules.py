"""What Prometheus itself says of the files that it is given."""

import subprocess
from pathlib import Path

import pytest

from tests.promql import PROMETHEUS
from tests.real.prometheus import tool

pytestmark = pytest.mark.usefixtures("prometheus_is_here")


def promtool(*words: str, folder: Path = PROMETHEUS) -> subprocess.CompletedProcess[str]:
    command = [str(tool("promtool")), *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_rules_and_what_is_scraped_are_valid() -> None:
    for words in (("check", "rules", "rules.yml"), ("check", "config", "prometheus.yml")):
        done = promtool(*words)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_in_its_story_and_no_other_does() -> None:
    done = promtool("test", "rules", "rules.test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_story_that_does_not_come_true_is_found(tmp_path: Path) -> None:
    """So that the test above can fail: the rules with another threshold."""
    for name in ("rules.yml", "rules.test.yml"):
        text = (PROMETHEUS / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("expr: vector(100)", "expr: vector(1000)"))
    done = promtool("test", "rules", "rules.test.yml", folder=tmp_path)
    assert done.returncode != 0
    assert "InferadbReplicationLagHigh" in done.stdout + done.stderr
