"""Every node is restarted, one after the other, while applications write and read without a pause.

The applications do what a load balancer does: they ask /readyz ten times a second, send requests to
nodes that said yes, and repeat nothing. None of their requests may fail.
"""

import http.client
import itertools
import json
import threading
import time

from tests.e2e.conftest import MakeWorld
from tests.waiting import wait_until
from tests.world import HOST, LIST, WRITE, Node, Triple, World, ask, documents

POLL_S = 0.1
BY_THE_NODES = 4
"""Applications."""


class Application:
    """Writes and reads back, over kept connections, at whichever node was ready when it asked."""

    def __init__(self, name: str, nodes: tuple[Node, ...]) -> None:
        self._subject, self._nodes = f"user:{name}", nodes
        self._ready: list[Node] = []
        self._ending = threading.Event()
        self.acknowledged: list[Triple] = []
        self.served_by: set[str] = set()
        self.failures: list[str] = []
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._poll, self._work)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "an application waits for an answer that never comes"

    def _poll(self) -> None:
        """Ask each node in turn; one that does not answer at once is not ready."""
        while not self._ending.is_set():
            self._ready = [node for node in self._nodes if is_ready(node)]
            self._ending.wait(POLL_S)

    def _work(self) -> None:
        connections = {
            node.name: http.client.HTTPConnection(HOST, node.app_port, timeout=30)
            for node in self._nodes
        }
        for number in itertools.count():
            ready = self._ready
            if self._ending.is_set():
                break
            for away in self._nodes:
                # As every pool does: what the other end has closed is not used again.
                if away not in ready:
                    connections[away.name].close()
            if not ready:
                continue
            node = ready[number % len(ready)]
            (triple,) = documents([number], self._subject)
            relationship = dict(zip(("resource", "relation", "subject"), triple, strict=True))
            path: str = WRITE
            body: object = {"relationships": [relationship]}
            if number % 4 == 3:
                path, body = LIST, relationship
            try:
                connections[node.name].request("POST", path, json.dumps(body))
                answer = connections[node.name].getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{time.time():.3f} {path} at {node.name}: {error!r}")
                connections[node.name].close()
                continue
            if answer.status != 200:
                self.failures.append(f"{path} at {node.name}: {answer.status} {text[:300]!r}")
            elif path == WRITE:
                self.acknowledged.append(triple)
                self.served_by.add(str(answer.headers["X-Served-By"]))
        for connection in connections.values():
            connection.close()


def is_ready(node: Node) -> bool:
    try:
        return ask(node.app_port, "GET", "/readyz").status == 200
    except (OSError, http.client.HTTPException):
        return False


def restart_each(world: World, applications: list[Application]) -> list[float]:
    """SIGTERM, wait for the end, start again, wait until it is ready; how long each end took."""
    took = []
    for node in world.nodes:
        began = time.monotonic()
        node.terminate()
        assert node.process is not None
        assert node.process.wait(20) == 0, node.log
        took.append(time.monotonic() - began)
        node.begin()
        wait_until(lambda n=node: is_ready(n), f"{node.name} is ready again")  # type: ignore[misc]
        written = [len(one.acknowledged) for one in applications]
        wait_until(
            lambda w=written: all(  # type: ignore[misc]
                len(one.acknowledged) > before + 20
                for one, before in zip(applications, w, strict=True)
            ),
            "applications go on",
        )
    return took


def test_a_rolling_restart_is_not_noticed(make_world: MakeWorld) -> None:
    """No request fails, and what was acknowledged is everywhere afterwards."""
    world = make_world(("us-west-1", "us-west-1", "eu-central-1")).start()
    applications = [Application(f"app{number}", world.nodes) for number in range(BY_THE_NODES)]
    wait_until(lambda: all(len(one.acknowledged) > 50 for one in applications), "all are at work")
    took = restart_each(world, applications)
    for one in applications:
        one.end()
    failures = [failure for one in applications for failure in one.failures]
    acknowledged = {triple for one in applications for triple in one.acknowledged}
    print(f"{len(acknowledged)} writes, ends took {[f'{one:.2f}' for one in took]} s")
    assert not failures, f"{len(failures)} failed: {failures[:10]}"
    served_by = set().union(*(one.served_by for one in applications))
    assert served_by == {f"{node.region}/{node.name}" for node in world.nodes}
    world.settle()
    for node in world.nodes:
        missing = acknowledged - node.triples()
        assert not missing, f"{len(missing)} of {len(acknowledged)} are not at {node.name}"
        assert "Traceback" not in node.log
