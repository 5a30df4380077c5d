"""Both sides of a cut link write the same tuples: one winner everywhere once it heals."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from tests.e2e.conftest import MakeWorld
from tests.waiting import wait_until
from tests.world import Node, Triple, World, ask, documents

TUPLES = 1_000
PER_REQUEST = 100
US, EU = 0, 1


class Case(NamedTuple):
    """Who inserts, who of the two writes last, and who must win by the rule of the strategy."""

    strategy: str
    inserter: int
    last: int
    winner: int
    region_priorities: Sequence[str] = ()


CASES = {
    "lww: the last writer wins, and inserts": Case("lww", US, US, US),
    "lww: the last writer wins, and deletes": Case("lww", US, EU, EU),
    "insert_wins: also over a later delete": Case("insert_wins", US, EU, US),
    "delete_wins: also over a later insert": Case("delete_wins", US, US, EU),
    "source_priority: the later in the list wins, though it wrote first": Case(
        "source_priority", US, US, EU, ("us-west-1", "eu-central-1")
    ),
    "source_priority: the other list, the other winner": Case(
        "source_priority", US, EU, US, ("eu-central-1", "us-west-1")
    ),
}


def in_requests(write: Callable[..., object], triples: Sequence[Triple]) -> None:
    for start in range(0, len(triples), PER_REQUEST):
        write(*triples[start : start + PER_REQUEST])


def conflicts_of(node: Node) -> tuple[float, float, float]:
    found = node.metrics()
    return (
        found["inferadb_replication_conflicts_total"],
        found["inferadb_replication_conflicts_resolved_local"],
        found["inferadb_replication_conflicts_resolved_remote"],
    )


def logged(node: Node) -> list[dict[str, Any]]:
    """The conflict log of its admin listener, newest first."""
    found: list[dict[str, Any]] = []
    page = ask(node.admin_port, "GET", "/conflicts?limit=300").body
    while page["cursor"] is not None:
        found += page["conflicts"]
        page = ask(node.admin_port, "GET", f"/conflicts?limit=300&after={page['cursor']}").body
    return found + list(page["conflicts"])


def are_apart(world: World) -> bool:
    return all(node.metric("targets_connected") == 0 for node in world.nodes)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_one_inserts_what_the_other_deletes(case: Case, make_world: MakeWorld) -> None:
    """All 1,000 tuples have one fate on both sides, and each conflict is counted once on each.

    Half of the tuples were there before the link was cut, written in turns: ordered writes are no
    conflict, whatever the strategy.
    """
    rules: dict[str, object] = {"conflict_resolution": case.strategy}
    if case.region_priorities:
        rules["region_priorities"] = list(case.region_priorities)
    world = make_world(replication=rules).start()
    triples = documents(range(TUPLES))
    inserter, deleter = world.nodes[case.inserter], world.nodes[1 - case.inserter]

    in_turns(world, triples[: TUPLES // 2])
    assert [conflicts_of(node) for node in world.nodes] == [(0, 0, 0)] * 2

    world.cut()
    wait_until(lambda: are_apart(world), "both have noticed the cut")
    writers = [(inserter, inserter.insert), (deleter, deleter.delete)]
    for _, write in sorted(writers, key=lambda pair: pair[0] is world.nodes[case.last]):
        in_requests(write, triples)
    assert inserter.triples() == set(triples)
    assert deleter.triples() == set()
    world.heal()
    world.settle()

    winner, loser = world.nodes[case.winner], world.nodes[1 - case.winner]
    left = set(triples) if winner is inserter else set()
    for node in world.nodes:
        assert node.triples() == left, f"{node.name} by {case.strategy}"
    assert world.nodes[US].digest() == world.nodes[EU].digest()
    # The winner keeps what it had stored, the loser takes what arrives.
    assert conflicts_of(winner) == (TUPLES, TUPLES, 0), winner.name
    assert conflicts_of(loser) == (TUPLES, 0, TUPLES), loser.name

    for node, resolved in ((winner, "local"), (loser, "remote")):
        log = logged(node)
        assert {one["resource"] for one in log} == {resource for resource, _, _ in triples}
        assert len(log) == TUPLES, node.name
        for one in log:
            told = (one["strategy"], one["resolved"], one["winner"]["origin"].partition(".")[0])
            assert told == (case.strategy, resolved, winner.name)
            assert one["winner"] == one["stored" if resolved == "local" else "arrived"]
            by = {one[side]["operation"]: one[side]["origin"] for side in ("stored", "arrived")}
            assert {word: origin.partition(".")[0] for word, origin in by.items()} == {
                "insert": inserter.name,
                "delete": deleter.name,
            }

    in_turns(world, triples[: TUPLES // 2])
    assert conflicts_of(winner) == (TUPLES, TUPLES, 0), "an ordered write ends a conflict"
    assert conflicts_of(loser) == (TUPLES, 0, TUPLES), "an ordered write ends a conflict"


def in_turns(world: World, triples: Sequence[Triple]) -> None:
    """Insert, delete, insert: each by the other region, after it has seen the one before."""
    us, eu = world.nodes
    for write in (us.insert, eu.delete, eu.insert, us.delete, us.insert):
        in_requests(write, triples)
        world.settle()
    for node in world.nodes:
        assert node.triples() >= set(triples), f"{node.name} has not got the last insert"


def test_writes_go_on_while_the_link_is_cut_and_all_of_it_arrives(make_world: MakeWorld) -> None:
    """A queue in the feed, not a loss: also over a restart of both nodes during the cut."""
    world = make_world().start()
    us, eu = world.nodes
    world.cut()
    us.insert(*documents(range(10), "user:us"))
    eu.insert(*documents(range(10), "user:eu"))
    us.kill()
    eu.kill()
    for node in world.nodes:
        node.start()
    us.delete(*documents(range(5), "user:us"))
    world.heal()
    waited_s = world.settle()
    print(f"settled {waited_s:.3f} s after the link healed")
    expected = {*documents(range(5, 10), "user:us"), *documents(range(10), "user:eu")}
    assert us.triples() == eu.triples() == expected
    assert [conflicts_of(node) for node in world.nodes] == [(0, 0, 0)] * 2
