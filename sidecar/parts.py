"""What a node works with, built from its settings in the order in which the parts need each other.

Who listens is the business of `listeners`; what opens and closes when, that of `app`.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

from sidecar.agent.probe import Probes
from sidecar.api.answers import Answers
from sidecar.config import Config
from sidecar.core.router import NodeHealth, Router
from sidecar.core.topology import Node, Topology
from sidecar.health import Health
from sidecar.metrics import Metrics
from sidecar.partition import Partition
from sidecar.partitions import Partitions
from sidecar.peer.calls import PeerCalls
from sidecar.peer.client import Dialler
from sidecar.peer.forward import Forwarder
from sidecar.proxy.assembly import Proxy, ProxyParts
from sidecar.reload import Adapt, Reading, Reloads, primary_moved
from sidecar.security.guard import Guard
from sidecar.security.links import Links
from sidecar.serving import redis_url


@dataclass(frozen=True, slots=True)
class Parts:
    """Those of one node. config: the settings at its start; `topology` is the present one."""

    config: Config
    answers: Answers
    guard: Guard
    metrics: Metrics
    calls: PeerCalls
    probes: Probes
    partitions: Partitions
    health: Health
    forwarder: Forwarder
    reloads: Reloads
    proxy: Proxy | None

    @property
    def node(self) -> Node:
        return self.config.this_node

    def topology(self) -> Topology:
        return self.reloads.config.topology

    def others(self) -> list[Node]:
        """The other nodes of the present topology."""
        return _others(self.reloads.config)


async def built(
    config: Config, reading: Reading, stack: AsyncExitStack, loops: asyncio.TaskGroup
) -> Parts:
    """The parts of `config.this_node`, open as long as `stack` is.

    Raises Refused for what the configuration or the stored data forbid, Unavailable when the
    embedded server cannot be started.
    """
    node = config.this_node
    timeout_s = float(config.replication.agent.request_timeout_secs)
    answers = Answers(node)
    guard = Guard(config, answers)
    url, metrics = await redis_url(config, stack, loops), Metrics()
    dialler = await stack.enter_async_context(Dialler(timeout_s, guard.links))
    calls = await stack.enter_async_context(PeerCalls(timeout_s, guard.links))

    def own_health() -> NodeHealth:
        return health.seen_by_router()

    def serves_again(node: str) -> None:
        partitions.call(node)

    # Sessions let nodes be asked, and this node's own health is that of its sessions' stores.
    probes = Probes(_others(config), calls, own_health, metrics, serves_again=serves_again)
    partitions = await stack.enter_async_context(
        Partitions(config, url, metrics, dialler, calls, session_ended=probes.ask_now)
    )
    health = _health(node, partitions, metrics)
    router = Router(
        config.topology,
        node.id,
        probes.health_of,
        primary=lambda: partitions.everywhere.primacy.region,
        tenants=config.tenants,
    )
    forwarder = await stack.enter_async_context(
        Forwarder(
            router,
            config.topology,
            node.id,
            timeout_s=timeout_s,
            doubt=probes.doubt,
            forwarded=metrics.forwarded,
            is_proxy=config.database is not None,
            links=guard.links,
        )
    )
    proxy = None
    if config.database is not None:
        behind = ProxyParts(config, partitions, forwarder, answers, metrics, guard.app_keys)
        proxy = await stack.enter_async_context(Proxy(config.database, behind))
        health.behind_stands(proxy)
    adapt = _adapting(partitions, probes, router, forwarder, guard.links)
    reloads = Reloads(config, reading, adapt)
    return Parts(
        config=config,
        answers=answers,
        guard=guard,
        metrics=metrics,
        calls=calls,
        probes=probes,
        partitions=partitions,
        health=health,
        forwarder=forwarder,
        reloads=reloads,
        proxy=proxy,
    )


def _adapting(
    partitions: Partitions, probes: Probes, router: Router, forwarder: Forwarder, links: Links
) -> Adapt:
    """What takes up another topology, everywhere in a node that runs."""

    async def adapt(config: Config) -> None:
        if partitions.everywhere.primacy.is_changed_by(config.topology):
            raise primary_moved()
        # No request goes any more to a node that goes.
        probes.adapt(_others(config))
        router.adapt(config.topology)
        forwarder.adapt(config.topology)
        links.know(config.topology.nodes())
        await partitions.adapt(config)

    return adapt


def _others(config: Config) -> list[Node]:
    return [other for other in config.topology.nodes() if other.id != config.this_node.id]


def _health(node: Node, partitions: Partitions, metrics: Metrics) -> Health:
    def alone(one: Partition) -> Health:
        return Health(node, one.store, one.shipping.targets, one.scrub.reasons)

    first = partitions.everywhere
    restricted = {", ".join(one.regions): alone(one) for one in partitions if one.regions}
    health = Health(node, first.store, first.shipping.targets, first.scrub.reasons, restricted)
    metrics.is_ready_when(lambda: not health.not_ready_because())
    return health
