"""A Redis that is not there, comes, goes and comes back: said clearly, and mended by itself."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.conftest import MakeWorld
from tests.servers import RealValkey, free_ports, start_valkey
from tests.waiting import wait_until
from tests.world import HOST, LIST, WRITE, Answer, Node, documents


@dataclass
class OwnRedis:
    """A Redis that the sidecar only connects to, on a port of 127.0.0.1."""

    folder: Path
    port: int
    running: list[RealValkey] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def start(self) -> None:
        settings = ("--port", str(self.port), "--bind", HOST, "--appendonly", "yes")
        self.running.append(start_valkey(self.folder, args=settings))

    def kill(self) -> None:
        self.running.pop().kill()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    (port,) = free_ports(1)
    own = OwnRedis(tmp_path / "redis", port)
    try:
        yield own
    finally:
        for valkey in own.running:
            valkey.kill()


def read_and_write(node: Node) -> tuple[Answer, Answer]:
    body = {"relationships": [{"resource": "a:b", "relation": "c", "subject": "d:e"}]}
    return node.post_here(LIST, {}), node.post_here(WRITE, body)


def assert_says_that_its_redis_is_away(node: Node) -> None:
    for answer in read_and_write(node):
        assert answer.status == 503, answer
        assert answer.body["error"] == "store_unavailable", answer
        assert int(answer.headers["Retry-After"]) >= 1
        assert "Redis" in answer.body["message"]
    for port in node.ports:
        health = node.health(port)
        assert health.status == 503, health
        assert health.body["status"] == "unhealthy"
        assert "Redis" in str(health.body["reasons"]), health


def test_a_redis_that_comes_goes_and_comes_back(make_world: MakeWorld, own_redis: OwnRedis) -> None:
    """503 with Retry-After while it is away, its reason at /health, and no hand is needed."""
    world = make_world()
    us, eu = world.nodes
    us.environ["INFERADB__REDIS__URL"] = own_redis.url
    us.begin()
    eu.start()
    wait_until(lambda: us.status == 503, "the sidecar answers without its Redis")
    assert_says_that_its_redis_is_away(us)
    eu.insert(*documents(range(10), "user:early"))

    own_redis.start()
    us.wait_until_serving()
    world.settle()
    assert us.triples() == set(documents(range(10), "user:early"))
    us.insert(*documents(range(10)))

    own_redis.kill()
    wait_until(lambda: us.status == 503, "its end is noticed")
    assert_says_that_its_redis_is_away(us)
    eu.insert(*documents(range(10), "user:late"))
    eu.delete(*documents(range(10), "user:early"))

    own_redis.start()
    us.wait_until_serving()
    world.settle()
    expected = {*documents(range(10)), *documents(range(10), "user:late")}
    assert us.triples() == eu.triples() == expected
    us.insert(*documents([99]))
    world.settle()


def test_an_embedded_redis_that_is_killed_is_started_again(make_world: MakeWorld) -> None:
    """What was acknowledged is still there, and the other region never noticed a loss."""
    world = make_world().start()
    us, eu = world.nodes
    us.insert(*documents(range(100)))
    for number in range(3):
        old = us.valkey_pid
        us.kill_valkey()
        wait_until(lambda old=old: us.valkey_pid not in {0, old}, "a new Valkey")  # type: ignore[misc]
        us.wait_until_serving()
        us.insert(*documents([100 + number]))
    world.settle()
    assert us.triples() == eu.triples() == set(documents(range(103)))


@pytest.mark.parametrize(
    ("user", "said"), [("", "asks for a password"), (":wrong@", "refuses the password")]
)
def test_a_redis_that_does_not_let_it_in_is_waited_for(
    make_world: MakeWorld, own_redis: OwnRedis, user: str, said: str
) -> None:
    """A password may be mended on either side; which it is, is said."""
    address = ("--port", str(own_redis.port), "--bind", HOST)
    locked = start_valkey(own_redis.folder, args=address)
    own_redis.running.append(locked)
    locked.call("CONFIG", "SET", "requirepass", "right")
    (node,) = make_world(1).nodes
    node.environ["INFERADB__REDIS__URL"] = f"redis://{user}{HOST}:{own_redis.port}"
    node.begin()
    wait_until(lambda: said in str(node.status == 503 and node.health().body), "it says why")
    assert node.is_running
    mended = "CONFIG SET requirepass wrong" if user else "ACL SETUSER default nopass"
    with socket.create_connection((HOST, own_redis.port)) as client:
        client.sendall(f"AUTH right\r\n{mended}\r\n".encode())
        wait_until(lambda: client.recv(100), "it is mended")
    node.wait_until_serving()


def test_a_redis_that_may_evict_is_refused(make_world: MakeWorld, own_redis: OwnRedis) -> None:
    """In one line, with what to set: evicted keys would be lost tuples."""
    settings = ("--port", str(own_redis.port), "--maxmemory-policy", "allkeys-lru")
    own_redis.running.append(start_valkey(own_redis.folder, args=settings))
    (node,) = make_world(1).nodes
    node.environ["INFERADB__REDIS__URL"] = own_redis.url
    node.begin()
    wait_until(lambda: not node.is_running, "the sidecar has ended")
    assert node.process is not None
    assert node.process.returncode == 2
    last = node.log.splitlines()[-1]
    assert "allkeys-lru" in last
    assert "noeviction" in last


def test_the_redis_of_another_node_is_refused(make_world: MakeWorld, own_redis: OwnRedis) -> None:
    """Two nodes on one data set would write the same versions: the second is told whose it is."""
    own_redis.start()
    world = make_world()
    us, eu = world.nodes
    for node in world.nodes:
        node.environ["INFERADB__REDIS__URL"] = own_redis.url
    us.start()
    eu.begin()
    wait_until(lambda: not eu.is_running, "the second has ended")
    assert eu.process is not None
    assert eu.process.returncode == 2
    assert "belongs to node node1, not to node2" in eu.log.splitlines()[-1]
    us.insert(*documents([1]))
