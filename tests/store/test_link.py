"""A connection to Redis whose caller is cancelled, wherever: nothing is mixed up."""

import asyncio
import socket

import pytest

from sidecar.errors import Unavailable
from sidecar.store.link import Link, pool_of
from tests.servers import RealValkey


@pytest.mark.parametrize("is_connected", [False, True], ids=["connecting", "connected"])
async def test_a_cancelled_call_ends_and_the_next_one_gets_its_own_reply(
    is_connected: bool, valkey: RealValkey
) -> None:
    """A cancellation that is lost would leave a loop running that the node waits for at its end."""
    link = Link(pool_of(valkey.url, 5.0), 5.0)
    for steps in range(200):
        await link.close()
        if is_connected:
            await link.call("PING")
        call = asyncio.create_task(link.call("ECHO", "first"))
        for _ in range(steps):
            await asyncio.sleep(0)
        if call.done():
            break
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled(), f"cancelled after {steps} steps, it gave {call.result()!r}"
        assert await link.call("ECHO", "second") == b"second", f"after {steps} steps"
    assert steps > 1, "never caught under way"
    assert await call == b"first"
    await link.close()


async def test_a_server_that_says_nothing_is_given_up_after_the_limit() -> None:
    """At the greeting nothing was done; later nobody knows."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        link = Link(pool_of(f"redis://127.0.0.1:{silent.getsockname()[1]}", 0.05), 0.05)
        with pytest.raises(Unavailable, match="nothing within") as caught:
            await link.call("PING")
    assert caught.value.code == "store_unavailable"
    assert not link.is_connected


async def test_a_reply_that_does_not_come_is_an_unknown_outcome(valkey: RealValkey) -> None:
    link = Link(pool_of(valkey.url, 0.05), 0.05)
    with pytest.raises(Unavailable, match="nobody knows the outcome: nothing within") as caught:
        await link.call("BLPOP", "nothing", 1)
    assert caught.value.code == "outcome_unknown"
    assert await link.call("PING") == b"PONG"
    await link.close()
