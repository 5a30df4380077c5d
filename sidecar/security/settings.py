"""The settings of `security`: which files prove who somebody is. They are read where they are used.

Secrets stand in files, never in the settings themselves, so that these may be shown.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Self, TypeVar

from sidecar.core.topology import Problem
from sidecar.section import Section


class PeerTls(Section):
    """PEM files: this node's certificate (with what leads to the authority) and key, and whom it
    believes.
    """

    certificate: Path
    key: Path
    authority: Path


class ServerTls(Section):
    """PEM files of a listener: its certificate with what leads to an authority, and its key."""

    certificate: Path
    key: Path


class PeerSettings(Section):
    """How nodes prove to each other who they are: one of both, or not at all."""

    tls: PeerTls | None = None
    shared_key_file: Path | None = None


class AppSettings(Section):
    """What applications have to show."""

    tls: ServerTls | None = None
    keys_file: Path | None = None


class AdminSettings(Section):
    """What operators have to show."""

    tls: ServerTls | None = None
    token_file: Path | None = None


class SecuritySettings(Section):
    """All of it is off where nothing is set."""

    peer: PeerSettings = PeerSettings()
    app: AppSettings = AppSettings()
    admin: AdminSettings = AdminSettings()

    @property
    def in_words(self) -> str:
        """What who comes to each listener has to show."""
        peer, app, admin = self.peer, self.app, self.admin
        peers = "mutual TLS" if peer.tls else "shared key" if peer.shared_key_file else "nothing"
        apps = " and ".join(
            word for word, value in (("TLS", app.tls), ("keys", app.keys_file)) if value
        )
        operators = " and ".join(
            word for word, value in (("TLS", admin.tls), ("a token", admin.token_file)) if value
        )
        return f"peer {peers}, app {apps or 'nothing'}, admin {operators or 'nothing'}"

    def beside(self, folder: Path) -> Self:
        """The same, with paths that count from this folder."""
        return _beside(self, folder)


SomeSection = TypeVar("SomeSection", bound=Section)


def _beside(section: SomeSection, folder: Path) -> SomeSection:
    moved: dict[str, object] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Path):
            moved[name] = folder / value
        elif isinstance(value, Section):
            moved[name] = _beside(value, folder)
    return section.model_copy(update=moved)


def idle_proofs(security: SecuritySettings) -> Iterator[Problem]:
    """What has no effect."""
    peer = security.peer
    if peer.tls is not None and peer.shared_key_file is not None:
        text = "has no effect: with tls the certificates prove who a node is"
        yield Problem(("security", "peer", "shared_key_file"), text)
