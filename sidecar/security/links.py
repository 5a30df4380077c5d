"""How nodes know each other on the links between them: not at all, by certificates, or by a key.

One `Links` serves both ends: what this node shows when it dials, and whom it believes when it is
asked. Whether a node may do what it asks is the business of whoever is asked.
"""

import secrets
import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Protocol

from aiohttp import web

from sidecar.core.session import quoted
from sidecar.core.topology import Node
from sidecar.core.wire import encode_frame
from sidecar.errors import Refused, Unavailable
from sidecar.security.files import Watched, read_lines, warn_if_open
from sidecar.security.names import SIGNATURE
from sidecar.security.settings import PeerSettings
from sidecar.security.signing import (
    STREAMED,
    Repeats,
    Signature,
    body_hash,
    is_proof,
    opened,
    proof,
    unauthenticated,
)
from sidecar.security.tls import nodes_of, peer_contexts

LEAST_KEY: Final = 16
"""Characters of a shared key."""

INTRODUCE, CHALLENGE, PROOF = "introduce", "challenge", "proof"


class Talk(Protocol):
    """The beginning of a session, seen from one end."""

    async def send(self, frame: str | bytes) -> None: ...

    async def receive(self) -> dict[str, object]:
        """The head of the next frame; raises Unavailable when the other end has gone."""
        ...


class Links:
    """Nobody proves anything: for loopback, and for networks where only nodes can come."""

    kind = "none"
    scheme = "http"
    listening: ssl.SSLContext | None = None
    """What the peer listener speaks TLS with."""

    proves = False
    """Whether who asks must prove who it is."""

    def __init__(self, me: str) -> None:
        self.me = me
        self._at: dict[str, str] = {}
        self._known: frozenset[str] = frozenset()

    def know(self, nodes: Iterable[Node]) -> None:
        """The nodes of the topology as it is now, this one among them."""
        nodes = tuple(nodes)
        self._at = {str(node.endpoint): str(node.id) for node in nodes}
        self._known = frozenset(str(node.id) for node in nodes)

    # -- the end that dials -----------------------------------------------------------------------

    def options(self, endpoint: str) -> dict[str, Any]:
        """Of a request to an endpoint, for aiohttp. Raises Unavailable("unknown_endpoint")."""
        return {}

    def signed(
        self,
        endpoint: str,
        method: str,
        target: str,
        body: bytes | None,
        *,
        is_streamed: bool = False,
    ) -> dict[str, str]:
        """The headers by which this node proves who asks. target: as in the request line."""
        return {}

    async def introduce(self, talk: Talk, target: str) -> None:
        """Prove to a target who dials, and have it prove who it is, before the hello."""

    def _node_at(self, endpoint: str) -> str:
        node = self._at.get(endpoint)
        if node is None:
            raise Unavailable(
                "unreachable", f"{endpoint} is not the endpoint of a node of the topology"
            )
        return node

    # -- the end that is dialled ------------------------------------------------------------------

    async def asker(self, request: web.Request) -> frozenset[str]:
        """The nodes that a request proves to come from.

        Raises Refused("peer_unauthenticated"), or Refused("unknown_node") for one that is no node
        of the topology.
        """
        return frozenset()

    async def meet(
        self, first: dict[str, object], request: web.Request, talk: Talk
    ) -> tuple[dict[str, object], frozenset[str]]:
        """The hello of a session that begins with this frame, and whom it proves to come from.

        Raises Refused, Unavailable.
        """
        if first.get("type") == INTRODUCE:
            raise Refused(
                "security_mismatch",
                "the other end proves itself with a shared key, and this node has none "
                "(security.peer.shared_key_file)",
            )
        return first, frozenset()

    def _checked(self, names: frozenset[str]) -> frozenset[str]:
        if not names & self._known:
            listed = ", ".join(sorted(names)) or "no node"
            raise Refused(
                "unknown_node", f"{listed[:200]} is not in the topology of {self.me}", 403
            )
        return names


class CertifiedLinks(Links):
    """Mutual TLS; a node is whom its certificate names."""

    kind = "tls"
    scheme = "https"
    proves = True

    def __init__(self, me: str, settings: PeerSettings) -> None:
        """Raises Refused("bad_secret_file")."""
        super().__init__(me)
        assert settings.tls is not None
        self.listening, self._dialling = peer_contexts("security.peer.tls", settings.tls)

    def options(self, endpoint: str) -> dict[str, Any]:
        # The name that the certificate at the other end must have.
        return {"ssl": self._dialling, "server_hostname": self._node_at(endpoint)}

    async def asker(self, request: web.Request) -> frozenset[str]:
        return self._checked(_shown(request))

    async def meet(
        self, first: dict[str, object], request: web.Request, talk: Talk
    ) -> tuple[dict[str, object], frozenset[str]]:
        hello, _ = await super().meet(first, request, talk)
        # One that is no member (any more) hears the same reason as without TLS.
        return hello, _shown(request)


def _shown(request: web.Request) -> frozenset[str]:
    transport = request.transport
    certificate = transport.get_extra_info("peercert") if transport is not None else None
    if not certificate:
        raise unauthenticated("it shows no certificate (security.peer.tls)")
    names = nodes_of(certificate)
    if not names:
        raise unauthenticated(
            "its certificate names no node: it needs the node id as DNS name, or the URI "
            "spiffe://DOMAIN/node/ID, among its subject alternative names"
        )
    return names


