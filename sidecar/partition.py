"""One partition of a node: its data set, and everything that replicates it.

Owns how the parts are built from the settings and tied to each other. Who listens, and which call
goes to which partition, is the business of `app`.
"""

import random
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

from sidecar.agent.backlog import Backlog
from sidecar.agent.collect import collect
from sidecar.agent.concern import Concerns
from sidecar.agent.digests import Digests
from sidecar.agent.peers import Peers
from sidecar.agent.primacy import Primacy
from sidecar.agent.promotion import Promotion
from sidecar.agent.scrub import Scrub
from sidecar.agent.ship import Retries, Shipping, Target
from sidecar.agent.tail import Tail
from sidecar.agent.trim import Trimming
from sidecar.config import Config
from sidecar.core.marks import Marks
from sidecar.core.residency import GLOBAL
from sidecar.core.routing import carried, neighbours
from sidecar.core.sender import Limits
from sidecar.core.session import Party
from sidecar.core.topology import Topology
from sidecar.core.trim import Keep
from sidecar.core.vector import Vector
from sidecar.core.wire import FORMAT
from sidecar.logs import speak_of
from sidecar.metrics import Metrics
from sidecar.peer.calls import PeerCalls
from sidecar.peer.client import Dialler
from sidecar.peer.server import Receiver
from sidecar.rules import custom_script, rules_of
from sidecar.store.opening import READERS, Check
from sidecar.store.proxy_store import ProxyStore
from sidecar.store.redis_store import PARTITIONS, RedisStore

FEW_READERS = 2
"""A partition of some tenants is asked less: it needs fewer connections than that of all."""

Loop = Callable[[], Coroutine[None, None, None]]


def store_of(
    config: Config, url: str, metrics: Metrics, name: str = GLOBAL, check: Check | None = None
) -> RedisStore:
    """The store of `config.this_node` at the Redis `url`, not yet opened.

    name: of the partition. check: what must hold of the stored data before it opens. Raises
    Refused("bad_script").
    """
    custom = custom_script(config)
    return (ProxyStore if _is_told(config) else RedisStore)(
        url,
        prefix=config.redis.prefix,
        node=config.this_node.id,
        rules=rules_of(config, custom),
        metrics=metrics,
        now_us=now_us,
        random_bits=random.SystemRandom().getrandbits,
        has_peers=len(_topology_of(config, name).nodes()) > 1,
        max_clock_skew_ms=config.replication.max_clock_skew_ms,
        timeout_s=float(config.replication.agent.request_timeout_secs),
        partition=name,
        readers=READERS if name == GLOBAL else FEW_READERS,
        check=check,
        custom=custom,
    )


def _is_told(config: Config) -> bool:
    """Whether a database is told what is merged here."""
    return config.database is not None and config.database.dialect != "passthrough"


def _topology_of(config: Config, name: str) -> Topology:
    """The nodes of a partition, and who ships to whom among them."""
    regions = config.residency.sets.get(name)
    return config.topology if regions is None else config.topology.within(regions)


class _Place(NamedTuple):
    """Where a node stands in the topology of a partition.

    regions: node -> region, of all nodes. reachable: where its writes arrive. neighbours: the nodes
    that a session leads to or comes from. targets: the nodes it ships to.
    """

    topology: Topology
    regions: Mapping[str, str]
    reachable: Collection[str]
    neighbours: Collection[str]
    targets: Sequence[Target]


def _place_of(config: Config, name: str) -> _Place:
    node, topology = config.this_node, _topology_of(config, name)
    graph = {str(n.id): [str(t.id) for t in topology.targets_of(n.id)] for n in topology.nodes()}
    return _Place(
        topology,
        {str(n.id): str(n.region) for n in topology.nodes()},
        topology.reachable_from(node.region),
        neighbours(graph, node.id),
        [
            Target(target.id, target.endpoint, carried(graph, node.id, target.id))
            for target in topology.targets_of(node.id)
        ],
    )


