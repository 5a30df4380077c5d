"""The OpenAPI documents of both listeners, held against real nodes by schemathesis.

It makes requests of the documents, valid ones and such that break one rule each, and finds answers
that the documents do not foresee. `watch` and other streams that never end are left out: what
they answer is looked at elsewhere.
"""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import MakeWorld
from tests.world import HOST, ROOT, Node, documents

SEED = 7
ENDLESS = ("/access/v1/watch", "/events")
LIMIT_S = 240.0


@pytest.fixture(scope="module")
def node(make_shared_world: MakeWorld) -> Iterator[tuple[Node, str]]:
    """One of two nodes, and a token of it."""
    world = make_shared_world(2, replication={"probe_interval_max_s": 1}).start()
    us = world.nodes[0]
    token = us.insert(*documents([1]))["token"]
    world.settle()
    yield us, token
    assert us.is_serving
    assert "Traceback" not in us.log


@pytest.mark.parametrize("listener", ["app", "admin"])
def test_nothing_is_found_that_the_document_does_not_say(
    listener: str, node: tuple[Node, str]
) -> None:
    us, token = node
    url = us.url if listener == "app" else f"http://{HOST}:{us.admin_port}"
    endless = [word for path in ENDLESS for word in ("--exclude-path", path)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(ROOT / "tests" / "openapi" / "schemathesis.toml")),
            *("run", f"{url}/openapi.json", "--seed", str(SEED), "--max-examples", "10"),
            *(
                "--phases",
                "coverage,fuzzing",
                "--request-timeout",
                "30",
                "--no-color",
                "--no-shrink",
            ),
            *("--continue-on-failure", "--header", "X-Sidecar-Admin: 1", *endless),
        ],
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "tests.openapi.hooks",
            "SIDECAR_TEST_TOKEN": token,
            "SIDECAR_TEST_TARGET": "node2",
            "PYTHONPATH": str(ROOT),
        },
        cwd=us.folder,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    lines = [line[:400] for line in done.stdout.splitlines()]
    print("\n".join(lines[-12:]))
    assert done.returncode == 0, "\n".join([f"seed {SEED}", *lines[-200:], done.stderr])
