"""A session waits for writes of its own node, and nothing else wakes it."""

import asyncio

from tests.servers import RealValkey
from tests.store.conftest import OpenNode, running_node


async def test_a_session_is_woken_by_a_write_of_its_node_and_skips_what_was_merged(
    open_node: OpenNode,
) -> None:
    here, there = await open_node("node1"), await open_node("node2")
    sent = here.store.vector[here.store.origin]
    waiting = asyncio.create_task(here.store.own_after(sent))
    await there.write("+doc:1 viewer user:a")
    await here.take(there)
    await asyncio.sleep(0)
    assert not waiting.done()
    merged = here.store.revision
    written = await here.write("+doc:2 viewer user:a")
    assert merged <= await waiting < written.revision
    assert await here.store.own_after(sent) == sent, "it lies behind: nothing is skipped"


async def test_a_write_whose_answer_was_lost_is_shipped_without_another_one(
    open_node: OpenNode, valkey: RealValkey
) -> None:
    """Somebody wrote to the data set of this node and this process did not hear of it."""
    here = await open_node("node1")
    sent = here.store.vector[here.store.origin]
    waiting = asyncio.create_task(here.store.own_after(sent))
    async with running_node(valkey, "node1") as double:
        await double.store.opened()
        unheard = await double.write("+doc:1 viewer user:a")
    await here.store.merge(b"")
    assert sent <= await waiting < unheard.revision
