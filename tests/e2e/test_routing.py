"""Who serves what, asked over HTTP: each strategy with everything up, and with more and more down.

`near` and `beside` are one region, `far` and `away` two others; `far` is the primary, and the home
of the tenant that has one. `near` is asked. Its Redis is a process of its own, so that it can be
away while its sidecar lives.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import MakeWorld
from tests.servers import RealValkey, start_valkey
from tests.waiting import wait_until
from tests.world import LIST, WRITE, Answer, Node, World, documents

HOME, FAR, AWAY = REGIONS = "us-west-1", "eu-central-1", "ap-southeast-1"
NEAR_SERVES, BESIDE_SERVES = {f"{HOME}/node1"}, {f"{HOME}/node2"}
FAR_SERVES, AWAY_SERVES = {f"{FAR}/node3"}, {f"{AWAY}/node4"}

ROWS = {
    "all healthy": "",
    "local database down": "redis",
    "local region down": "redis beside",
    "primary down": "far",
    "everything but one node down": "redis beside far",
}
Served = set[str] | str
"""The nodes that serve, or the code of their refusal."""

READS: list[Served] = [NEAR_SERVES, BESIDE_SERVES, FAR_SERVES, NEAR_SERVES, AWAY_SERVES]
WRITES: dict[str, list[Served]] = {
    "active_active": READS,
    "primary_replica": [FAR_SERVES, FAR_SERVES, FAR_SERVES, "no_primary", "no_primary"],
    # Of a tenant at home in `far`.
    "multi_master": [FAR_SERVES, FAR_SERVES, FAR_SERVES, "no_home", "no_home"],
}
NAMES = ("resource", "relation", "subject")


class Deployment:
    """Four nodes, and what of them is down."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self._folder = world, folder
        self.near, self.beside, self.far, self.away = world.nodes
        self._valkey: RealValkey | None = None
        self.near.environ["INFERADB__REDIS__URL"] = f"unix://{folder}/valkey.sock"

    def begin(self) -> None:
        self._let_redis(run=True)
        self.world.start()

    def end(self) -> None:
        self._let_redis(run=False)

    def let_be_down(self, down: str) -> None:
        self._let_redis(run="redis" not in down)
        for name, node in (("beside", self.beside), ("far", self.far)):
            if name in down and node.is_running:
                node.kill()
            elif name not in down and not node.is_running:
                node.begin()

    def _let_redis(self, *, run: bool) -> None:
        if run and self._valkey is None:
            self._valkey = start_valkey(self._folder, args=("--appendonly", "yes"))
        elif not run and self._valkey is not None:
            self._valkey.kill()
            self._valkey = None


@pytest.fixture
def deployment(
    request: pytest.FixtureRequest, make_world: MakeWorld, tmp_path: Path
) -> Iterator[Deployment]:
    strategy = request.param
    world = make_world(
        (HOME, HOME, FAR, AWAY),
        primary=FAR if strategy == "primary_replica" else None,
        replication={
            "strategy": strategy,
            "probe_interval_max_s": 1,
            **({"tenants": {"acme": {"home": FAR}}} if strategy == "multi_master" else {}),
        },
    )
    made = Deployment(world, tmp_path / "near")
    try:
        made.begin()
        yield made
    finally:
        made.end()


@pytest.mark.parametrize(
    ("deployment", "strategy"), [(name, name) for name in WRITES], indirect=["deployment"]
)
def test_who_serves_what(deployment: Deployment, strategy: str) -> None:
    near = deployment.near
    for (row, down), reads, writes in zip(ROWS.items(), READS, WRITES[strategy], strict=True):
        deployment.let_be_down(down)
        wait_until(
            lambda reads=reads, writes=writes: (  # type: ignore[misc]
                served(near, 4, is_write=False) == reads
                and served(near, 4, is_write=True) == writes
            ),
            lambda row=row: (  # type: ignore[misc]
                f"{strategy}, {row}: reads {served(near, 4, is_write=False)}, "
                f"writes {served(near, 4, is_write=True)}"
            ),
            30,
        )
    deployment.let_be_down("")
    for node in deployment.world.nodes:
        node.wait_until_serving()
    deployment.world.settle()
    for node in deployment.world.nodes:
        assert len(ask_once(node, is_write=False).body["relationships"]) == 1


def served(node: Node, times: int, *, is_write: bool) -> Served:
    """The nodes that served some requests made at this node; or the code of their refusal."""
    answers = [ask_once(node, is_write=is_write) for _ in range(times)]
    codes = {str(answer.body.get("error")) for answer in answers if answer.status != 200}
    if codes:
        assert all(int(a.headers["Retry-After"]) > 0 for a in answers if a.status == 503)
        return ", ".join(sorted(codes))
    return {answer.headers["X-Served-By"] for answer in answers}


def ask_once(node: Node, *, is_write: bool) -> Answer:
    if is_write:
        body = {"relationships": [dict(zip(NAMES, documents([1])[0], strict=True))]}
        return node.post(WRITE, body, X_Tenant="acme")
    return node.post(LIST, {"limit": 1}, X_Tenant="acme")
