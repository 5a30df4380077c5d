"""A database for tests that says, byte for byte, what it was told to say.

A `Standin` is a server on raw sockets in this process. What a path answers is set with `on`.
Requests of tests have a header `X-Test` and are kept as they came; those of the node itself, which
asks whether the database serves and what it holds, are answered with nothing.
"""

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

from tests.raw_http import HOST, BrokenOff, Message, answer, read_body, read_head

Say = Callable[["Exchange"], None]
NOTHING = answer("200 OK", "Content-Length: 0")
DEFAULT = answer("200 OK", "Content-Type: application/json", body=b"{}")


class Exchange:
    """A request whose head has come, and the connection on which it is answered."""

    def __init__(self, asked: Message, end: socket.socket, source: BinaryIO, number: int) -> None:
        self.asked, self.source, self.connection = asked, source, number
        self._end = end

    def read(self) -> Message:
        """The request with its body. Raises BrokenOff."""
        read_body(self.source, self.asked, is_answer=False)
        return self.asked

    def say(self, raw: bytes) -> None:
        self._end.sendall(raw)

    def break_off(self) -> None:
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def wait_until_left(self) -> None:
        """Wait until the other end has closed the connection."""
        with contextlib.suppress(OSError):
            while self._end.recv(65_536):
                pass


class Standin:
    """A database that is asked at `url`."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._says: dict[bytes, Say] = {}
        self._guard = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._connections = 0
        self.asked: queue.Queue[Message] = queue.Queue()
        self.failures: list[BaseException] = []
        self._accept_from(self._listener)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def on(self, path: str | bytes, say: Say | bytes) -> None:
        """What a path, without its query, answers from now on.

        say: the bytes, after the whole request has come; or what to do instead.
        """
        named = path.encode() if isinstance(path, str) else path
        self._says[named] = say if callable(say) else _saying(say)

    def next(self) -> Message:
        """The request that came first of those not looked at yet."""
        return self.asked.get(timeout=20)

    def forget(self) -> None:
        """From now on `next` is about later requests."""
        while not self.asked.empty():
            self.asked.get()

    def go(self) -> None:
        """Be gone: nobody listens, and what stood is broken off."""
        with self._guard:
            listener, self._listener = self._listener, None
            ends = set(self._ends)
        for each in (*ends, *([listener] if listener else [])):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        if listener:
            listener.close()

    def come(self) -> None:
        """Be there again, on the same port."""
        self._listener = socket.create_server((HOST, self.port))
        self._accept_from(self._listener)

    def close(self) -> None:
        self.go()
        for each in self._threads:
            each.join()
        assert not self.failures, self.failures

    # -- its threads

    def _accept_from(self, listener: socket.socket) -> None:
        thread = threading.Thread(target=self._accept, args=(listener,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                end, _ = listener.accept()
            except OSError:
                return
            with self._guard:
                if self._listener is not listener:
                    end.close()
                    return
                self._ends.add(end)
                self._connections += 1
                number = self._connections
            thread = threading.Thread(target=self._serve, args=(end, number), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, end: socket.socket, number: int) -> None:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with end, end.makefile("rb") as source, contextlib.suppress(OSError, BrokenOff):
                while (head := read_head(source)) is not None:
                    self._answer(Exchange(head, end, source, number))
        except BaseException as failure:
            self.failures.append(failure)
            raise
        finally:
            with self._guard:
                self._ends.discard(end)

    def _answer(self, exchange: Exchange) -> None:
        asked = exchange.asked
        if asked.one("X-Test") is None:
            _saying(NOTHING)(exchange)
            return
        self.asked.put(asked)
        path = asked.target.partition(b"?")[0]
        self._says.get(path, _saying(DEFAULT))(exchange)


def _saying(raw: bytes) -> Say:
    def say(exchange: Exchange) -> None:
        exchange.read()
        exchange.say(raw)

    return say


@contextlib.contextmanager
def standing_in() -> Iterator[Standin]:
    standin = Standin()
    try:
        yield standin
    finally:
        standin.close()
