"""Request headers of the native API: which there are, and what is allowed in them."""

import re
from dataclasses import dataclass
from hashlib import blake2b

from aiohttp import web
from multidict import CIMultiDictProxy

from sidecar.core.concern import WriteConcern
from sidecar.core.relationship import check_tenant
from sidecar.core.token import Token
from sidecar.errors import Refused

DEFAULT_TENANT = "default"
DEFAULT_CONSISTENCY_TIMEOUT_MS = 2000
DEFAULT_WRITE_CONCERN_TIMEOUT_MS = 5000
MAX_TIMEOUT_MS = 60_000

_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_MILLISECONDS = re.compile(r"[0-9]{1,5}")
_DECODED = frozenset({"identity", "gzip", "deflate"})

Headers = CIMultiDictProxy[str]


@dataclass(frozen=True, slots=True)
class Consistency:
    """What a read must see before it may answer, and how long that may take."""

    token: Token
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Concern:
    """In how many regions a write must be before it is answered, and how long that may take."""

    level: WriteConcern
    timeout_s: float


NO_CONCERN = Concern(WriteConcern.LOCAL, 0.0)


def check_body_headers(request: web.Request) -> None:
    """Refuse a body that is not said to be JSON, or compressed in a way nobody undoes."""
    declared = request.headers.get("Content-Type")
    if declared is not None and declared != "application/json":
        media_type, _, parameters = declared.partition(";")
        charset = parameters.strip().lower().replace('"', "")
        if media_type.strip().lower() != "application/json" or charset not in {
            "",
            "charset=utf-8",
        }:
            raise Refused(
                "unsupported_media_type",
                f"Content-Type {declared[:80]!r} is not taken; send application/json in UTF-8",
                415,
            )
    encoding = request.headers.get("Content-Encoding")
    if encoding is not None and encoding.lower() not in _DECODED:
        raise Refused(
            "unsupported_encoding",
            f"Content-Encoding {encoding[:80]!r} is not taken; send gzip, deflate or none",
            415,
        )


def tenant_of(headers: Headers) -> str:
    """`X-Tenant`, or `default`."""
    tenant = _only(headers, "X-Tenant")
    return DEFAULT_TENANT if tenant is None else check_tenant(tenant)


def idempotency_key_of(headers: Headers) -> str | None:
    """`Idempotency-Key`: 1 to 255 printable ASCII characters."""
    key = _only(headers, "Idempotency-Key")
    if key is not None and not _KEY.fullmatch(key):
        raise Refused(
            "invalid_header", "Idempotency-Key is not 1 to 255 printable ASCII characters"
        )
    return key


def request_hash(path: str, tenant: str, raw: bytes) -> str:
    """What an idempotency key is bound to: same key and same hash is the same request."""
    digest = blake2b(digest_size=16)
    for part in (path.encode(), tenant.encode(), raw):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def concern_of(headers: Headers) -> Concern:
    """`X-Write-Concern` and `X-Write-Concern-Timeout-Ms`."""
    timeout_s = _timeout_s(headers, "X-Write-Concern-Timeout-Ms", DEFAULT_WRITE_CONCERN_TIMEOUT_MS)
    word = _only(headers, "X-Write-Concern")
    if word is None:
        return NO_CONCERN
    try:
        return Concern(WriteConcern(word), timeout_s)
    except ValueError:
        raise Refused(
            "invalid_header", "X-Write-Concern is local, majority or all; nothing was written"
        ) from None


def consistency_of(headers: Headers) -> Consistency | None:
    """`X-Revision-Token`, `X-Consistency` and `X-Consistency-Timeout-Ms`, or None without token."""
    mode = headers.get("X-Consistency", "fail")
    timeout_s = _timeout_s(headers, "X-Consistency-Timeout-Ms", DEFAULT_CONSISTENCY_TIMEOUT_MS)
    if mode not in {"fail", "origin"}:
        raise Refused("invalid_header", "X-Consistency is fail or origin")
    token = _only(headers, "X-Revision-Token")
    return None if token is None else Consistency(Token.decode(token), timeout_s)


def last_event_id_of(headers: Headers) -> str | None:
    """`Last-Event-ID`: what a reader of server-sent events sends when it connects again."""
    return _only(headers, "Last-Event-ID") or None


def _timeout_s(headers: Headers, name: str, default_ms: int) -> float:
    text = headers.get(name)
    if text is None:
        return default_ms / 1000
    timeout_ms = int(text) if _MILLISECONDS.fullmatch(text) else -1
    if not 0 <= timeout_ms <= MAX_TIMEOUT_MS:
        raise Refused(
            "invalid_header",
            f"{name} is a whole number of milliseconds from 0 to {MAX_TIMEOUT_MS}",
        )
    return timeout_ms / 1000


def _only(headers: Headers, name: str) -> str | None:
    values = headers.getall(name, None)
    if values is None:
        return None
    if len(values) > 1:
        raise Refused("invalid_header", f"{name} is given more than once")
    return values[0]
