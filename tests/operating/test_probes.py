"""What load balancers, orchestrators and other nodes are told while a node comes and goes."""

import http.client
import threading
import time

import pytest

from sidecar.store.keys import Keys
from tests.e2e.conftest import MakeWorld
from tests.servers import free_ports
from tests.waiting import wait_until
from tests.world import HOST, LIST, WRITE, Answer, Node, Pace, ask, documents


def probe(node: Node, path: str) -> list[Answer]:
    return [ask(port, "GET", path) for port in node.ports]


def statuses(node: Node, path: str) -> set[int]:
    return {answer.status for answer in probe(node, path)}


def test_a_node_without_its_redis_lives_and_is_not_ready(make_world: MakeWorld) -> None:
    """It waits for ever: also for a name that nobody knows."""
    (nowhere,) = free_ports(1)
    (node,) = make_world(1).nodes
    for url in (f"redis://{HOST}:{nowhere}", "redis://no-such-host.invalid:6379"):
        node.environ["INFERADB__REDIS__URL"] = url
        node.begin()
        wait_until(lambda: node.status == 503, "it answers")
        wait_until(lambda: "store closed" in node.log, "it has tried")
        assert statuses(node, "/livez") == {200}
        for answer in probe(node, "/readyz"):
            assert answer.status == 503
            assert answer.body["status"] == "not_ready"
            assert "Redis does not answer" in str(answer.body["reasons"]), answer
        node.stop()
        assert "Traceback" not in node.log


def test_probes_on_every_listener(make_world: MakeWorld) -> None:
    (node,) = make_world(1).start().nodes
    assert statuses(node, "/livez") == statuses(node, "/readyz") == {200}
    assert statuses(node, "/readyz?max_lag_ms=500") == {200}
    assert statuses(node, "/readyz?max_lag_ms=soon") == {400}
    assert statuses(node, "/readyz?lag=500") == {400}


def test_a_node_that_is_late_says_so_to_those_who_mind(make_world: MakeWorld) -> None:
    """It was away, and comes up over a slow link."""
    world = make_world().start()
    us, eu = world.nodes
    us.insert(*documents([9_999]))
    world.settle()
    with eu.store() as call:
        # Before that it would be new, and not ready for another reason.
        wait_until(lambda: call("EXISTS", Keys("sidecar").known("node1")), "it has had everything")
    eu.stop()
    for first in range(0, 3_000, 500):
        us.insert(*documents(range(first, first + 500)))
        us.insert(*documents(range(first, first + 500), "user:bob"))
    world.link("node1", "node2").slow(Pace(bytes_per_s=60_000))
    eu.begin()

    def late() -> Answer:
        return ask(eu.app_port, "GET", "/readyz?max_lag_ms=500")

    eu.wait_until_serving()
    wait_until(lambda: late().status == 503 and late().body.get("lag_ms", 0) > 500, "it is late")
    assert "what others have written shows here after" in late().body["message"]
    assert ask(eu.app_port, "GET", "/readyz").status == 200
    assert ask(us.app_port, "GET", "/readyz?max_lag_ms=500").status == 200
    world.heal()
    world.settle()
    wait_until(lambda: late().status == 200, "it is late no more")


class Poller:
    """Asks /readyz ten times a second, and keeps what it was told."""

    def __init__(self, node: Node) -> None:
        self._node, self._ending = node, threading.Event()
        self.told: list[tuple[float, int]] = []
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ending.set()
        self._thread.join(30)

    def _poll(self) -> None:
        while not self._ending.wait(0.1):
            try:
                status = ask(self._node.admin_port, "GET", "/readyz").status
            except (OSError, http.client.HTTPException):
                continue
            self.told.append((time.monotonic(), status))


def test_a_node_that_goes_says_so_and_serves_meanwhile(make_world: MakeWorld) -> None:
    """Its connections are closed politely, and the other node sends nothing more there."""
    world = make_world().start()
    us, eu = world.nodes
    health = "inferadb_sidecar_node_health{node1}"
    wait_until(lambda: eu.metrics()[health] == 2, "the other node sends requests there")
    poller = Poller(us)
    wait_until(lambda: len(poller.told) > 3, "it is asked")
    kept = http.client.HTTPConnection(HOST, us.app_port, timeout=30)
    kept.request("POST", LIST, b"{}")
    assert kept.getresponse().read()
    assert kept.sock is not None, "the connection is kept"
    us.terminate()
    wait_until(lambda: poller.told[-1][1] == 503, "it is not ready any more")
    kept.request("POST", LIST, b"{}")
    answer = kept.getresponse()
    kept.close()
    assert answer.status == 200
    assert answer.headers["Connection"] == "close"
    assert us.post(WRITE, {"relationships": []}).status == 400, "new connections are served, too"
    line = 'a node does not serve: requests go elsewhere peer=node1 reason="draining: '
    wait_until(lambda: line in eu.log, "the other node knows")
    assert us.is_running
    assert us.process is not None
    assert us.process.wait(20) == 0
    poller.end()
    assert us.log.count("node stopping") == 1
    assert "grace_s=0.5" in us.log


def test_without_anybody_who_asks_there_is_nothing_to_wait_for(make_world: MakeWorld) -> None:
    (node,) = make_world(1).start().nodes
    node.terminate()
    assert node.process is not None
    assert node.process.wait(20) == 0
    assert "grace_s=0.0" in node.log


@pytest.mark.parametrize("grace_s", [1, 2])
def test_the_setting_says_how_long_a_node_goes_on(make_world: MakeWorld, grace_s: int) -> None:
    """In a cluster that takes it out of service by itself, and without asking."""
    (node,) = make_world(1, environ={"INFERADB__DRAIN_GRACE_S": str(grace_s)}).start().nodes
    began = time.monotonic()
    node.terminate()
    wait_until(lambda: ask(node.app_port, "GET", "/readyz").status == 503, "it says so")
    node_answers = node.post(LIST, {}).status
    assert node.process is not None
    assert node.process.wait(20) == 0
    assert node_answers == 200
    assert time.monotonic() - began >= grace_s
