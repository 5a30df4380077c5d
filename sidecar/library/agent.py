"""The node of a program: its store, and the agent that replicates it.

Owns the way from what a program says to the settings of a node; what the agent runs is what the
sidecar runs, without its app and admin listeners.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from aiohttp import web

from sidecar.agent.ship import Target
from sidecar.api.answers import Answers
from sidecar.config import checked
from sidecar.core.router import NodeHealth
from sidecar.core.topology import NodeId, Topology
from sidecar.errors import Refused, ungrouped
from sidecar.health import Health
from sidecar.library.changes import ChangeFeed, StoreFeed
from sidecar.library.conflicts import ConflictResolver
from sidecar.metrics import Metrics
from sidecar.partition import Partition, store_of
from sidecar.peer.calls import PeerCalls
from sidecar.peer.client import Dialler
from sidecar.peer.inspection import Inspection
from sidecar.peer.promoting import Promoting
from sidecar.peer.server import Reception, peer_app
from sidecar.serving import listening, redis_url, running
from sidecar.store.calls import Phase
from sidecar.store.redis_store import RedisStore

HAND_OVER_S = 2.0
"""How long `stop` waits for connected targets to have what was written here."""
PROOF_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class ReplicationConfig:
    """How the agent ships; the limits are those of the settings of the same names.

    max_retries: failures in a row after which a target counts as unreachable; it is tried for ever.
    retry_delay: whole milliseconds; doubles with each failure. batch_size: changes per batch.
    request_timeout: whole seconds. buffer_size: changes of the feed kept in memory.
    """

    max_retries: int = 5
    retry_delay: timedelta = timedelta(milliseconds=100)
    batch_size: int = 100
    request_timeout: timedelta = timedelta(seconds=10)
    buffer_size: int = 10_000

    def settings(self) -> dict[str, int]:
        """As `replication.agent` has them. Raises Refused("bad_config")."""
        return {
            "max_retries": self.max_retries,
            "retry_delay_ms": _whole(self.retry_delay, timedelta(milliseconds=1), "retry_delay"),
            "batch_size": self.batch_size,
            "request_timeout_secs": _whole(
                self.request_timeout, timedelta(seconds=1), "request_timeout"
            ),
            "buffer_size": self.buffer_size,
        }


def _whole(duration: timedelta, unit: timedelta, name: str) -> int:
    number, rest = divmod(duration, unit)
    if rest:
        raise Refused("bad_config", f"{name}: {duration} is not a multiple of {unit}")
    return number


@dataclass(frozen=True, slots=True)
class ReplicationStats:
    """What the metrics of the same meaning say, since the store was opened.

    changes_replicated: acknowledged by targets, summed over them. lag_ms: age of the oldest
    transaction that some target has not acknowledged; 0 when nothing is pending.
    """

    changes_replicated: int
    replication_failures: int
    conflicts_detected: int
    conflicts_resolved_local: int
    conflicts_resolved_remote: int
    targets_connected: int
    targets_total: int
    lag_ms: float


@asynccontextmanager
async def open_store(
    url: str,
    topology: Topology,
    resolver: ConflictResolver,
    *,
    node: NodeId | None = None,
    prefix: str = "sidecar",
    config: ReplicationConfig | None = None,
) -> AsyncIterator[RedisStore]:
    """The store of one node, for as long as the `async with` lasts.

    url: `embedded:FOLDER` (a Valkey with its data there, started from the main thread),
    `redis://…`, `rediss://…` or `unix://…`. node: whose it is; absent, the only one of the local
    region. prefix: of its keys. The resolver decides in it, as on every other node.

    It waits until Redis answers. Raises Refused, and Unavailable without an embedded server.
    """
    failure: Exception | None = None
    settings = _settings(topology, resolver, config or ReplicationConfig(), node)
    settings["redis"] = {"url": url, "prefix": prefix}
    checked_config = checked(settings)
    with ungrouped():
        async with AsyncExitStack() as stack:
            loops = await stack.enter_async_context(asyncio.TaskGroup())
            found = await redis_url(checked_config, stack, loops)
            store = store_of(checked_config, found, Metrics())
            await stack.enter_async_context(store)
            await store.opened()
            try:
                yield store
            except Exception as error:  # noqa: BLE001
                # The caller's own: in a task group it would come out as a group.
                failure = error
    if failure is not None:
        raise failure


class ReplicationAgent:
    """Ships the feed of a node to the other nodes of the topology, and takes in what they ship.

    It listens at the port of the node's `endpoint`, on loopback unless `listen` says otherwise.
    """

    def __init__(
        self,
        topology: Topology,
        change_feed: ChangeFeed,
        store: RedisStore,
        resolver: ConflictResolver,
        config: ReplicationConfig | None = None,
        *,
        listen: str | None = None,
    ) -> None:
        """change_feed: `ChangeFeed.of(store)`. listen: `host:port` of the peer listener.

        Raises Refused for what the nodes of a deployment could not agree on.
        """
        if not isinstance(change_feed, StoreFeed) or change_feed.store is not store:
            raise Refused(
                "wrong_feed", "the agent ships what is in the store: give it ChangeFeed.of(store)"
            )
        node = topology.node(store.node)
        if node.region != topology.local_region:
            raise Refused(
                "wrong_region",
                f"the store is that of {node.id} in {node.region}, and the local region of the "
                f"topology is {topology.local_region}",
            )
        settings = _settings(topology, resolver, config or ReplicationConfig(), node.id)
        settings["listen"] = {} if listen is None else {"peer": listen}
        self._config = checked(settings)
        if resolver.rules_of(topology) != store.rules:
            raise Refused(
                "bad_resolver",
                f"the store was opened with {store.rules.fingerprint}, and this resolver is "
                f"{resolver.rules_of(topology).fingerprint}",
            )
        self._tail, self._store = change_feed.tail, store
        self._topology, self._here = topology, node.id
        self._shipped_to: Sequence[Target] = ()
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        """Begin to replicate; returns when other nodes can connect and this one may write.

        A restarted node may when its peers have said that nothing is missing, or after a second of
        silence. Raises Refused("cannot_listen"), and Refused("already_started").
        """
        if self._task is not None:
            raise Refused("already_started", "this agent runs; stop it first")
        self._stopping.clear()
        started = asyncio.Event()
        self._task = asyncio.create_task(self._run(started), name="replication agent")
        waiting = asyncio.create_task(started.wait())
        try:
            await asyncio.wait({self._task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            await self._proven()
        except asyncio.CancelledError:
            await self.stop()
            raise
        finally:
            waiting.cancel()
        if not self.is_running:
            await self.stop()

    async def _proven(self) -> None:
        while self.is_running:
            if self._store.phase is not Phase.UNPROVEN:
                return
            await asyncio.sleep(PROOF_PAUSE_S)

    async def stop(self) -> None:
        """End the replication; connected targets get up to two seconds to take what was written.

        Raises the failure that has ended it before, if one has. Without `start` it does nothing.
        """
        if self._task is None:
            return
        self._stopping.set()
        task, self._task = self._task, None
        await task

    @property
    def is_running(self) -> bool:
        """Whether it replicates: it was started, and neither stopped nor ended by a failure."""
        return self._task is not None and not self._task.done()

    def stats(self) -> ReplicationStats:
        """What has happened so far, and how it stands."""
        value = self._store.metrics.value
        return ReplicationStats(
            changes_replicated=int(value("inferadb_replication_changes_total")),
            replication_failures=int(value("inferadb_replication_failures_total")),
            conflicts_detected=int(value("inferadb_replication_conflicts_total")),
            conflicts_resolved_local=int(value("inferadb_replication_conflicts_resolved_local")),
            conflicts_resolved_remote=int(value("inferadb_replication_conflicts_resolved_remote")),
            targets_connected=int(value("inferadb_replication_targets_connected")),
            targets_total=len(self._topology.targets_of(self._here)),
            lag_ms=value("inferadb_replication_lag_milliseconds"),
        )

    def health_of(self, node: NodeId) -> NodeHealth:
        """How a node is, for a `Router`: this one by its store, the others by their sessions.

        DEGRADED is a node of which nothing is known: no session yet, or not one that is shipped to.
        """
        if node == self._here:
            is_away = self._store.serves_not_because or self._store.takes_no_writes_because
            return NodeHealth.UNREACHABLE if is_away else NodeHealth.HEALTHY
        target = next((one for one in self._shipped_to if one.node == node), None)
        if target is None or not (target.is_connected or target.is_unreachable):
            return NodeHealth.DEGRADED
        return NodeHealth.HEALTHY if target.is_connected else NodeHealth.UNREACHABLE

    async def _run(self, started: asyncio.Event) -> None:
        config, metrics = self._config, self._store.metrics
        timeout_s = float(config.replication.agent.request_timeout_secs)
        with ungrouped():
            async with AsyncExitStack() as stack:
                loops = await stack.enter_async_context(asyncio.TaskGroup())
                dialler = await stack.enter_async_context(Dialler(timeout_s))
                calls = await stack.enter_async_context(PeerCalls(timeout_s))
                one = await stack.enter_async_context(
                    Partition(config, "", metrics, dialler, calls, tail=self._tail)
                )
                health = Health(
                    config.this_node, one.store, one.shipping.targets, one.scrub.reasons
                )
                answers = Answers(config.this_node)
                inspection = Inspection([one], answers)
                reception = Reception({one.name: one.receiver}, timeout_s)
                promoting = Promoting(one.promotion, answers)
                runner = web.AppRunner(
                    peer_app(reception, health, inspection, promoting),
                    access_log=None,
                    shutdown_timeout=2.0,
                )
                await stack.enter_async_context(listening("peer", config.peer_address, runner))
                await stack.enter_async_context(running(loops, *one.loops()))
                stack.push_async_callback(one.shipping.hand_over, HAND_OVER_S)
                self._shipped_to = one.shipping.targets
                started.set()
                await self._stopping.wait()


def _settings(
    topology: Topology, resolver: ConflictResolver, config: ReplicationConfig, node: str | None
) -> dict[str, Any]:
    """What a file would say of this deployment."""
    resolver.rules_of(topology)  # its own complaint says more than that about the settings
    regions = [
        {
            "id": str(region.id),
            "name": region.name,
            "is_primary": region.is_primary,
            "zones": [
                {
                    "id": str(zone.id),
                    "name": zone.name,
                    "nodes": [{"id": str(n.id), "endpoint": n.endpoint} for n in zone.nodes],
                }
                for zone in region.zones
            ],
        }
        for region in topology.regions
    ]
    replication: dict[str, Any] = {
        "strategy": topology.strategy,
        "local_region": str(topology.local_region),
        "conflict_resolution": resolver.strategy,
        "region_priorities": tuple(resolver.region_priorities),
        "agent": config.settings(),
        "regions": regions,
    }
    if topology.replication_targets is not None:
        replication["replication_targets"] = {
            str(source): [str(target) for target in targets]
            for source, targets in topology.replication_targets.items()
        }
    return {"node": None if node is None else str(node), "replication": replication}
