"""On a server whose locale sorts otherwise than bytes, ties are broken by bytes all the same."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from sidecar.core.conflict import ConflictResolutionStrategy
from tests.lua.histories import STRATEGIES, run_history
from tests.lua.test_agreement import first_seed
from tests.servers import running_valkey


@pytest.fixture(scope="module")
def english() -> Iterator[Any]:
    """A real server under en_US.UTF-8, made here and proven to sort like it."""
    if shutil.which("localedef") is None:
        pytest.skip("NOT TESTED: there is no localedef, so no server can be put under en_US.UTF-8")
    with tempfile.TemporaryDirectory(prefix="sidecar-locale-") as folder:
        made = subprocess.run(
            ["localedef", "-i", "en_US", "-f", "UTF-8", str(Path(folder) / "en_US.UTF-8")],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            pytest.skip(f"NOT TESTED: localedef cannot make en_US.UTF-8: {made.stderr.strip()}")
        with (
            running_valkey(environ={"LOCPATH": folder, "LC_ALL": "en_US.UTF-8"}) as valkey,
            redis.Redis.from_url(valkey.url, protocol=2) as client,
        ):
            if client.eval("return tostring('B' < 'a')", 0) != b"false":
                pytest.skip("NOT TESTED: this server sorts by bytes in every locale")
            yield client


def test_this_server_would_break_a_tie_otherwise(english: Any) -> None:
    """'n-1' is before 'n0' by bytes; the native comparison of this server says the opposite."""
    assert english.eval("return tostring('n-1' < 'n0')", 0) == b"false"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_histories_agree_in_another_locale(
    english: Any, strategy: ConflictResolutionStrategy
) -> None:
    english.flushall()
    first = first_seed()
    for seed in range(first, first + 60):
        run_history(english, seed, strategy)
