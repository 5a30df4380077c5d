"""Proxy mode put together: the database, its dialect, what stands between it and the partitions."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from sidecar.api.answers import Answers
from sidecar.api.served import Served
from sidecar.config import Config, DatabaseSettings
from sidecar.dialects.choose import dialect_of
from sidecar.dialects.dialect import ReplicatedDialect
from sidecar.errors import Refused, Unavailable
from sidecar.metrics import Metrics
from sidecar.partitions import Partitions
from sidecar.peer.forward import Forwarder
from sidecar.proxy.adopting import Adopted, Adopting, Tell
from sidecar.proxy.applier import Applier
from sidecar.proxy.database import Database
from sidecar.proxy.front import Front
from sidecar.proxy.gate import Gate
from sidecar.proxy.looking import Looking
from sidecar.proxy.settling import Settling
from sidecar.proxy.writes import Behind, Writes
from sidecar.security.app_keys import AppKeys
from sidecar.store.proxy_store import Held, ProxyStore

log = logging.getLogger(__name__)

COUNT_S = 0.5
"""Between two counts of what the database does not have."""


class ProxyParts(NamedTuple):
    """What the rest of the node lends to it."""

    config: Config
    partitions: Partitions
    forwarder: Forwarder
    answers: Answers
    metrics: Metrics
    keys: AppKeys | None = None


class Proxy:
    """The database behind a node. Use as an async context manager; `loops` are to run meanwhile."""

    def __init__(self, settings: DatabaseSettings, parts: ProxyParts) -> None:
        config, partitions, forwarder, answers, metrics, keys = parts
        self.dialect = dialect_of(settings, config.this_node.region)
        self.database = Database(
            settings.url,
            health_path=self.dialect.health_path,
            timeout_s=float(config.replication.agent.request_timeout_secs),
            max_connections=settings.max_connections,
            token=_token(settings.token_file),
        )
        self._partitions = partitions
        self._adopted: Adopted | None = None
        self._behind: dict[str, Behind] = {}
        self._lacking: dict[str, bool] = {}
        self._metrics = {one.name: metrics.of(one.name) for one in partitions}
        writes = None
        if isinstance(self.dialect, ReplicatedDialect):
            writes = Writes()
            gate, looking = Gate(), Looking(self.dialect, self.database)
            for one in partitions:
                store = one.store
                assert isinstance(store, ProxyStore)
                self._behind[one.name] = Behind(
                    store,
                    gate,
                    looking,
                    Settling(store, looking),
                    Applier(store, self.dialect, self.database, gate, self._metrics[one.name]),
                )
        self.front = Front(
            partitions,
            self.dialect,
            self.database,
            forwarder,
            answers,
            behind=self.behind,
            writes=writes,
            passes_unknown=settings.on_unknown == "pass",
            keys=keys,
        )

    def behind(self, here: Served) -> Behind | None:
        """What stands between a partition and the database; None where nothing is replicated."""
        return self._behind.get(here.store.keys.partition)

    async def __aenter__(self) -> Self:
        await self.database.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.database.__aexit__(kind, error, traceback)

    def loops(self) -> Iterator[Coroutine[None, None, None]]:
        """What runs as long as the node does."""
        yield self.database.watch()
        for name, one in self._behind.items():
            yield one.settling.run()
            yield one.applier.run()
            yield self._count(one, self._metrics[name])

    async def _count(self, one: Behind, metrics: Metrics) -> None:
        while True:
            await one.store.opened()
            try:
                metrics.database(
                    dirty=await one.store.dirty_count(),
                    held=await one.store.held_count(),
                    unsettled=one.settling.count,
                    is_up=not self.database.away_because,
                )
                self._lacking[one.store.keys.partition] = await one.store.may_lack()
            except Unavailable as unavailable:
                log.debug("nothing is counted: %s", unavailable.message)
            await asyncio.sleep(COUNT_S)

    # -- what operators ask -----------------------------------------------------------------------

    async def adopt(self, found: Adopted, tell: Tell, *, is_dry: bool, deletes: bool) -> None:
        """Take over what the database holds and is not shown here; `found` and `tell` say how far
        it is. Raises Refused, Unavailable.
        """
        dialect = self._replicated()
        if self._adopted is not None:
            raise Refused(
                "adopting_already",
                f"this node adopts already: {self._adopted.relationships:,} relationships are read",
                409,
            )
        self._adopted = found
        try:
            for behind, tenants in self._by_partition(dialect):
                await Adopting(
                    behind, dialect, tenants, found, tell, is_dry=is_dry, deletes=deletes
                ).run()
        finally:
            self._adopted = None

    def _by_partition(self, dialect: ReplicatedDialect) -> list[tuple[Behind, list[str]]]:
        tenants: dict[str, list[str]] = {name: [] for name in self._behind}
        for tenant in dialect.tenants:
            try:
                tenants[self._partitions.of(tenant).name].append(tenant)
            except Refused:
                # It is bound to other regions, and nothing of it is shown here.
                log.warning("the tenant is not in this region", extra={"tenant": tenant})
        return [(self._behind[name], found) for name, found in tenants.items() if found]

    async def reapply(self) -> int:
        """Have the database told everything again; how many tuples. Raises Refused, Unavailable."""
        self._replicated()
        return await self._sum(ProxyStore.remark_all)

    async def held(self, count: int) -> list[Held]:
        """What the database refuses, not many more than `count`. Raises Refused, Unavailable."""
        self._replicated()
        return [row for one in self._behind.values() for row in await one.store.held(count)]

    async def release(self) -> int:
        """Have the database told again what it refused; how many. Raises Refused, Unavailable."""
        self._replicated()
        return await self._sum(ProxyStore.release)

    async def status(self) -> dict[str, object]:
        """How it does; what only Redis knows is null while it is away."""
        stored: dict[str, int | bool | None] = dict.fromkeys(("pending", "held", "marking"))
        if all(one.store.is_open for one in self._behind.values()):
            stored = {
                "pending": await self._sum(ProxyStore.dirty_count),
                "held": await self._sum(ProxyStore.held_count),
                "marking": await self._sum(ProxyStore.is_remarking) > 0,
            }
        return {
            **self.facts(),
            "away_because": self.away_because or None,
            **stored,
            "unknown_outcomes": sum(one.settling.count for one in self._behind.values()),
            "failing_because": next(
                (why for one in self._behind.values() if (why := one.applier.failing_because)), None
            ),
            "misunderstood": self.front.misunderstood,
            "adopting": self._adopted is not None,
        }

    async def _sum(self, count: Callable[[ProxyStore], Awaitable[int]]) -> int:
        return sum([await count(one.store) for one in self._behind.values()])

    def _replicated(self) -> ReplicatedDialect:
        if not isinstance(self.dialect, ReplicatedDialect):
            raise Refused(
                "not_replicated",
                f"the dialect {self.dialect.name} of this node replicates nothing: its database is "
                "not told anything, and nothing of it is taken over",
                409,
            )
        return self.dialect

    @property
    def away_because(self) -> str:
        """Why the database does not serve, in words; "" when it does."""
        return self.database.away_because

    def facts(self) -> dict[str, object]:
        """Which dialect is spoken, and what it has been run against."""
        return {
            "dialect": self.dialect.name,
            "proven": self.dialect.proven,
            "replicates": isinstance(self.dialect, ReplicatedDialect),
        }

    def reasons(self) -> list[str]:
        """What a person should know of the database while it serves, in words."""
        failing = (one.applier.failing_because for one in self._behind.values())
        found = [f"the database is not told what is merged: {why}" for why in failing if why]
        if any(self._lacking.values()):
            found.append(
                "Redis has lost writes that the database may have and no other region: "
                "`sidecar adopt --dry-run` tells"
            )
        if self.front.misunderstood:
            found.append(
                f"{self.front.misunderstood} writes went to the database that are not understood "
                "and not replicated; run sidecar adopt"
            )
        return found


def _token(path: Path | None) -> str:
    """The key in a file, "" without one. Raises Refused("bad_token_file")."""
    if path is None:
        return ""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = f"database.token_file: {path} cannot be read: {error}"
        raise Refused("bad_token_file", why) from None
    if not token.isprintable() or not token.isascii():
        raise Refused("bad_token_file", f"database.token_file: {path} holds no key of one line")
    return token
