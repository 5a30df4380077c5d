"""Keys of applications: each opens some tenants. One file, taken up again when it changes.

An application shows its key as `Authorization: Bearer KEY`, or as `X-Sidecar-Key: KEY` where a
database behind the node wants a key of its own in `Authorization`. Keys are kept as hashes, so that
looking one up tells nothing of others by how long it takes.
"""

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final

import yaml
from aiohttp import hdrs, web
from pydantic import Field, ValidationError

from sidecar.errors import Refused
from sidecar.hops import OWN_AUTHORIZATION
from sidecar.section import Section
from sidecar.security.files import Watched, bad_file, read_file, warn_if_open
from sidecar.security.names import KEY_HEADER
from sidecar.security.refusals import Refusals
from sidecar.values import Name, TenantPattern

MAX_KEYS: Final = 10_000
LEAST_KEY: Final = 16

SETTING: Final = "security.app.keys_file"
_ANY = "*"


class _Entry(Section):
    """A key as the file has it. name: for the log; tenants: exact, or patterns with `*`."""

    name: Name
    key: Annotated[str, Field(min_length=LEAST_KEY, max_length=1024, pattern=r"^[\x21-\x7e]+$")]
    tenants: Annotated[tuple[TenantPattern, ...], Field(min_length=1)]


class _File(Section):
    keys: Annotated[tuple[_Entry, ...], Field(max_length=MAX_KEYS)]


@dataclass(frozen=True, slots=True)
class _Key:
    """What a key opens. digest: of the key."""

    name: str
    digest: bytes
    opens: re.Pattern[str]
    opens_all: bool


class AppKeys:
    """The keys of one node."""

    def __init__(self, path: Path) -> None:
        """Raises Refused("bad_secret_file")."""
        warn_if_open(SETTING, path)
        self._keys = Watched(SETTING, [path], lambda: _read(path))
        self._refusals = Refusals("app")

    def check(self, request: web.Request, tenant: str | None) -> None:
        """Let a request pass. tenant: None for what concerns all of them.

        Raises Refused("unauthenticated") with 401, Refused("tenant_not_allowed") with 403.
        """
        try:
            self._check(request, tenant)
        except Refused as refused:
            self._refusals.note(str(request.remote), refused.message)
            raise

    def _check(self, request: web.Request, tenant: str | None) -> None:
        shown = request.headers.getall(KEY_HEADER, [])
        if not shown:
            shown = _bearers(request)
            request[OWN_AUTHORIZATION] = True
        if len(shown) != 1:
            raise Refused(
                "unauthenticated",
                "this listener wants one key: Authorization: Bearer KEY, or X-Sidecar-Key: KEY",
                401,
            )
        digest = _digest(shown[0])
        key = self._keys.current().get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            raise Refused("unauthenticated", "no application has this key", 401)
        if tenant is None and not key.opens_all:
            raise Refused(
                "tenant_not_allowed",
                f"this call concerns all tenants, and the key {key.name!r} is not for all ('*')",
                403,
            )
        if tenant is not None and not key.opens.fullmatch(tenant):
            raise Refused(
                "tenant_not_allowed",
                f"the key {key.name!r} is not for tenant {tenant[:80]!r}",
                403,
            )


def _bearers(request: web.Request) -> list[str]:
    words = [text.partition(" ") for text in request.headers.getall(hdrs.AUTHORIZATION, [])]
    return [key.strip() for scheme, _, key in words if scheme.lower() == "bearer"]


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogatepass")).digest()


def _read(path: Path) -> Mapping[bytes, _Key]:
    raw = read_file(SETTING, path)
    try:
        entries = _File.model_validate(yaml.safe_load(raw)).keys
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        # The text of the error quotes the file.
        where = f" (line {mark.line + 1})" if mark else ""
        raise bad_file(SETTING, path, f"is not YAML{where}") from None
    except (yaml.YAMLError, ValidationError, ValueError, RecursionError) as error:
        raise bad_file(SETTING, path, _complaint(error)) from None
    keys = {key.digest: key for key in map(_made, entries)}
    if len(keys) != len(entries):
        raise bad_file(SETTING, path, "has the same key twice")
    return keys


def _made(entry: _Entry) -> _Key:
    patterns = (".*".join(map(re.escape, pattern.split(_ANY))) for pattern in entry.tenants)
    return _Key(
        entry.name, _digest(entry.key), re.compile("|".join(patterns)), _ANY in entry.tenants
    )


def _complaint(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "is not UTF-8 YAML"
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(step) for step in first["loc"])
    return (
        f"should be a list `keys` of name, key (at least {LEAST_KEY} characters) and tenants; "
        f"{place or 'the whole'}: {first['msg']}"
    )
