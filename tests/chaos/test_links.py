"""The links of a world: slow ones, and directions that are cut one by one."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.servers import free_ports
from tests.waiting import wait_until
from tests.world import HOST, Link, Pace, World, documents


@pytest.fixture
def echo() -> Iterator[Link]:
    """A link to somebody who says everything again."""
    near, far = free_ports(2)

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while chunk := connection.recv(65_536):
                connection.sendall(chunk)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.create_server((HOST, far)) as listener:
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        link = Link(near, far)
        yield link
        link.close()
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()


def exchange_s(line: socket.socket, what: bytes) -> float:
    """Seconds until all of it has come back."""
    began = time.monotonic()
    line.sendall(what)
    came = b""
    while len(came) < len(what):
        came += line.recv(65_536)
    assert came == what
    return time.monotonic() - began


def test_a_slow_link_delays_each_way_and_does_not_make_bytes_wait_for_each_other(
    echo: Link,
) -> None:
    echo.slow(Pace(there_s=0.1, back_s=0.2))
    with socket.create_connection((HOST, echo.port)) as line:
        assert exchange_s(line, b"one") >= 0.3
        began = time.monotonic()
        for number in range(20):
            line.sendall(b"%02d" % number)
            # Each in a segment of its own.
            wait_until(lambda n=number: time.monotonic() > began + n * 0.01, "a moment")  # type: ignore[misc]
        came = b""
        while len(came) < 40:
            came += line.recv(100)
        assert came == b"".join(b"%02d" % number for number in range(20))
        assert time.monotonic() - began < 20 * 0.3, "all were on their way at once"


def test_a_narrow_link_takes_its_time_for_many_bytes(echo: Link) -> None:
    with socket.create_connection((HOST, echo.port)) as line:
        echo.slow(Pace(bytes_per_s=1_000_000))
        assert exchange_s(line, bytes(200_000)) >= 0.2
        echo.heal()
        exchange_s(line, b"as before")


def test_a_cut_ends_what_waits_on_a_slow_link(echo: Link) -> None:
    with socket.create_connection((HOST, echo.port)) as line:
        exchange_s(line, b"for somebody")
        echo.slow(Pace(there_s=60.0))
        line.settimeout(10)
        line.sendall(b"for nobody")
        echo.cut()
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(100) == b""


def test_one_direction_is_cut_and_the_other_goes_on() -> None:
    with contextlib.closing(World(3).start()) as world:
        us, eu, ap = world.nodes
        world.link(us.name, eu.name).cut()
        wait_until(lambda: us.metric("targets_connected") == 1, "us has noticed")
        eu.insert(*documents([1]))
        us.insert(*documents([2]))
        wait_until(lambda: us.triples() == ap.triples() == set(documents([1, 2])), "the others")
        assert eu.triples() == set(documents([1]))
        assert eu.metric("targets_connected") == 2
        world.heal()
        world.settle()
        assert eu.triples() == set(documents([1, 2]))
