"""What Prometheus and Grafana are given: alerts to act on, and panels that show something."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.metrics import Metrics
from tests.promql import ALERTS, DASHBOARD, PROMETHEUS, alerts, expressions, metrics_of, rules

ROOT = Path(__file__).parents[2]
STORIES = yaml.safe_load((PROMETHEUS / "rules.test.yml").read_text(encoding="utf-8"))["tests"]
NAMES = [rule["alert"] for rule in alerts()]


def anchors(path: Path) -> set[str]:
    """Those of the headings of a Markdown file, as they are linked to."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def exposed(metrics: Metrics) -> set[str]:
    return set(re.findall(r"^# TYPE (\S+) ", metrics.render().decode(), re.MULTILINE))


@pytest.mark.parametrize("rule", alerts(), ids=NAMES)
def test_an_alert_says_how_bad_it_is_what_has_happened_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["alert"].startswith("Inferadb")
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert re.fullmatch(r"[0-9]+m", rule["for"]), "a moment is no alarm"
    texts = rule["annotations"]
    assert set(texts) == {"summary", "description", "runbook"}
    path, _, anchor = texts["runbook"].partition("#")
    assert anchor in anchors(ROOT / path), f"{path} has no heading for #{anchor}"


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_has_a_story_in_which_it_fires(name: str) -> None:
    """Whether it then does is told by promtool (tests/real/test_alert_rules.py)."""
    expected = [
        sample["labels"]
        for story in STORIES
        for test in story.get("promql_expr_test", [])
        for sample in test.get("exp_samples", [])
    ]
    assert f'{{alertname="{name}"}}' in expected


def test_the_alerts_are_those_of_the_documentation() -> None:
    text = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(Inferadb\w+)`", text, re.MULTILINE)) == set(NAMES)


def test_every_metric_is_explained_in_the_documentation() -> None:
    """And nothing is that is not there."""
    text = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(inferadb_\w+)", text)) == exposed(Metrics())


def test_thresholds_are_set_in_one_place_and_all_are_used() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = set(re.findall(r"inferadb:\w+", "\n".join(expressions(ALERTS, DASHBOARD))))
    assert used == recorded


def test_rules_and_panels_ask_for_metrics_that_there_are() -> None:
    """The same is asked of a running node in tests/e2e/test_metrics.py."""
    asked = metrics_of(ALERTS, DASHBOARD)
    assert len(asked) > 20
    assert asked <= exposed(Metrics())


def test_the_dashboard_is_whole() -> None:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, f"{panel['title']} covers another panel"
        taken |= cells
        if panel["type"] != "row":
            assert panel["targets"], panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    variables = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text(encoding="utf-8")))
    assert used - {"__rate_interval", "__all"} == variables


def test_what_is_scraped_are_the_nodes_of_the_compose_file() -> None:
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    compose = yaml.safe_load((ROOT / "deploy/compose/compose.yaml").read_text(encoding="utf-8"))
    (job,) = scraped["scrape_configs"]
    hosts = {target.partition(":")[0] for one in job["static_configs"] for target in one["targets"]}
    assert hosts == {
        name for name, s in compose["services"].items() if s["image"] == "inferadb-sidecar"
    }
    assert job["job_name"] in next(r["expr"] for r in alerts() if r["alert"] == "InferadbNodeDown")
