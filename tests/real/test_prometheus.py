"""Three nodes and a real Prometheus: the alerts, and the promised queries, on real figures."""

import http.client
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from sidecar.tether import tethered
from tests.promql import ALERTS
from tests.real.prometheus import tool
from tests.servers import free_ports
from tests.waiting import wait_until
from tests.world import HOST, ROOT, Node, World, ask, documents

pytestmark = pytest.mark.usefixtures("prometheus_is_here")

EVERY = "500ms"
FIRING = 'ALERTS{alertstate="firing"}'
LIMIT_S = 60.0


def quick(rules: str) -> str:
    """The rules as they are, but for the time that a test has: alarms after two seconds, rates over
    ten, and a lag that a busy machine does not reach by itself.
    """
    text, waits = re.subn(r"for: [0-9]+m\b", "for: 2s", rules)
    assert waits == len(re.findall(r"- alert: ", rules))
    text = re.sub(r"\[[0-9]+m\]", "[10s]", text)
    return text.replace("expr: vector(100)", "expr: vector(2000)")


class Prometheus:
    """A Prometheus that scrapes the nodes of a world; `close` ends it."""

    def __init__(self, world: World, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self.log = folder / "prometheus.log"
        nodes = {
            "job_name": "inferadb-sidecar",
            "static_configs": [
                {"targets": [f"{HOST}:{node.admin_port}"], "labels": {"node": node.name}}
                for node in world.nodes
            ],
        }
        settings = {
            "global": {
                "scrape_interval": EVERY,
                "scrape_timeout": EVERY,
                "evaluation_interval": EVERY,
            },
            "rule_files": ["rules.yml"],
            "scrape_configs": [nodes],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        (folder / "rules.yml").write_text(quick(ALERTS.read_text(encoding="utf-8")))
        command = [
            str(tool("prometheus")),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={HOST}:{self.port}",
            "--log.level=warn",
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                tethered(command, signal.SIGKILL), cwd=folder, stdout=log, stderr=log
            )

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The series that a query finds now; none while Prometheus does not answer yet."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            answer = ask(self.port, "GET", f"/api/v1/query?query={quote(query)}")
        except (OSError, http.client.HTTPException):
            return []
        if answer.status == 503:
            return []
        assert answer.status == 200, answer.body
        return list(answer.body["data"]["result"])

    def nodes(self, query: str) -> set[str]:
        """The nodes for which a query finds something."""
        return {one["metric"].get("node", "") for one in self.ask(query)}

    def firing(self) -> set[tuple[str, str]]:
        """Alert and node."""
        return {(one["metric"]["alertname"], one["metric"]["node"]) for one in self.ask(FIRING)}


class Load:
    """Writes in some regions, a few hundred in a second, until it is closed."""

    def __init__(self, world: World) -> None:
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(node,), daemon=True)
            for node in world.nodes[:2]
        ]
        for thread in self._threads:
            thread.start()

    def _write(self, node: Node) -> None:
        number = 0
        while not self._ending.wait(0.02):
            number += 1
            node.insert(*documents([number], f"user:{node.name}"))

    def close(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Prometheus]]:
    """Three regions under load, and who watches them."""
    with ExitStack() as stack:
        world = World(3, replication={"probe_interval_max_s": 1})
        stack.callback(world.close)
        world.start()
        prometheus = Prometheus(world, tmp_path_factory.mktemp("prometheus"))
        stack.callback(prometheus.close)
        stack.enter_context(closing(Load(world)))
        wait_until(lambda: len(prometheus.ask("up == 1")) == 3, "all are scraped", LIMIT_S)
        yield world, prometheus


def test_the_promised_queries_answer_with_figures(watched: tuple[World, Prometheus]) -> None:
    world, prometheus = watched
    text = (ROOT / "tests/data/seed-queries.promql").read_text(encoding="utf-8")
    queries = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(queries) == 5
    names = {node.name for node in world.nodes}
    for query in queries:
        wait_until(lambda q=query: prometheus.nodes(q) == names, query, LIMIT_S)  # type: ignore[misc]
    throughput, health = queries[2], queries[4]
    wait_until(
        lambda: sum(float(one["value"][1]) > 1 for one in prometheus.ask(throughput)) == 2,
        "changes are replicated",
        LIMIT_S,
    )
    assert {one["value"][1] for one in prometheus.ask(health)} == {"1"}, "all targets are there"


def test_a_region_that_is_stopped_raises_alarms_until_it_is_back(
    watched: tuple[World, Prometheus],
) -> None:
    world, prometheus = watched
    wait_until(lambda: not prometheus.firing(), lambda: f"quiet: {prometheus.firing()}", LIMIT_S)
    others, away = world.nodes[:2], world.nodes[2]
    away.terminate()
    expected = {("InferadbNodeDown", away.name)} | {
        (f"Inferadb{alert}", node.name)
        for alert in ("ReplicationLagHigh", "ReplicationFailing", "TargetsMissing")
        for node in others
    }
    wait_until(
        lambda: expected <= prometheus.firing(),
        lambda: f"still missing: {expected - prometheus.firing()}",
        LIMIT_S,
    )
    away.stop()
    away.start()
    wait_until(lambda: not prometheus.firing(), lambda: f"over: {prometheus.firing()}", LIMIT_S)
    assert {s["value"][1] for s in prometheus.ask("inferadb:target_health_ratio")} == {"1"}
