"""The security of one node, made of its settings: what its listeners and its clients need."""

import ssl
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Middleware

from sidecar.api.answers import Answers
from sidecar.config import Config
from sidecar.security.admin import AdminGuard
from sidecar.security.app_keys import AppKeys
from sidecar.security.handshakes import TlsSite
from sidecar.security.links import Links, links_of
from sidecar.security.peers import peer_guard
from sidecar.security.refusals import Refusals
from sidecar.security.settings import SecuritySettings, ServerTls
from sidecar.security.tls import listener_context


@dataclass(frozen=True, slots=True)
class Door:
    """How a listener lets in who comes.

    context: of TLS, None for none. proves: whether who comes must prove who it is. refusals: to
    which handshakes that fail are told; where there are none, everybody may come and go.
    """

    context: ssl.SSLContext | None = None
    proves: bool = False
    refusals: Refusals | None = None

    def site(self, runner: web.AppRunner, host: str, port: int) -> web.BaseSite:
        """Where it listens; not started."""
        if self.context is not None and self.refusals is not None:
            return TlsSite(runner, host, port, self.context, self.refusals)
        return web.TCPSite(runner, host, port, ssl_context=self.context)


class Guard:
    """What guards a node. All files are read when it is made."""

    def __init__(self, config: Config, answers: Answers) -> None:
        """Raises Refused("bad_secret_file") with the name of the setting."""
        security = config.security or SecuritySettings()
        self.links = links_of_node(config)
        self._refusals = Refusals("peer")
        self._answers = answers
        admin = security.admin
        self._admin = AdminGuard(config.admin_address, admin.token_file, answers)
        self.app_keys = AppKeys(security.app.keys_file) if security.app.keys_file else None
        self.app_door = Door(_context("app", security.app.tls))
        self.admin_door = Door(_context("admin", admin.tls), admin.token_file is not None)
        self.peer_door = Door(self.links.listening, self.links.proves, self._refusals)

    @property
    def of_peers(self) -> tuple[Middleware, ...]:
        """What a request of the peer listener passes first; nothing where nobody proves a thing."""
        if not self.links.proves:
            return ()
        return (peer_guard(self.links, self._answers, self._refusals),)

    def bad_http(self, source: str, what: str) -> None:
        """The peer listener was sent something else than HTTP, such as TLS where it speaks none."""
        hint = "" if self.links.listening else " (this node speaks no TLS: security.peer.tls)"
        self._refusals.note(source, what + hint)

    @property
    def of_admin(self) -> tuple[Middleware, ...]:
        """What a request of the admin listener passes first."""
        return (self._admin.middleware,)


def links_of_node(config: Config) -> Links:
    """As the node that is named in the settings. Raises Refused("bad_secret_file")."""
    security = config.security or SecuritySettings()
    nodes = config.topology.nodes()
    return links_of(security.peer, str(config.this_node.id), nodes)


def _context(listener: str, tls: ServerTls | None) -> ssl.SSLContext | None:
    return None if tls is None else listener_context(f"security.{listener}.tls", tls)