class KeyedLinks(Links):
    """A key that all nodes have. A file may hold several, one a line: the first signs, all pass."""

    kind = "shared key"
    proves = True

    def __init__(
        self,
        me: str,
        path: Path,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Raises Refused("bad_secret_file")."""
        super().__init__(me)
        setting = "security.peer.shared_key_file"
        warn_if_open(setting, path)
        self._keys = Watched(setting, [path], lambda: read_lines(setting, path, LEAST_KEY))
        self._now_ms = now_ms
        self._run, self._number = secrets.token_hex(8), 0
        self._repeats = Repeats(now_ms())

    # -- requests

    def options(self, endpoint: str) -> dict[str, Any]:
        self._node_at(endpoint)
        return {}

    def signed(
        self,
        endpoint: str,
        method: str,
        target: str,
        body: bytes | None,
        *,
        is_streamed: bool = False,
    ) -> dict[str, str]:
        self._number += 1
        hashed = STREAMED if is_streamed else body_hash(body)
        signature = Signature(self.me, self._run, self._number, self._now_ms(), hashed)
        made = signature.signed(self._keys.current()[0], self._node_at(endpoint), method, target)
        return {SIGNATURE: made}

    async def asker(self, request: web.Request) -> frozenset[str]:
        text = request.headers.get(SIGNATURE)
        if text is None:
            raise unauthenticated("it signs nothing (security.peer.shared_key_file)")
        # What a middle box does to an escape is not ours to undo: as it stands in the request line.
        signature = opened(self._keys.current(), text, self.me, request.method, request.raw_path)
        self._repeats.check(signature, self._now_ms())
        names = self._checked(frozenset({signature.node}))
        if signature.body != STREAMED and body_hash(await request.read()) != signature.body:
            raise unauthenticated("the body is not the one that was signed")
        return names

    # -- sessions

    async def introduce(self, talk: Talk, target: str) -> None:
        mine = secrets.token_hex(16)
        said = {"type": INTRODUCE, "node": self.me, "to": target, "nonce": mine}
        # Who has another key hears it at once, and a stranger gets no proof to try keys on.
        made = proof(self._keys.current()[0], INTRODUCE, self.me, target, mine)
        await talk.send(encode_frame({**said, "proof": made}))
        answer = await talk.receive()
        if answer.get("type") == "refuse":
            raise Unavailable(str(answer.get("code"))[:80], str(answer.get("message"))[:500])
        theirs, shown = answer.get("nonce"), answer.get("proof")
        is_whole = isinstance(theirs, str) and isinstance(shown, str)
        if answer.get("type") != CHALLENGE or not is_whole:
            raise Unavailable(
                "peer_unauthenticated",
                f"{target} does not prove that it has the shared key: it says "
                f"{quoted(answer.get('type'))}",
            )
        parts = (self.me, target, mine, str(theirs))
        if not is_proof(self._keys.current(), str(shown), "listener", *parts):
            raise Unavailable(
                "peer_unauthenticated",
                f"what answers for {target} has another shared key (security.peer.shared_key_file)",
            )
        made = proof(self._keys.current()[0], "dialler", *parts)
        await talk.send(encode_frame({"type": PROOF, "proof": made}))

    async def meet(
        self, first: dict[str, object], request: web.Request, talk: Talk
    ) -> tuple[dict[str, object], frozenset[str]]:
        node, nonce = first.get("node"), first.get("nonce")
        if (
            first.get("type") != INTRODUCE
            or not isinstance(node, str)
            or not isinstance(nonce, str)
        ):
            raise unauthenticated(
                "it does not prove that it has the shared key (security.peer.shared_key_file)"
            )
        if first.get("to") != self.me:
            raise Refused("wrong_node", f"expected {quoted(first.get('to'))}, this is {self.me}")
        if not is_proof(
            self._keys.current(), str(first.get("proof")), INTRODUCE, node, self.me, nonce
        ):
            raise _other_key(node)
        mine = secrets.token_hex(16)
        parts = (node, self.me, nonce, mine)
        made = proof(self._keys.current()[0], "listener", *parts)
        await talk.send(encode_frame({"type": CHALLENGE, "nonce": mine, "proof": made}))
        answer = await talk.receive()
        shown = str(answer.get("proof"))
        if answer.get("type") != PROOF or not is_proof(
            self._keys.current(), shown, "dialler", *parts
        ):
            raise _other_key(node)
        return await talk.receive(), frozenset({node})


def _other_key(node: str) -> Refused:
    return unauthenticated(
        f"what says to be {node[:80]!r} has another shared key (security.peer.shared_key_file)"
    )


def links_of(settings: PeerSettings, me: str, nodes: Iterable[Node]) -> Links:
    """As the settings have it. Raises Refused("bad_secret_file")."""
    if settings.tls is not None:
        made: Links = CertifiedLinks(me, settings)
    elif settings.shared_key_file is not None:
        made = KeyedLinks(me, settings.shared_key_file)
    else:
        made = Links(me)
    made.know(nodes)
    return made
