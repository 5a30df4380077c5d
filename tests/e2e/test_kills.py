"""Applications write the same few tuples in both regions while nodes die: all agree in the end."""

import http.client
import os
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest

from tests.e2e.conftest import MakeWorld
from tests.waiting import wait_until
from tests.world import UPDATE, Node, Triple, World, documents, triple_of

TUPLES = documents(range(8))
WRITERS_PER_REGION = 2
WRITE_S = 6.0
# A clock that was pushed ahead by a burst of writes is this much ahead at most.
CLOCK_AHEAD_US = 100_000


class Change(NamedTuple):
    """One change of a request that was answered, or not: then `revision` is 0."""

    triple: Triple
    is_insert: bool
    node: str
    revision: int
    ended_us: int


@dataclass
class Application:
    """Writes random requests to one node, one after the other, and remembers every answer."""

    node: Node
    dice: random.Random
    ending: threading.Event
    changes: list[Change] = field(default_factory=list)
    surprises: list[object] = field(default_factory=list)

    def run(self) -> None:
        while not self.ending.is_set():
            chosen = self.dice.sample(TUPLES, self.dice.randint(1, 3))
            is_insert = {triple: self.dice.random() < 0.5 for triple in chosen}
            revision = self._request(is_insert)
            if revision is None:
                self.ending.wait(0.02)  # refused: nothing was done
                continue
            ended_us = time.time_ns() // 1000
            self.changes += [
                Change(triple, operation, self.node.name, revision, ended_us)
                for triple, operation in is_insert.items()
            ]
            # Leave the processor to those who have to start again.
            self.ending.wait(0.002)

    def _request(self, is_insert: dict[Triple, bool]) -> int | None:
        """The revision; 0 when nobody knows the outcome, None when nothing was done."""
        updates = [
            {
                "operation": "insert" if operation else "delete",
                "relationship": dict(zip(("resource", "relation", "subject"), triple, strict=True)),
            }
            for triple, operation in is_insert.items()
        ]
        try:
            answer = self.node.post(UPDATE, {"updates": updates})
        except ConnectionRefusedError:
            return None
        except (OSError, http.client.HTTPException):
            return 0
        if answer.status == 200:
            return int(answer.body["revision"])
        if answer.status != 503:
            self.surprises.append(answer)
        return 0 if answer.body["error"] == "outcome_unknown" else None


def kill_now_and_then(world: World, dice: random.Random, until: float) -> list[str]:
    """What went wrong, in order."""
    told: list[str] = []
    while (left_s := until - time.monotonic()) > 0:
        node = dice.choice(world.nodes)
        what = dice.choice(["kill -9", "kill -9", "cut", "Redis killed"])
        told.append(f"{what} {node.name}")
        match what:
            case "kill -9":
                node.kill()
                node.start()
            case "cut":
                world.cut()
                wait_until(lambda: time.monotonic() > until - left_s + 0.5, "half a second")
                world.heal()
            case _ if node.valkey_pid:
                node.kill_valkey()
                node.wait_until_serving()
        # A moment in which both go on.
        resumed = time.monotonic()
        wait_until(lambda at=resumed: time.monotonic() > at + 0.5, "half a second")  # type: ignore[misc]
    return told


def test_all_agree_whoever_died_in_between(make_world: MakeWorld) -> None:
    """Equal vectors, equal tuples, equal digests; and no answer was a lie."""
    write_and_kill("lww", make_world, WRITE_S)


@pytest.mark.soak
@pytest.mark.parametrize("run", range(5))
@pytest.mark.parametrize("strategy", ["lww", "insert_wins", "delete_wins"])
def test_all_agree_after_many_deaths(strategy: str, run: int, make_world: MakeWorld) -> None:
    write_and_kill(strategy, make_world, 30.0)


def write_and_kill(strategy: str, make_world: MakeWorld, seconds: float) -> None:
    seed = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
    print(f"SEED={seed}")
    dice = random.Random(seed)
    world = make_world(replication={"conflict_resolution": strategy}).start()
    ending = threading.Event()
    applications = [
        Application(node, random.Random(dice.random()), ending)
        for node in world.nodes
        for _ in range(WRITERS_PER_REGION)
    ]
    threads = [threading.Thread(target=one.run, daemon=True) for one in applications]
    for thread in threads:
        thread.start()
    try:
        told = kill_now_and_then(world, dice, time.monotonic() + seconds)
    finally:
        ending.set()
        for thread in threads:
            thread.join(60)
    world.heal()
    for node in world.nodes:
        node.wait_until_serving()
    waited_s = world.settle()

    changes = [change for one in applications for change in one.changes]
    unknown = sum(not change.revision for change in changes)
    print(f"{len(changes)} changes, {unknown} of unknown outcome; {', '.join(told)}; ", end="")
    print(f"settled after {waited_s:.2f} s")
    assert not [surprise for one in applications for surprise in one.surprises]
    us, eu = world.nodes
    assert us.digest() == eu.digest()
    exported = us.export()
    assert exported == eu.export()
    if strategy == "lww":
        assert_no_answer_was_a_lie(changes, {triple_of(one) for one in exported})


def assert_no_answer_was_a_lie(changes: Sequence[Change], left: set[Triple]) -> None:
    """Every tuple is what its last acknowledged write made it, or one after it without answer."""
    for triple in TUPLES:
        here = [change for change in changes if change.triple == triple]
        last = max((c for c in here if c.revision), key=lambda c: (c.revision, c.node))
        later = [
            change
            for change in here
            if not change.revision and change.ended_us + CLOCK_AHEAD_US > last.revision
        ]
        possible = {change.is_insert for change in (last, *later)}
        assert (triple in left) in possible, f"{triple}: {last}, without answer {later}"
