"""The embedded server keeps what it acknowledged, keeps its folder to itself, and leaves nobody."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from sidecar.errors import Unavailable
from sidecar.store.embedded import LOCK_NAME, MAX_SOCKET_PATH_BYTES, EmbeddedValkey
from tests.servers import is_alive, wait_until_gone

# A sidecar reduced to its embedded server: says the server's pid and URL, then waits.
OWNER = """
import asyncio, sys
from pathlib import Path
from sidecar.store.embedded import EmbeddedValkey
async def own() -> None:
    async with EmbeddedValkey(Path(sys.argv[1])) as valkey:
        print(valkey.pid, valkey.url, flush=True)
        await asyncio.Event().wait()
asyncio.run(own())
"""


@contextlib.asynccontextmanager
async def client(url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(url, decode_responses=True) as redis:
        yield redis


@contextlib.contextmanager
def owner_process(folder: Path):  # type: ignore[no-untyped-def]
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        try:
            pid, url = owner.stdout.readline().split()
            yield owner, int(pid), url
        finally:
            owner.kill()


async def test_what_was_written_survives_stop_and_start(tmp_path: Path) -> None:
    async with EmbeddedValkey(tmp_path) as valkey, client(valkey.url) as redis:
        await redis.set("name", "kept")
    async with EmbeddedValkey(tmp_path) as valkey, client(valkey.url) as redis:
        assert await redis.get("name") == "kept"


async def test_what_was_written_survives_the_death_of_the_server(tmp_path: Path) -> None:
    async with EmbeddedValkey(tmp_path) as valkey:
        async with client(valkey.url) as redis:
            await redis.set("name", "kept")
        first = valkey.pid
        os.kill(first, signal.SIGKILL)
        assert await asyncio.wait_for(valkey.wait(), 10) == -signal.SIGKILL
        assert not valkey.is_running
        await valkey.restart()
        assert valkey.pid != first
        async with client(valkey.url) as redis:
            assert await redis.get("name") == "kept"


async def test_a_killed_owner_leaves_no_server_and_loses_nothing(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (owner, server_pid, url):
        async with client(url) as redis:
            for number in range(500):
                await redis.set(f"key{number}", "x" * 1000)
        owner.kill()
        owner.wait()
        # At once, while the old server may still be writing: the new one must wait for it.
        async with EmbeddedValkey(tmp_path) as valkey, client(valkey.url) as redis:
            assert not is_alive(server_pid)
            assert await redis.dbsize() == 500
    wait_until_gone([server_pid])


async def test_a_second_user_of_the_folder_is_told_who_has_it(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (owner, server_pid, _):
        with pytest.raises(Unavailable) as refusal:
            async with EmbeddedValkey(tmp_path, lock_wait_s=0.2):
                pass
        assert refusal.value.code == "folder_in_use"
        assert str(tmp_path) in refusal.value.message
        assert f"pid {owner.pid}" in refusal.value.message
        assert is_alive(server_pid), "the first one must not notice"
        # Frozen, the server cannot follow its owner's death: the folder stays in use.
        os.kill(server_pid, signal.SIGSTOP)
        owner.kill()
        owner.wait()
        with pytest.raises(Unavailable, match=f"Valkey with pid {server_pid}"):
            async with EmbeddedValkey(tmp_path, lock_wait_s=0.2):
                pass
        os.kill(server_pid, signal.SIGCONT)
        wait_until_gone([server_pid])


@pytest.mark.parametrize("name", ["a name with spaces, % and ? and #", "ünïcödé '\"$(x)"])
async def test_any_folder_name_works(tmp_path: Path, name: str) -> None:
    async with EmbeddedValkey(tmp_path / name) as valkey, client(valkey.url) as redis:
        assert await redis.set("name", "kept")


async def test_a_long_folder_path_works_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20) / ("path" * 20)
    async with EmbeddedValkey(folder) as valkey, client(valkey.url) as redis:
        assert len(str(valkey.socket_path)) <= MAX_SOCKET_PATH_BYTES
        assert (folder / "appendonlydir").is_dir(), "the data stays in the folder"
        await redis.set("name", "kept")
        short = valkey.socket_path.parent
    assert not short.exists()
    with owner_process(folder) as (owner, server_pid, url):
        left_over = Path(url.removeprefix("unix://")).parent
        owner.kill()
        owner.wait()
        wait_until_gone([server_pid])
    async with EmbeddedValkey(folder) as valkey, client(valkey.url) as redis:
        assert await redis.get("name") == "kept"
        assert not left_over.exists(), "the next start cleans up after a killed one"


async def test_a_server_that_ends_at_its_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"no-such-setting") as failure:
        async with EmbeddedValkey(tmp_path, args=("--no-such-setting", "1")):
            pass
    assert "\n" not in failure.value.message
    async with EmbeddedValkey(tmp_path):
        pass  # the failure has let go of the folder


async def test_a_damaged_tail_is_cut_off_and_damage_before_it_is_said(tmp_path: Path) -> None:
    async with EmbeddedValkey(tmp_path) as valkey, client(valkey.url) as redis:
        await redis.set("first", "kept")
        await redis.set("second", "torn")
    (log,) = (tmp_path / "appendonlydir").glob("*.incr.aof")
    whole = log.read_bytes()
    log.write_bytes(whole[:-4])
    async with EmbeddedValkey(tmp_path) as valkey, client(valkey.url) as redis:
        assert await redis.get("first") == "kept"
        assert await redis.get("second") is None
    log.write_bytes(b"rubbish" + whole)
    with pytest.raises(Unavailable, match="Bad file format"):
        async with EmbeddedValkey(tmp_path):
            pass


async def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(Unavailable, match=f"{tmp_path}/file"):
        async with EmbeddedValkey(tmp_path / "file"):
            pass


async def test_the_server_keeps_to_its_settings(tmp_path: Path) -> None:
    async with EmbeddedValkey(tmp_path) as valkey, client(valkey.url) as redis:
        settings = await redis.config_get("*")
        assert settings["port"] == "0"
        assert settings["appendonly"] == "yes"
        assert settings["appendfsync"] == "always"
        assert settings["save"] == ""
        assert settings["maxmemory-policy"] == "noeviction"
        assert settings["aof-load-truncated"] == "yes"
        assert os.getsid(valkey.pid) != os.getsid(0), "Ctrl-C in a terminal must not reach it"
    assert (tmp_path / LOCK_NAME).exists()


async def test_a_long_load_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with EmbeddedValkey(tmp_path) as valkey, client(valkey.url) as redis:
        await redis.eval("for i = 1, 4000 do redis.call('SET', i, i) end", 0)
    # key-load-delay (µs per key) is a debug setting of the server: a second or so of LOADING.
    slow = ("--key-load-delay", "300", "--loading-process-events-interval-bytes", "1024")
    with caplog.at_level("INFO", "sidecar.store.embedded"):
        async with EmbeddedValkey(tmp_path, args=slow) as valkey, client(valkey.url) as redis:
            assert await redis.dbsize() == 4000
    ready = next(each for each in caplog.records if each.message == "embedded Valkey ready")
    assert vars(ready)["seconds"] >= 1.0
