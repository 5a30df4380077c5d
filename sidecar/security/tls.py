"""TLS: contexts that follow their files, and the node that a certificate names.

A node's certificate names it in its subject alternative names: as URI
`spiffe://DOMAIN/…/node/NODE`, or, where it has no such URI, as DNS name `NODE`. The common name
counts for nothing.
"""

import re
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from sidecar.security.files import Watched, bad_file, read_file, warn_if_open
from sidecar.security.settings import PeerTls, ServerTls

HANDSHAKE_S = 10.0
"""So long may the other end take to say who it is; then the connection is closed."""

_SPIFFE = re.compile(r"spiffe://[^/]+/(?:.+/)?node/([^/]+)")


def nodes_of(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """The nodes that a verified certificate names, as `getpeercert` shows it; none without one."""
    names = (certificate or {}).get("subjectAltName", ())
    uris = [uri for kind, uri in names if kind == "URI" and uri.startswith("spiffe://")]
    if uris:
        found = (_SPIFFE.fullmatch(uri) for uri in uris)
        return frozenset(match[1] for match in found if match)
    return frozenset(name for kind, name in names if kind == "DNS")


class _Dialled(ssl.SSLObject):
    """The dialling end: nothing is sent to another node than the one that was meant."""

    def do_handshake(self) -> None:
        super().do_handshake()
        named = nodes_of(self.getpeercert())
        if self.server_hostname not in named:
            listed = ", ".join(sorted(named)) or "no node"
            raise ssl.SSLCertVerificationError(
                1, f"its certificate is that of {listed}, not of {self.server_hostname}"
            )


class Following(ssl.SSLContext):
    """A context that is, for each new connection, the one that its files make now.

    Loading into a context that is in use could add an authority and not take one away.
    """

    _watched: Watched[ssl.SSLContext]

    def __new__(cls, watched: Watched[ssl.SSLContext], protocol: int) -> Self:
        made = super().__new__(cls, protocol)
        made._watched = watched
        return made

    def __init__(self, *_: object) -> None:
        pass

    def __repr__(self) -> str:
        return "security.peer.tls"

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Of the present context; both event loops begin TLS with this call."""
        return self._watched.current().wrap_bio(*args, **options)


def listener_context(setting: str, tls: ServerTls) -> Following:
    """For a listener to which anybody may come. Raises Refused("bad_secret_file")."""

    def make() -> ssl.SSLContext:
        context = _context(ssl.PROTOCOL_TLS_SERVER)
        _load_own(context, setting, tls.certificate, tls.key)
        return context

    warn_if_open(f"{setting}.key", tls.key)
    watched = Watched(setting, [tls.certificate, tls.key], make)
    return Following(watched, ssl.PROTOCOL_TLS_SERVER)


def peer_contexts(setting: str, tls: PeerTls) -> tuple[Following, Following]:
    """For the peer listener and for dialling those of others. Raises Refused("bad_secret_file").

    A certificate that is shown to the listener must be of the authority; who shows none is not
    turned away here: /health has no secrets.
    """
    files = [tls.certificate, tls.key, tls.authority]

    def making(protocol: int) -> Callable[[], ssl.SSLContext]:
        def make() -> ssl.SSLContext:
            context = _context(protocol)
            _load_own(context, setting, tls.certificate, tls.key)
            _load_authority(context, f"{setting}.authority", tls.authority)
            # Both ends are sidecars. And nothing is resumed: each connection proves itself anew.
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            if protocol == ssl.PROTOCOL_TLS_SERVER:
                context.num_tickets = 0
                context.verify_mode = ssl.CERT_OPTIONAL
            else:
                # `_Dialled` looks at the name instead.
                context.check_hostname = False
                context.sslobject_class = _Dialled
            return context

        return make

    warn_if_open(f"{setting}.key", tls.key)
    listening = Watched(f"{setting} (listener)", files, making(ssl.PROTOCOL_TLS_SERVER))
    dialling = Watched(f"{setting} (dialling)", files, making(ssl.PROTOCOL_TLS_CLIENT))
    return (
        Following(listening, ssl.PROTOCOL_TLS_SERVER),
        Following(dialling, ssl.PROTOCOL_TLS_CLIENT),
    )


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _load_own(context: ssl.SSLContext, setting: str, certificate: Path, key: Path) -> None:
    read_file(f"{setting}.certificate", certificate)
    read_file(f"{setting}.key", key)
    try:
        # An empty passphrase instead of a question at the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        why = f"and {key} are no certificate with its key in PEM: {_reason(error)}"
        raise bad_file(f"{setting}.certificate", certificate, why) from None


def _load_authority(context: ssl.SSLContext, setting: str, authority: Path) -> None:
    read_file(setting, authority)
    try:
        context.load_verify_locations(authority)
    except (OSError, ValueError) as error:
        raise bad_file(setting, authority, f"is no PEM of authorities: {_reason(error)}") from None
    if not context.get_ca_certs():
        raise bad_file(setting, authority, "holds no certificate of an authority")


def _reason(error: BaseException) -> str:
    """In words, without the names of OpenSSL's functions; what we raise ourselves has none."""
    if message := getattr(error, "verify_message", None):
        return f"its certificate does not pass: {message}"
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None)
        return str(reason).lower().replace("_", " ") if reason else str(error.strerror or error)
    return str(error) or type(error).__name__


def handshake_refusal(error: BaseException) -> str:
    """Why no TLS came about, for the log of the node that refused."""
    # aiohttp wraps it.
    error = error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else error
    if getattr(error, "reason", None) in {"HTTP_REQUEST", "WRONG_VERSION_NUMBER"}:
        return "it does not speak TLS, and this node does (security.peer.tls)"
    if isinstance(error, TimeoutError | ConnectionAbortedError):
        return f"it did not end the TLS handshake within {HANDSHAKE_S:.0f} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return _reason(error)
    return f"no TLS with it: {_reason(error)}"
