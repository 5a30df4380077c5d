"""Request headers of the native API: which there are, and what is allowed in them."""

import re
from dataclasses import dataclass
from hashlib import blake2b

from aiohttp import web
from multidict import CIMultiDictProxy

from sidecar.core.relationship import check_tenant
from sidecar.core.token import Token
from sidecar.errors import Refused

DEFAULT_TENANT = "default"
DEFAULT_CONSISTENCY_TIMEOUT_MS = 2000
MAX_CONSISTENCY_TIMEOUT_MS = 60_000

_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_MILLISECONDS = re.compile(r"[0-9]{1,5}")
_DECODED = frozenset({"identity", "gzip", "deflate"})

Headers = CIMultiDictProxy[str]


@dataclass(frozen=True, slots=True)
class Consistency:
    """What a read must see before it may answer, and how long that may take."""

    token: Token
    timeout_s: float


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


def check_write_concern(headers: Headers) -> None:
    """`X-Write-Concern`: only `local` for now; nothing weaker than asked for is done silently."""
    concern = headers.get("X-Write-Concern")
    if concern is None or concern == "local":
        return
    if concern in {"majority", "all"}:
        raise Refused(
            "not_available",
            f"X-Write-Concern: {concern} is not available in this version; nothing was written. "
            "Send local or leave the header out",
            501,
        )
    raise Refused(
        "invalid_header", "X-Write-Concern is local, majority or all; nothing was written"
    )


def consistency_of(headers: Headers) -> Consistency | None:
    """`X-Revision-Token`, `X-Consistency` and `X-Consistency-Timeout-Ms`, or None without token."""
    mode = headers.get("X-Consistency", "fail")
    timeout = headers.get("X-Consistency-Timeout-Ms")
    timeout_ms = DEFAULT_CONSISTENCY_TIMEOUT_MS
    if timeout is not None:
        timeout_ms = int(timeout) if _MILLISECONDS.fullmatch(timeout) else -1
        if not 0 <= timeout_ms <= MAX_CONSISTENCY_TIMEOUT_MS:
            raise Refused(
                "invalid_header",
                "X-Consistency-Timeout-Ms is a whole number of milliseconds from 0 to "
                f"{MAX_CONSISTENCY_TIMEOUT_MS}",
            )
    if mode not in {"fail", "origin"}:
        raise Refused("invalid_header", "X-Consistency is fail or origin")
    token = _only(headers, "X-Revision-Token")
    return None if token is None else Consistency(Token.decode(token), timeout_ms / 1000)


def last_event_id_of(headers: Headers) -> str | None:
    """`Last-Event-ID`: what a reader of server-sent events sends when it connects again."""
    return _only(headers, "Last-Event-ID") or None


def _only(headers: Headers, name: str) -> str | None:
    values = headers.getall(name, None)
    if values is None:
        return None
    if len(values) > 1:
        raise Refused("invalid_header", f"{name} is given more than once")
    return values[0]
