"""A backlog: single-change transactions written straight to the store of a node that is down."""

import asyncio
import random
import time

from bench.texts import TENANT, insertion, triples
from sidecar.commands.demo import DemoNode
from sidecar.core.conflict import ConflictResolutionStrategy, Rules
from sidecar.metrics import Metrics
from sidecar.settings import Config
from sidecar.store.calls import WriteRequest
from sidecar.store.embedded import EmbeddedValkey
from sidecar.store.redis_store import RedisStore

AT_ONCE = 2_000


async def write_backlog(node: DemoNode, transactions: int) -> int:
    """Returns how many entries of its own the node's feed has then: these, and the first one."""
    async with (
        EmbeddedValkey(node.folder) as valkey,
        RedisStore(
            valkey.url,
            prefix=Config().redis.prefix,
            node=node.name,
            rules=Rules.of(ConflictResolutionStrategy.LAST_WRITE_WINS),
            metrics=Metrics(),
            now_us=lambda: time.time_ns() // 1000,
            random_bits=random.getrandbits,
        ) as store,
    ):
        await store.opened()
        requests = [
            WriteRequest(TENANT, [insertion(one)]) for one in triples("backlog", transactions)
        ]
        for i in range(0, len(requests), AT_ONCE):
            await asyncio.gather(*(store.write(one) for one in requests[i : i + AT_ONCE]))
    return transactions + 1
