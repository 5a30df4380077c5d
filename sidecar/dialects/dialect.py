"""What a dialect is: pure functions over the HTTP API of one kind of database.

A dialect says what a request is, what a write is going to change, how changes are applied so that
doing it twice does no harm, and how the present state of tuples is read. It does no input or
output: what it wants of the database it returns as `Ask`s, and what came back it is handed as text.
A new database is one file beside this one, and its table tests.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum
from typing import ClassVar, NamedTuple

from sidecar.core.relationship import Change, Identity, Relationship

SCHEMA_TYPE = "sidecar-schema"
"""Resource type of the tuple that carries a schema; no type of a known database has a hyphen."""

MAX_SCHEMA_BYTES = 1024 * 1024


class Kind(StrEnum):
    """read: any node may serve it. write: replicated. control: for this node's own database."""

    READ = "read"
    WRITE = "write"
    CONTROL = "control"


class Call(NamedTuple):
    """One call of the database's API that the dialect knows.

    looks_inside: the dialect needs the body of such a request; it is read whole (at most 4 MiB).
    is_endless: the answer goes on for ever, and may begin late.
    """

    name: str
    kind: Kind
    looks_inside: bool = False
    is_endless: bool = False


class Request(NamedTuple):
    """A request of an application. path: as it came, with its escapes, without the query.

    body: decompressed; empty where the call does not look inside.
    """

    method: str
    path: str
    query: str = ""
    body: bytes = b""


class Ask(NamedTuple):
    """A request that the sidecar makes of its own database, with a body of JSON."""

    method: str
    path: str
    body: bytes = b""


class Found(NamedTuple):
    """Relationships that the database holds; cursor: where to go on, None at the end."""

    relationships: Sequence[Relationship]
    cursor: str | None = None


class Write(NamedTuple):
    """What a write is going to change, if the database takes it.

    changes: one per tuple, no tuple twice. matching: instead of them, a filter in the dialect's own
    words (see `ReplicatedDialect.find`): all it matches is deleted. is_partial: the database may do
    only some of it and not say which, so it must be looked at afterwards.
    """

    tenant: str
    changes: Sequence[Change] = ()
    matching: Mapping[str, object] | None = None
    is_partial: bool = False


class Verdict(StrEnum):
    """What an answer of the database means for what was asked.

    done: it is so now. refused: it never will be while database and request are as they are (a
    type that the schema does not know; what such a filter asks for is not there). again: it may be
    later (overload, an outage, a conflict). differs: a tuple is there with another payload, which
    this database does not overwrite; nothing was changed, and `replace` is the way.
    """

    DONE = "done"
    REFUSED = "refused"
    AGAIN = "again"
    DIFFERS = "differs"


class Dialect(ABC):
    """What applications ask of one kind of database, made for one region. All methods are pure.

    name: as in the configuration. proven: what it has been run against, in words for /health.
    health_path: a GET that answers below 500 while the database serves.
    """

    name: ClassVar[str]
    proven: ClassVar[str]
    health_path: ClassVar[str]

    @abstractmethod
    def call_of(self, method: str, path: str) -> Call | None:
        """What this request is; None: the dialect does not know it.

        Raises Refused for a known call that cannot be replicated and whose reason is worth more
        words than "unknown".
        """

    @abstractmethod
    def tenant_of(self, path: str) -> str:
        """The tenant that a request is about. Raises Refused where the path names none it knows."""

    def localized(self, call: Call, request: Request, is_issued: Callable[[str], bool]) -> Request:
        """The request as the database of this region must get it.

        is_issued: whether a consistency token was given by this database. The very same object when
        nothing has to change: then the body goes on as it came. Raises Refused where this region
        has nothing that stands for what the request names.
        """
        return request

    def tokens_of(self, call: Call, body: bytes) -> Collection[str]:
        """The consistency tokens in an answer of the database."""
        return ()

    def write_of(self, call: Call, request: Request) -> Write | None:
        """What a (localized) write is going to change.

        None: nothing, or the database will refuse it, and should do so in its own words. Raises
        Refused for what the database might take and which cannot be replicated.
        """
        return None


class ReplicatedDialect(Dialect):
    """A dialect whose writes are understood, and which the sidecar itself reads and writes with.

    most_changes: per `apply`.
    """

    most_changes: ClassVar[int]

    @property
    def tenants(self) -> Sequence[str]:
        """The tenants that the database of this region holds."""
        return ("default",)

    @abstractmethod
    def write_of(self, call: Call, request: Request) -> Write | None: ...

    @abstractmethod
    def find(self, tenant: str, matching: Mapping[str, object], cursor: str | None) -> Ask:
        """Read a page of what a filter matches, as fresh as the database can."""

    @abstractmethod
    def found(self, tenant: str, body: bytes) -> Found:
        """The answer to `find`. Raises ValueError when it is none, and Refused for a relationship
        that cannot be replicated.
        """

    @abstractmethod
    def look(self, identities: Sequence[Identity]) -> Sequence[Mapping[str, object]]:
        """Filters for `find` that match all these tuples, of one tenant, and few others."""

    @abstractmethod
    def everything(self, tenant: str, schema: str | None) -> Sequence[Mapping[str, object]]:
        """Filters for `find` that together match all there is. schema: text of the present one."""

    @abstractmethod
    def apply(self, tenant: str, changes: Sequence[Change]) -> Ask:
        """Make the database hold (insert) or not hold (delete) these tuples, whatever it holds now.

        At most `most_changes`, no tuple twice, and not the schema's. Raises Refused("cannot_carry")
        for a single change whose payload the database has no place for.
        """

    def replace(self, tenant: str, change: Change) -> Sequence[Ask]:
        """The same for one change that `apply` found to differ: requests in order, not atomic."""
        return (self.apply(tenant, [change]),)

    @abstractmethod
    def verdict(self, status: int, body: bytes) -> Verdict:
        """What the answer to an `apply`, a `find` or an `apply_schema` means."""


class SchemaDialect(ReplicatedDialect):
    """A dialect whose database has one schema, which is replicated with the relationships.

    `write_of` answers a schema write with an insert of `schema_tuple`.
    """

    @abstractmethod
    def read_schema(self) -> Ask:
        """Read the present schema."""

    @abstractmethod
    def schema_of(self, status: int, body: bytes) -> str:
        """The text in the answer to `read_schema`; "" where there is none yet."""

    @abstractmethod
    def apply_schema(self, text: str) -> Ask:
        """Write a schema."""

    def is_same_schema(self, text: str, other: str) -> bool:
        """Whether two texts are the same but for what the database changes of what it is given."""
        return text == other


def schema_tuple(tenant: str, text: str) -> Relationship:
    """The tuple that carries a schema: its condition is the text, as JSON."""
    condition = json.dumps(text, ensure_ascii=False)
    return Relationship(tenant, f"{SCHEMA_TYPE}:current", "is", f"{SCHEMA_TYPE}:text", condition)


def schema_text(one: Relationship) -> str:
    """The schema that such a tuple carries."""
    return str(json.loads(one.condition or '""'))
