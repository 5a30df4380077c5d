"""Single values of the settings: what is allowed in each, and how a wrong one is refused."""

import re
from collections.abc import Callable
from typing import Annotated, NamedTuple, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from sidecar.core.relationship import check_relation, check_tenant, check_type
from sidecar.core.topology import ID_RULE, is_id
from sidecar.errors import Refused

_KEY_PREFIX = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_FOREIGN_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class Address(NamedTuple):
    """Where a listener listens; port 0 lets the system choose."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take `host:port` apart, as in `127.0.0.1:8080` or `[::1]:8080`."""
        host, colon, port = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        is_plain = bare == host and ":" not in host and "[" not in host
        has_host = bool(bare) and not re.search(r"[\s/@\x00-\x1f]", bare)
        has_port = re.fullmatch(r"[0-9]{1,5}", port) is not None and int(port) <= 65_535
        if not (colon and has_host and has_port and (is_plain or ":" in bare)):
            raise ValueError("should be host:port, such as 127.0.0.1:8080 or [::1]:8080")
        return cls(bare, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def clashes(self, other: Self) -> bool:
        """Whether both cannot be listened on at once."""
        hosts = {"127.0.0.1" if host == "localhost" else host for host in (self.host, other.host)}
        same_host = len(hosts) == 1 or bool(hosts & {"0.0.0.0", "::"})
        return self.port == other.port != 0 and same_host


def _refuse(text: str) -> PydanticCustomError:
    return PydanticCustomError("setting", "{text}", {"text": text})


def _listen_address(text: str) -> str:
    try:
        Address.parse(text)
    except ValueError as error:
        raise _refuse(str(error)) from None
    return text


def _endpoint(text: str) -> str:
    _listen_address(text)
    if Address.parse(text).port == 0:
        raise _refuse("needs a port above 0: other sidecars connect to it")
    return text


def _id(text: str) -> str:
    if not is_id(text):
        raise _refuse(f"{text!r} is not an id: {ID_RULE}")
    return text


def _checked(check: Callable[[str], str]) -> AfterValidator:
    """A name as the tuples have it: the rule is theirs, the complaint is ours."""

    def checked(text: str) -> str:
        try:
            return check(text)
        except Refused as refused:
            raise _refuse(refused.message) from None

    return AfterValidator(checked)


def _tenant_pattern(text: str) -> str:
    try:
        check_tenant(text.replace("*", "x"))
    except Refused:
        raise _refuse("is not 1 to 64 letters, digits, '_' or '-', with '*' for any") from None
    return text


def _key_prefix(text: str) -> str:
    if not _KEY_PREFIX.fullmatch(text):
        raise _refuse("should be 1 to 64 letters, digits, '_', '.' or '-'")
    return text


def _printable(text: str) -> str:
    if not text or len(text) > 128 or not text.isprintable():
        raise _refuse("should be 1 to 128 printable characters")
    return text


def _store_url(url: str) -> str:
    """Refuse what no store can be opened with; the text may hold a password, so it stays unsaid."""
    kinds = "embedded:DIR, redis://HOST:PORT/DB, rediss://… or unix:///PATH"
    scheme, colon, rest = url.partition(":")
    if not colon or scheme not in ("embedded", "redis", "rediss", "unix"):
        raise _refuse(f"should be one of {kinds}")
    if scheme == "embedded":
        if not rest.strip() or "\x00" in rest:
            raise _refuse("names no folder; should be embedded:DIR, such as embedded:./data")
        return url
    try:
        parts = urlsplit(url)
        is_complete = parts.path not in ("", "/") if scheme == "unix" else bool(parts.hostname)
        port = parts.port
    except ValueError:
        raise _refuse(f"is not a URL: should be one of {kinds}") from None
    if not rest.startswith("//") or not is_complete or port == 0:
        raise _refuse(f"is incomplete: should be one of {kinds}")
    if scheme != "unix" and not re.fullmatch(r"/?[0-9]*", parts.path):
        raise _refuse("the path of a Redis URL should be the number of a database, such as /0")
    return url


def _http_url(url: str) -> str:
    """Refuse what no database answers at; the text may hold a key, so it stays unsaid."""
    kind = "http://HOST:PORT or https://HOST:PORT"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _refuse(f"is not a URL: should be {kind}") from None
    has_odd_letters = re.search(r"[\s\x00-\x1f\x7f]", url) is not None
    if parts.scheme not in ("http", "https") or not host or port == 0 or has_odd_letters:
        raise _refuse(f"should be {kind}")
    if "@" in parts.netloc:
        raise _refuse("names a user; the key of the database belongs into token_file")
    if parts.path not in ("", "/") or "?" in url or "#" in url:
        raise _refuse(f"should end after host and port: {kind}")
    return url.removesuffix("/")


def _foreign_id(text: str) -> str:
    if not _FOREIGN_ID.fullmatch(text):
        raise _refuse("is no id of OpenFGA, such as 01HVMMBCMGZNT3SED4Z17ECXCA")
    return text


def _not_a_bool(value: object) -> object:
    # Python takes `true` for the number 1.
    if isinstance(value, bool | float):
        raise _refuse("should be a whole number")
    return value


Whole = Annotated[int, BeforeValidator(_not_a_bool)]
Id = Annotated[str, AfterValidator(_id)]
Name = Annotated[str, AfterValidator(_printable)]
ListenAddress = Annotated[str, AfterValidator(_listen_address)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
StoreUrl = Annotated[str, AfterValidator(_store_url)]
KeyPrefix = Annotated[str, AfterValidator(_key_prefix)]
ResourceType = Annotated[str, _checked(check_type)]
Relation = Annotated[str, _checked(check_relation)]
DatabaseUrl = Annotated[str, Field(max_length=2048), AfterValidator(_http_url)]
ForeignId = Annotated[str, AfterValidator(_foreign_id)]
TenantName = Annotated[str, _checked(check_tenant)]
TenantPattern = Annotated[str, AfterValidator(_tenant_pattern)]


def safe_url(url: str) -> str:
    """A URL as it may be shown: its password, in either place, is `***`."""
    if url.startswith("embedded:"):
        return url
    parts = urlsplit(url)
    _, at, host = parts.netloc.rpartition("@")
    user = parts.username or ""
    secret = ":***" if parts.password is not None else ""
    query = [(key, "***" if key == "password" else text) for key, text in parse_qsl(parts.query)]
    text = urlencode(query, safe="*/")
    return f"{parts.scheme}://{user}{secret}{at}{host}{parts.path}{'?' if text else ''}{text}"
