"""Servers that tests start and end: real Valkeys, free ports, and whether a process is gone.

A test that needs the sidecar's own embedded server opens `EmbeddedValkey`; what is here starts the
same binary with the same settings, synchronously, and without the append-only file unless asked.
"""

import contextlib
import itertools
import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sidecar.store.embedded import LOG_NAME, SOCKET_NAME, server_command
from tests.waiting import wait_until

START_LIMIT_S = 20.0


@dataclass(frozen=True)
class RealValkey:
    """A running Valkey: `url` for a Redis client, and the ways to end it."""

    folder: Path
    server: subprocess.Popen[bytes]

    @property
    def socket_path(self) -> Path:
        return self.folder / SOCKET_NAME

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    def call(self, *words: str) -> bytes:
        """Send one inline command and return the raw answer: for tests without a client."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(5)
            connection.connect(str(self.socket_path))
            connection.sendall(" ".join(words).encode() + b"\r\n")
            return connection.recv(65_536)

    def kill(self) -> None:
        self.server.kill()
        self.server.wait(timeout=10)

    def stop(self) -> None:
        self.server.terminate()
        try:
            self.server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()


def start_valkey(
    folder: Path,
    *,
    args: Sequence[str] = ("--appendonly", "no"),
    environ: Mapping[str, str] | None = None,
) -> RealValkey:
    """Start a Valkey whose files lie in `folder` (keep its path short) and wait until it answers.

    `args` override the settings of the embedded server; `environ` is added to the environment,
    as a test of another locale needs (`LOCPATH`, `LC_ALL`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG_NAME).open("ab") as output:
        server = subprocess.Popen(
            server_command(Path(SOCKET_NAME), args),
            cwd=folder,
            env={**os.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    valkey = RealValkey(folder, server)

    def said() -> str:
        return f"Valkey has started: {(folder / LOG_NAME).read_text()[-2000:]}"

    def answers() -> bool:
        assert server.poll() is None, said()
        with contextlib.suppress(OSError):
            return valkey.call("PING").startswith(b"+PONG")
        return False

    try:
        wait_until(answers, said, START_LIMIT_S)
    except AssertionError:
        server.kill()
        server.wait()
        raise
    return valkey


@contextlib.contextmanager
def running_valkey(
    *, args: Sequence[str] = ("--appendonly", "no"), environ: Mapping[str, str] | None = None
) -> Iterator[RealValkey]:
    """A Valkey in a temporary folder, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="sidecar-test-"))
    try:
        valkey = start_valkey(folder, args=args, environ=environ)
        try:
            yield valkey
        finally:
            valkey.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# Below the ports that the system gives away by itself, and a part for each process that runs tests.
_PARTS, _PART, _LOWEST = 8, 1_250, 10_000
_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_START = random.SystemRandom().randrange(_PART)
_ports = itertools.cycle(
    _LOWEST + _PROCESS % _PARTS * _PART + (_START + place) % _PART for place in range(_PART)
)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on right now, and that no other test is given."""
    return list(itertools.islice(filter(_is_free, _ports), count))


def free_base_port(nodes: int) -> int:
    """A base port such that base+10·i, +1 and +2 are free for each of `nodes` nodes."""
    first = 20_000 + _PROCESS % _PARTS * 1_500
    for base in range(first, first + 1_500 - 10 * nodes, 10 * nodes):
        wanted = [base + 10 * node + offset for node in range(nodes) for offset in range(3)]
        if all(_is_free(port) for port in wanted):
            return base
    raise AssertionError("no free range of ports on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and waits for its parent does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def children_of(pid: int) -> list[int]:
    """The processes that `pid` started, and theirs, as far as they still run."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                child = int(stat.parent.name)
                found += [child, *children_of(child)]
    return [child for child in found if is_alive(child)]


def wait_until_gone(pids: Sequence[int], limit_s: float = 20.0) -> None:
    """Return when none of these processes runs; fail with those that still do."""

    def left() -> list[int]:
        return [pid for pid in pids if is_alive(pid)]

    wait_until(lambda: not left(), lambda: f"these have ended; {left()} run", limit_s)
