"""What is said of a connection that did not come about: sidecar.peer.connections."""

import errno
import os
import socket

import aiohttp
import pytest

from sidecar.peer.connections import why_not
from tests.servers import free_ports


async def _failure(url: str) -> BaseException:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError) as failure:
            await session.get(url)
    return failure.value


async def test_nobody_listens() -> None:
    (port,) = free_ports(1)
    assert why_not(await _failure(f"http://127.0.0.1:{port}/")) == os.strerror(errno.ECONNREFUSED)


def test_a_name_that_nobody_knows() -> None:
    key = aiohttp.client_reqrep.ConnectionKey("node.example", 1, True, True, None, None, None)
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    failure = aiohttp.ClientConnectorDNSError(key, unknown)
    assert why_not(failure) == "Name or service not known"


def test_silence() -> None:
    assert why_not(TimeoutError()) == ""
