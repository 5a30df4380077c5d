"""A node is told to end while applications write: what was acknowledged stays."""

import http.client
import itertools
import threading
import time

from tests.e2e.conftest import MakeWorld
from tests.servers import free_ports
from tests.waiting import wait_until
from tests.world import WRITE, Answer, Node, Triple, ask, documents

DRAIN_LIMIT_S = 20.0


class Writers:
    """Applications that insert one tuple after the other until nobody answers."""

    def __init__(self, node: Node, count: int = 4) -> None:
        self._node = node
        self.acknowledged: list[Triple] = []
        self.refusals: list[Answer] = []
        self._threads = [
            threading.Thread(target=self._write, args=(f"user:{number}",), daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a writer waits for an answer that never comes"

    def _write(self, subject: str) -> None:
        for number in itertools.count():
            (triple,) = documents([number], subject)
            relationship = dict(zip(("resource", "relation", "subject"), triple, strict=True))
            try:
                answer = self._node.post(WRITE, {"relationships": [relationship]})
            except (OSError, http.client.HTTPException):
                return
            if answer.status == 200:
                self.acknowledged.append(triple)
            else:
                self.refusals.append(answer)
                if answer.status != 503:
                    return


def test_sigterm_during_writes_loses_nothing_that_was_acknowledged(make_world: MakeWorld) -> None:
    """It ends by itself, with 0 and within the drain limit; every answer was true."""
    world = make_world().start()
    us, eu = world.nodes
    assert us.process is not None
    for _ in range(2):
        writers = Writers(us)
        wait_until(lambda w=writers: len(w.acknowledged) > 100, "writes under way")  # type: ignore[misc]
        began = time.monotonic()
        us.terminate()
        assert us.process.wait(DRAIN_LIMIT_S) == 0, us.log
        took_s = time.monotonic() - began
        writers.wait()
        assert all(answer.status == 503 for answer in writers.refusals), writers.refusals
        assert "Traceback" not in us.log
        # It has handed over what it had accepted before it went.
        handed_over = eu.triples()
        us.start()
        here = us.triples()
        lost = [triple for triple in writers.acknowledged if triple not in here]
        assert not lost, f"{len(lost)} of {len(writers.acknowledged)} acknowledged are gone"
        late = [triple for triple in writers.acknowledged if triple not in handed_over]
        assert not late, f"{len(late)} were not handed over before the end"
        print(f"{len(writers.acknowledged)} writes acknowledged, ended in {took_s:.2f} s")
    world.settle()
    assert us.triples() == eu.triples()


def test_sigterm_while_the_other_region_is_away_does_not_wait_for_it(
    make_world: MakeWorld,
) -> None:
    """The feed keeps what could not be handed over; it goes when both are back."""
    world = make_world().start()
    us, eu = world.nodes
    world.cut()
    us.insert(*documents(range(50)))
    us.terminate()
    assert us.process is not None
    assert us.process.wait(5) == 0
    us.start()
    assert us.triples() == set(documents(range(50)))
    world.heal()
    world.settle()
    assert eu.triples() == set(documents(range(50)))


def test_sigterm_ends_a_node_whatever_it_waits_for(make_world: MakeWorld) -> None:
    """A watcher, a silent peer, a Redis that is not there: none of them holds up the end."""
    world = make_world().start()
    us, eu = world.nodes
    world.watch(us)
    for link in world.links:
        link.freeze()
    us.insert(*documents(range(50)))
    (nowhere,) = free_ports(1)
    (lonely,) = make_world(1).nodes
    lonely.environ["INFERADB__REDIS__URL"] = f"redis://127.0.0.1:{nowhere}"
    lonely.begin()
    wait_until(lambda: lonely.status == 503, "it waits for its Redis")
    for node in (us, eu, lonely):
        node.terminate()
        assert node.process is not None
        assert node.process.wait(8) == 0, node.log
        assert "Traceback" not in node.log


def test_a_second_sidecar_on_the_same_folder_is_refused(make_world: MakeWorld) -> None:
    """In one line that names who has it; the first one goes on."""
    (first,) = make_world(1).start().nodes
    (second,) = make_world(1).nodes
    second.environ["INFERADB__REDIS__URL"] = f"embedded:{first.folder}"
    second.begin()
    assert second.process is not None
    assert second.process.wait(30) == 1
    *_, last = second.log.splitlines()
    assert last.startswith("sidecar: ")
    assert f"is in use by the sidecar with pid {first.pid}" in last
    assert "Traceback" not in second.log
    first.insert(*documents([1]))


def test_a_second_sidecar_on_the_same_ports_is_refused(make_world: MakeWorld) -> None:
    (first,) = make_world(1).start().nodes
    (second,) = make_world(1).nodes
    second.environ["INFERADB__LISTEN__ADMIN"] = f"127.0.0.1:{first.admin_port}"
    second.begin()
    assert second.process is not None
    assert second.process.wait(30) == 2
    *_, last = second.log.splitlines()
    assert last.startswith("sidecar: listen.admin: cannot listen on")
    assert first.is_serving


def test_a_node_that_is_back_is_shipped_to_at_once(make_world: MakeWorld) -> None:
    """However long the sender had meant to wait before it tries again."""
    agent = {"max_retries": 1, "retry_delay_ms": 60_000}
    world = make_world(replication={"agent": agent, "probe_interval_max_s": 600}).start()
    us, eu = world.nodes
    world.settle()
    eu.kill()
    wait_until(
        lambda: ask(us.admin_port, "GET", "/status").body["health"]["node2"] == "unreachable",
        "node1 does not notice that node2 has gone",
    )
    us.insert(*documents(range(3)))
    eu.start()
    arrived = set(documents(range(3)))
    wait_until(lambda: eu.triples() == arrived, "node1 waits for its turn", limit_s=30)