class Partition:
    """One store of `config.this_node` at the Redis `url`, its feed, its peers and its sessions.

    Use as an async context manager: it opens the store and closes it. `loops` are to run meanwhile.
    tail: of a store that somebody else opens and closes, to be used instead of one at `url`.
    session_ended: told of a node whose session stood, and does no longer.
    """

    def __init__(
        self,
        config: Config,
        url: str,
        metrics: Metrics,
        dialler: Dialler,
        calls: PeerCalls,
        *,
        name: str = GLOBAL,
        check: Check | None = None,
        tail: Tail | None = None,
        session_ended: Callable[[str], None] = lambda node: None,
    ) -> None:
        """name: the partition; its regions follow from the tenants of `config`.

        check: what must hold of the stored data before it opens.
        """
        node, replication = config.this_node, config.replication
        self.name, self.regions = name, config.residency.sets.get(name)
        place = _place_of(config, name)
        agent = replication.agent
        timeout_s = float(agent.request_timeout_secs)
        self._metrics = metrics = metrics.of(name)
        self._opens_store = tail is None
        self.store = store_of(config, url, metrics, name, check) if tail is None else tail.store
        self.me = Party(
            node=node.id,
            region=node.region,
            partition=self.store.keys.partition,
            partitions=PARTITIONS,
            format=FORMAT,
            rules=self.store.rules.fingerprint,
            residency=config.residency.fingerprint,
        )
        self.tail = tail or Tail(self.store, agent.buffer_size)
        self.concerns = Concerns(self.store, place.regions, place.reachable)
        self.primacy = Primacy(self.store, place.topology, node.region, metrics)
        self.store.fence_by(self.primacy.refusal)
        self.peers = Peers(
            self.store,
            node.id,
            place.regions,
            _monotonic_us,
            place.neighbours,
            wall_us=now_us,
            max_ahead_us=replication.max_clock_skew_ms * 1000,
            heard=self.concerns.heard,
            primacy=self.primacy,
        )
        self.promotion = Promotion(
            node, place.topology, self.store, self.peers, primacy=self.primacy, calls=calls
        )
        self.shipping = Shipping(
            self.store,
            self.tail,
            dialler,
            self.peers,
            place.targets,
            concerns=self.concerns,
            me=self.me,
            limits=Limits(replication.window, agent.batch_size, int(timeout_s * 1e6)),
            retries=Retries(
                agent.max_retries, agent.retry_delay_ms / 1000, replication.probe_interval_max_s
            ),
            metrics=metrics,
            now_us=now_us,
            session_ended=session_ended,
        )
        marks = Marks()
        self.backlog = Backlog(self.store, self.peers, marks)
        self._trimming = Trimming(
            self.store,
            [target.node for target in self.shipping.targets],
            Keep(replication.feed_retention_s * 1_000_000, replication.feed_max_entries),
            held=self.shipping.held,
            metrics=metrics,
            now_us=now_us,
            marks=marks,
        )
        self.digests = Digests(self.store)
        self.scrub = Scrub(
            self.store,
            self.digests,
            calls,
            self.peers,
            self.shipping.targets,
            me=self.me,
            interval_s=replication.anti_entropy_interval_s,
            metrics=metrics,
        )
        self.receiver = Receiver(self.store, self.peers, self.me, place.regions, timeout_s)

    async def adapt(self, config: Config) -> None:
        """Take up the topology of `config`, which is the same in everything else.

        The store and its feed go on meanwhile, and so does whoever writes, reads or waits here. All
        sessions end first, so that nothing is told or taken by both topologies at once; what then
        begins is what begins at a start.
        """
        speak_of(self.name)
        place = _place_of(config, self.name)
        await self.shipping.halt()
        await self.receiver.adapt(place.regions)
        await self.peers.adapt(place.regions, place.neighbours)
        self.store.adapt(has_peers=len(place.regions) > 1)
        self.concerns.adapt(place.regions, place.reachable)
        self.primacy.adapt(place.topology)
        self.promotion.adapt(place.topology)
        self._trimming.adapt([target.node for target in place.targets])
        await self.shipping.adapt(place.targets)
        self.scrub.adapt()
        speak_of(GLOBAL)

    @property
    def lost_of(self) -> Callable[[Vector], str | None]:
        """Names an origin of which a vector has writes that no node has any more."""
        return self.peers.lost_of

    @property
    def stranger_among(self) -> Callable[[Collection[str]], str | None]:
        """Names one of some nodes that belongs to no deployment this node knows of."""
        return self.peers.stranger_among

    async def __aenter__(self) -> Self:
        if self._opens_store:
            speak_of(self.name)
            try:
                await self.store.__aenter__()
            finally:
                speak_of(GLOBAL)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._opens_store:
            await self.store.__aexit__(kind, error, traceback)

    def loops(self) -> tuple[Coroutine[None, None, None], ...]:
        """What runs as long as the node does."""
        loops: tuple[Loop, ...] = (
            self.tail.run,
            self.shipping.run,
            self._trimming.run,
            partial(collect, self.store, self.peers, self._metrics, now_us),
            self.scrub.run,
            self.primacy.run,
        )
        return tuple(map(self._speaking, loops))

    async def _speaking(self, loop: Loop) -> None:
        speak_of(self.name)
        await loop()


def now_us() -> int:
    """The wall clock, in microseconds since 1970."""
    return time.time_ns() // 1000


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000
