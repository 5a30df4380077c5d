"""What an admin listener is asked for: what changes the state of a node, only by an operator.

A page in an operator's browser can send requests to this listener, too: without a header of its own
unless the listener agrees to it (it never does), with the `Origin` of the page, and under a name
that leads here (DNS rebinding).
"""

import hmac
import ipaddress
from hashlib import sha256
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from sidecar.api.answers import Answers
from sidecar.errors import Refused
from sidecar.security.files import Watched, read_lines, warn_if_open
from sidecar.security.names import ADMIN_HEADER
from sidecar.security.refusals import Refusals
from sidecar.values import Address

LEAST_TOKEN: Final = 16
SETTING: Final = "security.admin.token_file"

_LOOKS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})

_OPEN = frozenset({"/health", "/livez", "/readyz", "/metrics"})
"""What machines ask for, by whatever name they have for a node; no tuple is in it."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener there."""
    return host in {"localhost", "::1"} or host.startswith("127.")


class AdminGuard:
    """Guards the admin listener at an address. token_file: what operators show; None: nothing."""

    def __init__(self, address: Address, token_file: Path | None, answers: Answers) -> None:
        """Raises Refused("bad_secret_file")."""
        self._address, self._answers = address, answers
        self._tokens: Watched[tuple[bytes, ...]] | None = None
        if token_file is not None:
            warn_if_open(SETTING, token_file)
            self._tokens = Watched(
                SETTING, [token_file], lambda: read_lines(SETTING, token_file, LEAST_TOKEN)
            )
        self._refusals = Refusals("admin")

    @property
    def middleware(self) -> Middleware:
        """For the application of the admin listener."""

        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                if request.method not in _LOOKS:
                    self.check(request)
                elif request.path not in _OPEN and is_loopback(self._address.host):
                    # A page whose name leads here could read whose permissions are in conflict.
                    self._check_name(request)
            except Refused as refused:
                self._refusals.note(str(request.remote), refused.message)
                return self._answers.failure(refused)
            return await handler(request)

        return guard

    def check(self, request: web.Request) -> None:
        """Raises Refused with 401 or 403 for what is not to change anything."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and origin not in {
            f"{s}://{request.host}" for s in ("http", "https")
        }:
            raise Refused(
                "foreign_origin",
                f"{hdrs.ORIGIN} {origin[:80]!r}: pages of other servers change nothing here",
                403,
            )
        if request.headers.get(ADMIN_HEADER) != "1":
            raise Refused(
                "header_missing",
                f"{request.method} {request.path[:80]} changes the state of this node, and needs "
                f"the header {ADMIN_HEADER}: 1, which no page in a browser can send",
                403,
            )
        if not self._shows_token(request):
            self._check_place(request)

    def _shows_token(self, request: web.Request) -> bool:
        """Whether it shows the right one. Raises Refused("unauthenticated") for a wrong one."""
        scheme, _, shown = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if self._tokens is None or scheme.lower() != "bearer":
            return False
        digest = sha256(shown.strip().encode("utf-8", "surrogatepass")).digest()
        fits = [
            hmac.compare_digest(sha256(token).digest(), digest) for token in self._tokens.current()
        ]
        if not any(fits):
            raise Refused("unauthenticated", "this is not the token of this node", 401)
        return True

    def _check_place(self, request: web.Request) -> None:
        """Without a token only this machine may change anything, under a name of this machine."""
        if not is_loopback(self._address.host):
            hint = "" if self._tokens else f"; this node has none, set {SETTING}"
            raise Refused(
                "unauthenticated",
                f"the admin listener is not on loopback: what changes the state of this node needs "
                f"Authorization: Bearer TOKEN{hint}",
                401,
            )
        self._check_name(request)

    def _check_name(self, request: web.Request) -> None:
        if not self._is_own(request.host):
            raise Refused(
                "foreign_host",
                f"{hdrs.HOST} {request.host[:80]!r} is not an address of this listener; use "
                f"{self._address}",
                403,
            )

    def _is_own(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        name = name.removeprefix("[").removesuffix("]")
        if name in {"localhost", self._address.host}:
            return True
        try:
            # No name that leads somewhere else tomorrow.
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
