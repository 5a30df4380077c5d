"""HTTP/1.1 as bytes: what a test sends and what it gets, with nothing added and nothing tidied.

Knows sockets and the framing of messages; what is in them is the test's.
"""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

HOST = "127.0.0.1"
LIMIT_S = 20.0
Header = tuple[bytes, bytes]


class BrokenOff(Exception):
    """The message ended before its end; `so_far` is what had come of its body."""

    def __init__(self, so_far: bytes) -> None:
        super().__init__(f"{len(so_far)} bytes, then nothing")
        self.so_far = so_far


@dataclass
class Message:
    """A request or an answer. body: without its framing."""

    line: bytes
    headers: list[Header]
    body: bytes = b""
    trailers: list[Header] = field(default_factory=list)

    def all(self, name: str) -> list[bytes]:
        return [value for each, value in self.headers if each.lower() == name.lower().encode()]

    def one(self, name: str) -> bytes | None:
        values = self.all(name)
        assert len(values) < 2, (name, values)
        return values[0] if values else None

    @property
    def status(self) -> int:
        return int(self.line.split(b" ")[1])

    @property
    def method(self) -> bytes:
        return self.line.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.line.split(b" ")[1]


def read_head(source: BinaryIO) -> Message | None:
    """The lines before a body; None when the other end has gone."""
    line = source.readline()
    return Message(line.rstrip(b"\r\n"), read_fields(source)) if line.endswith(b"\n") else None


def read_fields(source: BinaryIO) -> list[Header]:
    found = []
    while (line := source.readline().rstrip(b"\r\n")) != b"":
        name, _, value = line.partition(b":")
        found.append((name, value.strip(b" \t")))
    return found


def read_body(source: BinaryIO, of: Message, *, is_answer: bool) -> None:
    """Its body and trailers. Raises BrokenOff."""
    if b"chunked" in [value.lower() for value in of.all("Transfer-Encoding")]:
        while chunk := read_chunk(source, of.body):
            of.body += chunk
        of.trailers = read_fields(source)
        return
    length = of.one("Content-Length")
    if length is not None:
        of.body = source.read(int(length))
        if len(of.body) < int(length):
            raise BrokenOff(of.body)
    elif is_answer:
        of.body = source.read()


def read_chunk(source: BinaryIO, so_far: bytes = b"") -> bytes:
    """One chunk of a body; empty: the last one. Raises BrokenOff."""
    line = source.readline().strip()
    if not line:
        raise BrokenOff(so_far)
    size = int(line.partition(b";")[0], 16)
    if not size:
        return b""
    chunk = source.read(size)
    if len(chunk) < size or source.read(2) != b"\r\n":
        raise BrokenOff(so_far + chunk)
    return chunk


class Client:
    """One connection to a server."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((HOST, port), timeout=LIMIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.source = self.socket.makefile("rb")

    def send(self, raw: bytes) -> None:
        self.socket.sendall(raw)

    def head(self) -> Message:
        """The next head that is no interim one."""
        while True:
            found = read_head(self.source)
            if found is None:
                raise BrokenOff(b"")
            if found.status >= 200:
                return found

    def answer(self, to: bytes = b"GET") -> Message:
        """The next answer. to: the method of its request."""
        found = self.head()
        if to != b"HEAD" and found.status not in {204, 304}:
            read_body(self.source, found, is_answer=True)
        return found

    def ask(self, raw: bytes) -> Message:
        self.send(raw)
        return self.answer(raw.split(b" ")[0])

    def close(self) -> None:
        self.source.close()
        self.socket.close()


@contextlib.contextmanager
def connected(port: int) -> Iterator[Client]:
    client = Client(port)
    try:
        yield client
    finally:
        client.close()


def ask(port: int, raw: bytes) -> Message:
    """One request on a connection of its own."""
    with connected(port) as client:
        return client.ask(raw)


def request(
    line: str | bytes, *fields: str | bytes, body: bytes = b"", host: bytes = b"app.example"
) -> bytes:
    """The bytes of a request; `Content-Length` is added where there is a body and no framing."""
    head = [_raw(line) + b" HTTP/1.1", b"Host: " + host, *map(_raw, fields)]
    names = {each.partition(b":")[0].lower() for each in head[1:]}
    if body and not names & {b"content-length", b"transfer-encoding"}:
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def answer(line: str | bytes, *fields: str | bytes, body: bytes = b"") -> bytes:
    """The bytes of an answer; `Content-Length` is added where there is a body and no framing."""
    head = [b"HTTP/1.1 " + _raw(line), *map(_raw, fields)]
    names = {each.partition(b":")[0].lower() for each in head[1:]}
    if body and not names & {b"content-length", b"transfer-encoding"}:
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def chunked(*chunks: bytes, trailers: Sequence[bytes] = ()) -> bytes:
    """A body in these chunks."""
    parts = [b"%x\r\n%s\r\n" % (len(each), each) for each in chunks]
    return b"".join(parts) + b"0\r\n" + b"".join(each + b"\r\n" for each in trailers) + b"\r\n"


def _raw(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
