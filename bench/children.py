"""Processes of the benchmark: started tied to it, and ended whatever happens.

Knows nothing of what runs in them.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sidecar.errors import Unavailable
from sidecar.tether import tethered

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT_S = 60.0
STOP_LIMIT_S = 30.0


class ChildFailed(Unavailable):
    """A process of the benchmark failed; the text says which and what it said."""

    def __init__(self, message: str) -> None:
        super().__init__("child_failed", message)


@contextlib.asynccontextmanager
async def child(
    command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that runs while the context is open; SIGTERM at its end, SIGKILL if it must."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *tethered(command, signal.SIGKILL),
            cwd=ROOT,
            env={**os.environ, **(environ or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C in the terminal is for us; we end them in order.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        await _end(process)


async def answer_of(module: str, *args: object, log: Path) -> dict[str, Any]:
    """Run `python -m module args` to its end and return the JSON object that it printed."""
    command = [sys.executable, "-m", module, *(str(each) for each in args)]
    begins_at = log.stat().st_size if log.exists() else 0
    async with child(command, log) as process:
        code = await process.wait()
    said = log.read_bytes()[begins_at:].decode(errors="replace").strip()
    if code != 0:
        raise ChildFailed(f"{module} failed ({code}): {said[-2000:]}")
    answer: dict[str, Any] = json.loads(said.splitlines()[-1])
    return answer


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until_listening(port: int) -> None:
    """Wait until something listens on this port of 127.0.0.1."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.02)
    raise ChildFailed(f"nothing listens on port {port}")


def free_base_port(ports: int) -> int:
    """The first of so many consecutive ports of 127.0.0.1 that nothing listens on."""
    for base in range(21_000 + os.getpid() % 100 * 90, 32_000, max(ports, 10)):
        if all(_is_free(base + offset) for offset in range(ports)):
            return base
    raise ChildFailed("no free range of ports on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


async def _end(process: asyncio.subprocess.Process) -> None:
    try:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_LIMIT_S):
                    await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
