"""The three listeners of a node, made of its parts: which calls each of them answers.

What a call does is said where it is defined.
"""

from collections.abc import Coroutine, Iterator
from typing import NamedTuple

from aiohttp import web

from sidecar.admin.conflicts import ConflictLog
from sidecar.admin.database import DatabaseCalls
from sidecar.admin.deployment import Deployment
from sidecar.admin.operations import Operations
from sidecar.admin.showing import Dashboard
from sidecar.admin.status import admin_app
from sidecar.admin.steering import Steering
from sidecar.api.listener import AppListener
from sidecar.api.native import app_listener, native_app, serve_forwarded
from sidecar.config import Address
from sidecar.hops import HEADS
from sidecar.node_status import NodeStatus
from sidecar.parts import Parts
from sidecar.peer.doubts import Doubts
from sidecar.peer.inspection import Inspection
from sidecar.peer.promoting import Promoting
from sidecar.peer.server import Reception, peer_app
from sidecar.peer.telling import Telling
from sidecar.proxy.front import proxy_listener
from sidecar.readiness import Readiness
from sidecar.request_ids import FROM_NODE
from sidecar.security.guard import Door


class Listener(NamedTuple):
    """What listens, and where; `serving.listening` opens it."""

    name: str
    address: Address
    runner: web.AppRunner
    door: Door


class Listeners:
    """Those of one node. `loops` are to run as long as the node does."""

    def __init__(self, parts: Parts, readiness: Readiness) -> None:
        self._parts = parts
        promoting = Promoting(parts.partitions.everywhere.promotion, parts.answers)
        database = DatabaseCalls(parts.proxy, parts.answers)
        status = NodeStatus(
            parts.node,
            parts.partitions,
            health=parts.health,
            metrics=parts.metrics,
            probes=parts.probes,
            database=database.status,
            feed_limit=parts.config.replication.feed_max_entries,
        )
        self._dashboard = Dashboard(
            parts.config,
            parts.topology,
            parts.partitions,
            parts.calls,
            parts.answers,
            status=status,
            metrics=parts.metrics,
            database=parts.proxy,
        )
        admin = self._admin_app(status, promoting, database)
        peer = self._peer_app(status, promoting)
        readiness.add_to(admin, peer)
        self.app = self._app(peer, readiness)
        self.admin = AppListener(admin, parts.answers)
        self.peer = self._peer(peer)

    @property
    def inner(self) -> tuple[Listener, Listener]:
        """Those that are open as long as the node is: for operators, and for other nodes."""
        config, guard = self._parts.config, self._parts.guard
        return (
            Listener("admin", config.admin_address, self.admin, guard.admin_door),
            Listener("peer", config.peer_address, self.peer, guard.peer_door),
        )

    @property
    def outer(self) -> Listener:
        """That of applications."""
        return Listener("app", self._parts.config.app_address, self.app, self._parts.guard.app_door)

    def loops(self) -> Iterator[Coroutine[None, None, None]]:
        """What runs as long as the node does."""
        return self._dashboard.loops()

    def _admin_app(
        self, status: NodeStatus, promoting: Promoting, database: DatabaseCalls
    ) -> web.Application:
        parts, answers, partitions = self._parts, self._parts.answers, self._parts.partitions
        return admin_app(
            parts.metrics,
            parts.health,
            answers,
            ConflictLog([one.store for one in partitions], answers),
            Operations(parts.node, partitions, answers, status=status, promote=promoting.promote),
            Steering(parts.node, list(partitions), parts.reloads, answers),
            Deployment(
                parts.node,
                parts.topology,
                parts.calls,
                answers,
                status=status,
                everywhere=partitions.everywhere,
                probes=parts.probes,
            ),
            database,
            self._dashboard,
            guards=parts.guard.of_admin,
        )

    def _peer_app(self, status: NodeStatus, promoting: Promoting) -> web.Application:
        parts, partitions, answers = self._parts, self._parts.partitions, self._parts.answers
        timeout_s = float(parts.config.replication.agent.request_timeout_secs)
        receivers = {one.name: one.receiver for one in partitions}
        peer = peer_app(
            Reception(receivers, timeout_s, parts.guard.links),
            parts.health,
            *(Inspection(partitions, answers), promoting, Telling(status, answers)),
            guards=parts.guard.of_peers,
        )
        Doubts(parts.probes, answers).add_to(peer)
        return peer

    def _app(self, peer: web.Application, readiness: Readiness) -> AppListener:
        """That of applications; what other nodes forward is served as if it came here."""
        parts, probes = self._parts, readiness.routes()
        native = native_app(
            parts.partitions,
            node=parts.node,
            health=parts.health.check,
            answers=parts.answers,
            probes=probes,
            routed=parts.forwarder.routed,
            keys=parts.guard.app_keys,
        )
        if parts.proxy is None:
            serve_forwarded(peer, native)
            return app_listener(native)
        own = {"/health": parts.health.answer, **probes}
        return proxy_listener(peer, parts.proxy.front, native, own)

    def _peer(self, peer: web.Application) -> AppListener:
        # What is forwarded to a database is as it came.
        options = {"auto_decompress": False, **HEADS} if self._parts.proxy else {}
        return AppListener(
            peer,
            self._parts.answers,
            shutdown_timeout=2.0,
            id_header=FROM_NODE,
            bad_http=self._parts.guard.bad_http,
            **options,
        )
