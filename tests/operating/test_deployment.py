"""What one node shows of all of them: `GET /deployment`, and what nodes tell each other for it."""

import json
import signal
import subprocess
from typing import Any

from tests.e2e.conftest import MakeWorld
from tests.waiting import wait_until
from tests.world import (
    HOST,
    ROOT,
    Node,
    World,
    ask,
    clean_environ,
    documents,
    sidecar,
    sidecar_command,
)

QUICK = {"probe_interval_max_s": 1}


def deployment(node: Node) -> dict[str, Any]:
    answer = ask(node.admin_port, "GET", "/deployment")
    assert answer.status == 200, answer
    return dict(answer.body)


def target(world: World, at: Node, of: Node) -> dict[str, Any]:
    """What a node says of one of its targets."""
    return dict(ask(at.admin_port, "GET", "/status").body["targets"][of.name])


def test_any_node_shows_all_of_them(make_world: MakeWorld) -> None:
    world = make_world(3, replication=QUICK).start()
    us, *_ = world.nodes
    us.insert(*documents(range(5)))
    world.settle()
    for asked in world.nodes:
        shown = deployment(asked)
        assert (shown["asked_by"], shown["strategy"]) == (asked.name, "active_active")
        assert list(shown["nodes"]) == ["node1", "node2", "node3"]
        for node in world.nodes:
            one = shown["nodes"][node.name]
            assert (one["region"], one["is_reachable"]) == (node.region, True), one
            said = one["status"]
            assert (said["node"], said["status"], said["phase"]) == (
                *(node.name, "healthy", "serving"),
            )
            assert said["targets"].keys() == {n.name for n in world.nodes} - {node.name}
    said = deployment(us)["nodes"]["node1"]["status"]
    assert said["counts"]["writes"] == 1
    assert said["counts"]["changes_shipped"] == 10
    assert said["feed_limit"] == 10_000_000
    assert said["uptime_s"] > 0


def stored_cursor(node: Node, to: Node) -> int:
    """What the Redis of a node keeps of what another one has acknowledged."""
    with node.store() as call:
        (key,) = call("KEYS", "*:cursors") or [""]
        return int((key and call("HGET", key, to.name)) or 0)


def test_a_node_that_is_away_is_shown_with_the_reason_and_what_waits_for_it(
    make_world: MakeWorld,
) -> None:
    world = make_world(3, replication=QUICK).start()
    us, eu, ap = world.nodes
    written = int(us.insert(*documents(range(3)))["revision"])
    world.settle()
    wait_until(lambda: stored_cursor(us, eu) >= written, "node1 has stored what node2 has")
    eu.kill()
    wait_until(lambda: not target(world, us, eu)["connected"], "the session ended")
    for number in range(10, 17):
        us.insert(*documents([number, 100 + number]))
    ap.insert(*documents([30]))

    def waits() -> tuple[int, int, bool]:
        said = target(world, us, eu)
        return said["lag_transactions"], said["backlog"], said["backlog_is_estimate"]

    # What others write goes there from them, and is no backlog of this node.
    wait_until(lambda: waits() == (7, 7, False), "seven transactions wait")
    one = deployment(us)["nodes"]["node2"]
    assert not one["is_reachable"]
    assert one["error"]
    assert "status" not in one
    assert one["known"]["phase"] == "serving"
    assert one["known"]["heard_s"] > 0
    wait_until(
        lambda: deployment(us)["nodes"]["node2"]["known"]["health"] == "unreachable",
        "it is noticed",
    )
    # A node that was started while the target was away has to count anew. It begins an incarnation
    # with an empty transaction, because not all of its peers can say that nothing is missing.
    us.stop()
    us.begin()
    us.wait_until_serving()
    wait_until(lambda: waits() == (8, 8, False), lambda: f"they wait as before, not {waits()}")
    eu.start()
    world.settle()
    wait_until(lambda: waits() == (0, 0, False), "nothing waits any more")
    said = target(world, us, eu)
    assert said["acknowledged"] == said["cursor"] or int(said["cursor"]) > int(said["acknowledged"])
    assert (said["paused"], said["in_flight"]) == (False, 0)


def test_a_node_that_is_silent_costs_a_second_and_not_the_answer(make_world: MakeWorld) -> None:
    world = make_world(3, replication=QUICK).start()
    us, eu, _ = world.nodes
    world.link(us.name, eu.name).freeze()
    wait_until(
        lambda: "no answer within" in deployment(us)["nodes"]["node2"].get("error", ""),
        "it is said that it is silent",
    )
    assert deployment(us)["nodes"]["node3"]["is_reachable"]
    world.heal()
    wait_until(lambda: deployment(us)["nodes"]["node2"]["is_reachable"], "it is asked again", 30)


def test_many_who_look_ask_no_more_than_one(make_world: MakeWorld) -> None:
    world = make_world(2).start()
    us, _ = world.nodes
    told = [deployment(us) for _ in range(50)]
    moments = {one["asked_at_ms"] for one in told}
    assert len(moments) <= 1 + (max(moments) - min(moments)) / 1000


def test_the_command_shows_all_nodes_once_or_again_and_again(make_world: MakeWorld) -> None:
    world = make_world(2, replication=QUICK).start()
    us, eu = world.nodes
    url = f"http://{HOST}:{eu.admin_port}"
    done = sidecar("status", "--url", url)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [tuple(line.split()[:3]) for line in done.stdout.splitlines()]
    for node in world.nodes:
        assert (node.region, node.name, "healthy") in rows
    shown = json.loads(sidecar("status", "--json", "--url", url).stdout)
    assert shown["nodes"].keys() == {"node1", "node2"}
    refused = sidecar("status", "--watch", "--node-only", "--url", url)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused
    with subprocess.Popen(
        sidecar_command("status", "--watch", "--json", "--url", url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=clean_environ(),
    ) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        assert json.loads(watching.stdout.readline())["asked_by"] == "node2"
        us.kill()
        while json.loads(watching.stdout.readline())["nodes"]["node1"]["is_reachable"]:
            pass
        # The node that is asked may come and go, too.
        eu.stop()
        assert "sidecar:" in watching.stderr.readline()
        eu.begin()
        assert json.loads(watching.stdout.readline())["asked_by"] == "node2"
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30) == 130
    gone = sidecar("status", "--url", f"http://{HOST}:{us.admin_port}")
    assert (gone.returncode, len(gone.stderr.splitlines())) == (1, 1), gone
