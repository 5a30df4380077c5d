"""The PromQL in `deploy/`: what rules and panels ask for."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
ALERTS = PROMETHEUS / "rules.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"


def rules() -> list[dict[str, Any]]:
    """All rules, those that record and those that alert."""
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def expressions(*files: Path) -> list[str]:
    """What the files ask for; other texts of a dashboard's variables count as well."""
    found: list[str] = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        found += _texts(json.loads(text) if file.suffix == ".json" else yaml.safe_load(text))
    return found


def _texts(part: object) -> Iterator[str]:
    match part:
        case {"expr": str(expr), **others}:
            yield expr
            yield from _texts(others)
        case {"query": str(query), **others}:
            yield query
            yield from _texts(others)
        case dict():
            for value in part.values():
                yield from _texts(value)
        case list():
            for value in part:
                yield from _texts(value)
        case _:
            pass


def metrics_of(*files: Path) -> set[str]:
    """Metrics by the names that /metrics gives their families."""
    asked = re.findall(r"\binferadb_\w+", "\n".join(expressions(*files)))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
