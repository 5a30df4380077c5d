"""Databases that tests start and end: SpiceDB's engine and the OpenFGA stand-in, as processes.

A `Database` is asked as an application asks it, over HTTP; what a test orders from it in addition,
faults and held calls, is over its `/-/` paths (see `faults`).
"""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.real.commands import ROOT
from tests.real.fetch import library_path
from tests.servers import free_ports
from tests.waiting import wait_until
from tests.world import HOST, Answer, ask

START_LIMIT_S = 30.0


@dataclass(frozen=True)
class Database:
    """A running database: `url` for a sidecar, `post` and `get` for a test."""

    port: int
    process: subprocess.Popen[bytes]
    output: Path

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def log(self) -> str:
        return self.output.read_text()

    def post(
        self, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        return ask(self.port, "POST", path, {} if body is None else body, headers)

    def get(self, path: str) -> Answer:
        return ask(self.port, "GET", path)

    def lines(self, path: str, body: object) -> list[dict[str, Any]]:
        """All `result`s of an answer that comes as a stream."""
        return [one["result"] for one in self.raw_lines(path, body)]

    def raw_lines(self, path: str, body: object) -> list[dict[str, Any]]:
        with self.opened(path, body) as response:
            return [json.loads(line) for line in response]

    @contextlib.contextmanager
    def opened(self, path: str, body: object) -> Iterator[http.client.HTTPResponse]:
        """An answer whose head has come, to read at will."""
        with contextlib.closing(http.client.HTTPConnection(HOST, self.port, timeout=30)) as client:
            client.request("POST", path, json.dumps(body))
            with client.getresponse() as response:
                yield response

    # -- faults

    def order(self, kind: str, path: str, count: int = 1, delay_ms: int = 0) -> None:
        """Let the next `count` calls of a path meet a fault."""
        asked = {"kind": kind, "path": path, "count": count, "delay_ms": delay_ms}
        answer = self.post("/-/faults", asked)
        assert answer.status == 200, answer

    def release(self) -> None:
        assert self.post("/-/release").status == 200

    def reset(self) -> None:
        assert self.post("/-/reset").status == 200

    @property
    def held(self) -> int:
        return int(self.get("/-/faults").body["held"])

    @property
    def late(self) -> int:
        """How many calls whose connection has ended are still to be executed."""
        return int(self.get("/-/faults").body["late"])

    @property
    def calls(self) -> dict[str, int]:
        """How often each path was called since the start or the last reset."""
        return dict(self.get("/-/faults").body["calls"])

    def wait_until_held(self, calls: int = 1) -> None:
        wait_until(lambda: self.held == calls, f"{calls} calls are held")

    # -- its end

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)


@contextlib.contextmanager
def running(module: str, *words: str, port: int | None = None) -> Iterator[Database]:
    """A database as a process of its own that serves, ended afterwards; its data ends with it."""
    at = free_ports(1)[0] if port is None else port
    with tempfile.NamedTemporaryFile(prefix="sidecar-database-", suffix=".log") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--port", str(at), *words],
            cwd=ROOT,
            env={**os.environ, "SPICEDB_LIBRARY_PATH": str(library_path())},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        database = Database(at, process, Path(output.name))
        try:
            wait_until(lambda: _serves(database), f"{module} serves", START_LIMIT_S)
            yield database
        finally:
            database.stop()


def running_spicedb(
    *, token: str | None = None, port: int | None = None
) -> contextlib.AbstractContextManager[Database]:
    """An empty SpiceDB; `token` is the preshared key it asks for."""
    words = () if token is None else ("--token", token)
    return running("tests.real.spicedb_host", *words, port=port)


def running_openfga(*, port: int | None = None) -> contextlib.AbstractContextManager[Database]:
    """An OpenFGA stand-in without a store."""
    return running("tests.real.openfga_standin", port=port)


def _serves(database: Database) -> bool:
    assert database.process.poll() is None, f"it has ended:\n{database.log}"
    try:
        return database.get("/healthz").status == 200
    except (OSError, http.client.HTTPException):
        return False
