"""What is found in the log of a node: by the id of a request, and by the word replication."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from tests.e2e.conftest import MakeWorld
from tests.waiting import wait_until
from tests.world import HOST, LIST, WRITE, Node, ask, documents

DEBUG = {"INFERADB__LOG__LEVEL": "debug", "INFERADB__LOG__FORMAT": "json"}


def lines_about(node: Node, request: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in node.log.splitlines() if line.startswith("{"))
    return [line for line in lines if line.get("request") == request]


def _seen_by(node: Node) -> str:
    """How node1 does, as that node knows it."""
    return str(ask(node.admin_port, "GET", "/status").body["health"]["node1"])


def test_the_id_of_a_request_is_found_on_every_node_that_served_it(make_world: MakeWorld) -> None:
    """Given by the application or made here: it goes along, and comes back with the answer."""
    world = make_world(
        primary="us-west-1", replication={"strategy": "primary_replica"}, environ=DEBUG
    ).start()
    us, eu = world.nodes
    wait_until(lambda: _seen_by(eu) != "unreachable", "node2 knows that node1 serves")
    (triple,) = documents([1])
    body = {"relationships": [dict(zip(("resource", "relation", "subject"), triple, strict=True))]}
    answer = eu.post(WRITE, body, X_Request_Id="order-17")
    assert answer.headers["X-Served-By"] == "us-west-1/node1", answer
    assert answer.headers["X-Request-Id"] == "order-17"
    for node in (us, eu):
        (line,) = lines_about(node, "order-17")
        assert (line["path"], line["status"]) == (WRITE, 200)

    made = eu.post(WRITE, body).headers["X-Request-Id"]
    assert len(made) > 10
    for node in (us, eu):
        assert [line["path"] for line in lines_about(node, made)] == [WRITE]
    assert eu.post(LIST, {"limit": 0}, X_Request_Id="bad").headers["X-Request-Id"] == "bad"
    assert eu.post("/nowhere", {}, X_Request_Id="lost").headers["X-Request-Id"] == "lost"
    assert [line["status"] for line in lines_about(eu, "lost")] == [404]


def test_a_log_file_is_begun_anew_when_it_was_moved_away(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    """As logrotate does, without a signal and without a line lost."""
    (node,) = make_world(1).nodes
    file = tmp_path / "sidecar.log"
    node.environ |= {**DEBUG, "INFERADB__LOG__FILE": str(file)}
    node.start()
    node.post(LIST, {}, X_Request_Id="before")
    file.rename(tmp_path / "sidecar.log.1")
    node.post(LIST, {}, X_Request_Id="after")
    assert '"before"' in (tmp_path / "sidecar.log.1").read_text()
    assert '"after"' in file.read_text()
    assert '"before"' not in file.read_text()
    assert "node ready" not in node.log, "it went to standard error as well"


def test_a_log_file_that_cannot_be_written_is_named(make_world: MakeWorld, tmp_path: Path) -> None:
    (node,) = make_world(1).nodes
    node.environ["INFERADB__LOG__FILE"] = str(tmp_path / "nowhere" / "sidecar.log")
    node.begin()
    assert node.process is not None
    assert node.process.wait(30) == 2
    assert "sidecar: log.file: " in node.log
    assert "No such file or directory" in node.log


class Unwelcome(BaseHTTPRequestHandler):
    """A peer listener that takes nobody for who he is."""

    def do_GET(self) -> None:
        self.send_error(401)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def unwelcoming(port: int) -> Iterator[None]:
    server = ThreadingHTTPServer((HOST, port), Unwelcome)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def grepped(node: Node, since: int) -> list[str]:
    """`grep replication` of what was logged since."""
    return [line for line in node.log[since:].splitlines() if "replication" in line]


def test_grep_replication_finds_why_a_target_gets_nothing(make_world: MakeWorld) -> None:
    """A target that is down, one that refuses this node, and one that is silent."""
    world = make_world(
        replication={"agent": {"request_timeout_secs": 1, "retry_delay_ms": 50, "max_retries": 2}}
    ).start()
    us, eu = world.nodes

    def found(*words: str) -> None:
        def is_there() -> bool:
            return any(
                "node2" in line and all(word in line for word in words)
                for line in grepped(us, since)
            )

        wait_until(is_there, lambda: f"{words} in {grepped(us, since)}")

    since = len(us.log)
    eu.stop()
    found("replication failed", "node2 cannot be reached")
    found("replication target unreachable")

    since = len(us.log)
    with unwelcoming(eu.peer_port):
        found("replication failed", "401")

    eu.start()
    wait_until(lambda: us.metric("targets_connected") == 1, "they replicate again")
    since = len(us.log)
    for link in world.links:
        link.freeze()
    us.insert(*documents([1]))
    found("replication failed", "within 1 s")
