"""What the calls of the app listener need of the partitions of their node."""

from collections.abc import Callable, Collection, Iterator
from typing import Protocol

from sidecar.agent.concern import Concerns
from sidecar.agent.tail import Tail
from sidecar.core.vector import Vector
from sidecar.store.redis_store import RedisStore

LostOf = Callable[[Vector], str | None]
"""An origin of which a vector names writes that no node has any more."""

StrangerAmong = Callable[[Collection[str]], str | None]
"""One of these nodes that belongs to no deployment this node knows of."""


class Served(Protocol):
    """One of them."""

    @property
    def store(self) -> RedisStore: ...
    @property
    def tail(self) -> Tail: ...
    @property
    def concerns(self) -> Concerns: ...
    @property
    def lost_of(self) -> LostOf: ...
    @property
    def stranger_among(self) -> StrangerAmong: ...


class Partitions(Protocol):
    """All of them."""

    def of(self, tenant: str) -> Served:
        """The one that serves a tenant. Raises Refused("tenant_not_here")."""
        ...

    def __iter__(self) -> Iterator[Served]: ...
