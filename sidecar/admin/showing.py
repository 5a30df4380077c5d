"""The dashboard of one node: its parts, built from what the node has and tied to each other.

Owns which topics there are. What a part does is said where it is defined.
"""

from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any

from aiohttp import web

from sidecar.admin.database import Database, held_rows
from sidecar.admin.events import Topic, Viewers
from sidecar.admin.history import History, Sample
from sidecar.admin.observing import DeploymentTopic, Observer
from sidecar.admin.page import Page
from sidecar.admin.topics import ConflictsTopic, HeldTopic, TenantsTopic
from sidecar.api.answers import Answers, compact
from sidecar.config import Config
from sidecar.core.topology import Node, Topology
from sidecar.errors import Unavailable
from sidecar.health import RELEASE
from sidecar.metrics import Metrics
from sidecar.node_status import NodeStatus
from sidecar.partitions import Partitions
from sidecar.peer.calls import PeerCalls
from sidecar.peer.telling import told_by


class Dashboard:
    """The page, its events and what they tell. `loops` are to run as long as the node does."""

    def __init__(
        self,
        config: Config,
        topology: Callable[[], Topology],
        partitions: Partitions,
        calls: PeerCalls,
        answers: Answers,
        *,
        status: NodeStatus,
        metrics: Metrics,
        database: Database | None,
    ) -> None:
        """topology: the present one. database: the one behind the node, if there is one."""
        node = config.this_node
        self._config, self._topology, self._partitions = config, topology, partitions
        self._calls = calls
        observer = Observer(node, topology, status.tell, self._ask)
        topics: list[Topic] = [
            DeploymentTopic(observer, topology, self._facts, str(node.id)),
            ConflictsTopic(tuple(partitions)),
            TenantsTopic(tuple(partitions), config.tenants),
        ]
        if database is not None:
            topics.append(HeldTopic(_held_of(database)))
        self._history = History(metrics, self._backlog)
        self._viewers = Viewers(
            answers, topics, observe=observer.observe, history=self._history.to_json
        )
        self._history.tell = self._tell_sample
        self._page = Page(answers)

    def add_to(self, app: web.Application) -> None:
        """Add the routes, with JSON also for what aiohttp would answer in plain text."""
        self._page.add_to(app)
        self._viewers.add_to(app)

    def loops(self) -> Iterator[Coroutine[None, None, None]]:
        """What runs as long as the node does."""
        yield self._history.run()
        yield self._viewers.run()

    def _tell_sample(self, sample: Sample) -> None:
        self._viewers.tell("sample", lambda: compact(sample.to_json()))

    async def _ask(self, node: Node) -> Mapping[str, Any]:
        return await told_by(node, self._calls)

    def _facts(self) -> dict[str, Any]:
        primacy, replication = self._partitions.everywhere.primacy, self._config.replication
        return {
            "strategy": self._topology().strategy.value,
            "conflict_resolution": replication.conflict_resolution.value,
            "primary": primacy.region,
            "epoch": primacy.epoch and primacy.epoch.to_json(),
            "release": RELEASE,
        }

    async def _backlog(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for one in self._partitions:
            for target in one.shipping.targets:
                try:
                    waiting = (await one.backlog.of(target)).entries
                except Unavailable:
                    continue  # a gap in the plot
                found[target.node] = found.get(target.node, 0) + waiting
        return found


def _held_of(database: Database) -> Callable[[int], Awaitable[list[dict[str, str]]]]:
    """What it refuses, as rows."""

    async def held(count: int) -> list[dict[str, str]]:
        return held_rows(await database.held(count))

    return held
