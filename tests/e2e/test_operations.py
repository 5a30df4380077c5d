"""What an operator does with real nodes: look, accept a loss, drop, remove, reset."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from sidecar.core.token import Token
from tests.e2e.conftest import MakeWorld
from tests.e2e.test_bad_peers import ORIGIN, TRANSACTION, batch, heard, session_with
from tests.waiting import wait_until
from tests.world import HOST, LIST, OPERATOR, WRITE, Node, World, ask, documents, sidecar

QUICK = {"probe_interval_max_s": 1}


def admin_url(node: Node) -> str:
    return f"http://{HOST}:{node.admin_port}"


def told(node: Node, *words: str) -> str:
    """What a command says of a node, which must go well."""
    done = sidecar(*words, "--url", admin_url(node))
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def complaint(*words: str) -> str:
    """The one line of a command that is refused."""
    done = sidecar(*words)
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def status(node: Node) -> dict[str, Any]:
    shown = json.loads(told(node, "status", "--node-only", "--json"))
    assert shown == json.loads(json.dumps(shown))
    return dict(shown)


def unsettled(*nodes: Node) -> list[float]:
    return [node.metrics()["inferadb_sidecar_unsettled_tuples"] for node in nodes]


def copied(node: Node) -> Path:
    assert not node.is_running
    copy = node.folder.with_name(f"{node.name}-copy")
    shutil.copytree(node.folder / "appendonlydir", copy)
    return copy


def put_back(node: Node, copy: Path) -> None:
    shutil.rmtree(node.folder / "appendonlydir")
    shutil.copytree(copy, node.folder / "appendonlydir")


# -- looking ---------------------------------------------------------------------------------------


def test_status_tells_people_and_programs_how_a_node_does(make_world: MakeWorld) -> None:
    world = make_world(replication=QUICK).start()
    us, eu = world.nodes
    us.insert(*documents(range(5)))
    us.delete(*documents([0]))
    world.settle()
    wait_until(lambda: status(us)["unsettled"] == 0, "all is collected")
    shown = status(us)
    assert (shown["node"], shown["region"], shown["phase"]) == ("node1", "us-west-1", "serving")
    assert {o: int(t) for o, t in shown["vector"].items()} == us.vector
    assert shown["origin"] in shown["vector"]
    assert shown["feed_length"] == us.feed_length()
    assert (shown["unsettled"], shown["parked"], shown["removed"]) == (0, [], {})
    assert shown["members"] == ["node1", "node2"]
    assert shown["rows"].keys() == {"node1", "node2"}
    assert shown["collection"]["stable"] is not None
    target = shown["targets"]["node2"]
    assert (target["connected"], target["unreachable"], target["lag_ms"]) == (True, False, 0)
    text = told(us, "status", "--node-only")
    for part in ("node1 in us-west-1", "serving", "node2", "connected", shown["origin"]):
        assert part in text
    # A target that is away is shown with the reason, and what waits for it.
    eu.kill()
    us.delete(*documents([1]))
    wait_until(lambda: status(us)["collection"]["held_by"] == "node2", "it is held back")
    wait_until(lambda: not status(us)["targets"]["node2"]["connected"], "the session ended")
    away = status(us)["targets"]["node2"]
    assert away["last_error"]
    assert away["lag_ms"] > 0
    assert "not connected" in told(us, "status", "--node-only") or "unreachable" in told(
        us, "status", "--node-only"
    )


def test_what_is_asked_in_vain_is_one_line(make_world: MakeWorld) -> None:
    world = make_world(1)
    (node,) = world.nodes
    node.start()
    assert "should be the admin listener" in complaint("status", "--url", node.url)
    assert "not behind" in complaint("accept-loss", "--url", admin_url(node))
    assert "nothing" in told(node, "parked")
    drop = complaint("parked", "drop", "node2.abc", "--url", admin_url(node))
    assert "nothing of node2.abc is parked" in drop
    for method, path, body, code in (
        ("POST", "/accept-loss", {}, (409, "not_behind")),
        ("GET", "/accept-loss", None, (405, "method_not_allowed")),
        ("POST", "/promote", {"region": "us-west-1"}, (409, "no_primary")),
        ("POST", "/status", {}, (405, "method_not_allowed")),
        ("POST", "/parked/drop", {}, (400, "invalid_request")),
        ("POST", "/parked/drop", {"origin": "a.b", "timestamp": 5}, (400, "invalid_request")),
        ("POST", "/parked/drop", {"origin": "a.b", "timestamp": "5"}, (409, "not_parked")),
        ("POST", "/parked/release", {"origin": "a.b", "timestamp": "5"}, (409, "not_parked")),
        ("GET", "/parked/release", None, (405, "method_not_allowed")),
        ("POST", "/deployment", {}, (405, "method_not_allowed")),
    ):
        answer = ask(node.admin_port, method, path, body, OPERATOR)
        assert (answer.status, answer.body["error"]) == code, answer


def test_without_a_database_there_is_nothing_to_adopt(make_world: MakeWorld) -> None:
    world = make_world(1)
    (node,) = world.nodes
    node.start()
    assert status(node)["database"] is None
    for words in (
        ("adopt",),
        ("adopt", "--dry-run"),
        ("reapply",),
        ("held",),
        ("held", "--release"),
    ):
        said = complaint(*words, "--url", admin_url(node))
        assert "no database stands behind this node" in said
    assert "should be the admin listener" in complaint("adopt", "--url", node.url)


def test_of_a_database_that_is_only_forwarded_to_nothing_is_adopted(make_world: MakeWorld) -> None:
    world = make_world(1)
    (node,) = world.nodes
    node.environ |= {
        "INFERADB__DATABASE__DIALECT": "passthrough",
        "INFERADB__DATABASE__URL": f"http://{HOST}:{node.peer_port}",
    }
    node.begin()
    wait_until(lambda: node.status != 0, "it answers")
    assert "replicates nothing" in complaint("adopt", "--url", admin_url(node))
    assert "passthrough" in told(node, "status", "--node-only")


# -- a loss ----------------------------------------------------------------------------------------


def test_a_node_that_cannot_catch_up_goes_on_when_its_operator_accepts_the_loss(
    make_world: MakeWorld,
) -> None:
    world = make_world(replication=QUICK).start()
    restored, other = world.nodes
    restored.insert(*documents([1]))
    world.settle()
    restored.kill()
    copy = copied(restored)
    restored.start()
    restored.insert(*documents([2]))
    world.settle()
    had = {origin: str(timestamp) for origin, timestamp in restored.vector.items()}
    wait_until(lambda: status(other)["rows"].get(restored.name) == had, "it is known what it had")
    restored.kill()
    put_back(restored, copy)
    # The other one can say what is missing, and then nobody can bring it.
    world.link(other.name, restored.name).cut()
    restored.begin()
    wait_until(lambda: "it has caught up" in restored.log, "it knows that it is behind", 30)
    other.kill()
    assert restored.post_here(LIST, {}).body["error"] == "catching_up"
    shown = status(restored)
    assert shown["phase"] == "behind"
    assert shown["behind"]
    assert "accept-loss" in told(restored, "status", "--node-only")
    assert "goes on with what it has" in told(restored, "accept-loss")
    restored.wait_until_serving()
    assert "the operator accepts the loss" in restored.log
    assert restored.triples() == set(documents([1]))
    restored.insert(*documents([3]))
    assert "not behind" in complaint("accept-loss", "--url", admin_url(restored))
    # And should the other one come back after all, it is caught up with: nothing is lost.
    world.heal()
    other.start()
    wait_until(lambda: restored.log.count("it has caught up") == 2, "it is told again", 30)
    restored.wait_until_serving()
    world.settle(limit_s=40)
    assert restored.triples() == other.triples() == set(documents([1, 2, 3]))


def test_a_token_of_a_write_that_nobody_has_is_gone(make_world: MakeWorld) -> None:
    world = make_world(replication=QUICK)
    us, eu = world.nodes
    world.cut()
    us.start()
    token = us.insert(*documents([1]))["token"]
    us.kill()
    us.forget()
    world.heal()
    for node in world.nodes:
        node.begin()
    for node in world.nodes:
        node.wait_until_serving()

    def is_gone(node: Node) -> bool:
        headers = {"X_Revision_Token": token, "X_Consistency_Timeout_Ms": "0"}
        answer = node.post(LIST, {}, **headers)
        return (answer.status, answer.body.get("error")) == (410, "write_lost")

    lost = next(iter(Token.decode(token).vector))
    wait_until(lambda: is_gone(us) and is_gone(eu), f"both know that {lost} has ended", 30)


# -- what is parked --------------------------------------------------------------------------------


async def test_what_is_parked_is_listed_and_can_be_dropped(make_world: MakeWorld) -> None:
    world = make_world()
    node = world.nodes[0]
    node.start()
    ahead = {**TRANSACTION, "timestamp": "8" + "0" * 15}
    async with session_with(node) as socket:
        await socket.send_str(batch(json.dumps(ahead)))
        assert "ahead of the clock" in (await heard(socket))["parked"][ORIGIN]
    (one,) = [json.loads(line) for line in told(node, "parked", "--json").splitlines()]
    assert (one["origin"], one["timestamp"]) == (ORIGIN, ahead["timestamp"])
    assert "ahead of the clock" in one["reason"]
    assert ORIGIN in told(node, "parked")
    assert told(node, "parked", "list", "--json") == told(node, "parked", "--json")
    # The node that had it is not there any more: nobody can try again.
    release = complaint("parked", "release", ORIGIN, "--url", admin_url(node))
    assert "no node has sent it again" in release
    assert "ahead of the clock" in release
    parked = "inferadb_sidecar_parked_transactions"
    wait_until(lambda: node.metrics()[parked] == 1, "it is counted")
    assert status(node)["parked"] == [one]
    assert f"dropped the transaction {ahead['timestamp']}" in told(node, "parked", "drop", ORIGIN)
    assert "dropped a parked transaction" in node.log
    assert told(node, "parked", "--json") == ""
    wait_until(lambda: node.metrics()[parked] == 0, "it is not counted any more")
    assert node.triples() == set()
    assert node.vector[ORIGIN] == int(ahead["timestamp"])
    node.insert(*documents([1]))
    assert max(t for o, t in node.vector.items() if o != ORIGIN) < 4 * 10**15


async def test_what_is_parked_is_tried_again_and_told_what_became_of_it(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    node = world.nodes[0]
    node.start()
    newer = {**TRANSACTION, "format": 2}
    async with session_with(node) as socket:
        await socket.send_str(batch(json.dumps(newer)))
        assert "format 2" in (await heard(socket))["parked"][ORIGIN]
        told_again = asyncio.create_task(
            asyncio.to_thread(complaint, "parked", "release", ORIGIN, "--url", admin_url(node))
        )
        while not told_again.done():
            # As every sender does, each second; here faster.
            await socket.send_str(batch(json.dumps(newer)))
            await heard(socket)
        assert "it was tried again, and waits: it has format 2" in await told_again
        released = asyncio.create_task(asyncio.to_thread(told, node, "parked", "release", ORIGIN))
        await asyncio.to_thread(
            wait_until,
            lambda: node.log.count("the operator has a parked transaction tried again") == 2,
            "it is asked for once more",
        )
        await socket.send_str(batch(json.dumps(TRANSACTION)))
        await heard(socket)
        assert f"applied the transaction {TRANSACTION['timestamp']}" in await released
    assert told(node, "parked", "--json") == ""
    assert "a parked transaction is applied" in node.log


# -- nodes that leave and come back ----------------------------------------------------------------


def with_members(world: World, *names: str, **more: object) -> None:
    """Write these nodes into the files of those of them that are to be restarted.

    more: further settings of `replication`.
    """
    for node in world.nodes:
        if node.name in names:
            regions = [world.seen_by(node, n.region) for n in world.nodes if n.name in names]
            node.config.write_text(
                yaml.safe_dump({"replication": {"regions": regions, **QUICK, **more}})
            )


def restarted(*nodes: Node) -> None:
    for node in nodes:
        node.stop()
    for node in nodes:
        node.begin()
    for node in nodes:
        node.wait_until_serving()


def test_a_removed_node_comes_back_only_with_new_data(make_world: MakeWorld) -> None:
    world = make_world(3, replication=QUICK).start()
    first, second, third = world.nodes
    first.insert(*documents(range(10)))
    world.settle()
    third.stop()
    first.delete(*documents(range(5)))
    wait_until(lambda: unsettled(first) == [5], "they wait for the node that is away")

    with_members(world, "node1", "node2")
    restarted(first, second)
    wait_until(lambda: unsettled(first, second) == [0, 0], "collection goes on", 40)
    assert status(first)["removed"].keys() == {"node3"}

    # It comes back as if nothing had happened, with what the others have forgotten.
    third.begin()
    wait_until(lambda: "sidecar reset" in third.log, "it is told why", 30)
    wait_until(lambda: third.status == 503, "it is not ready")
    wait_until(
        lambda: third.post_here(WRITE, _one()).body["error"] == "node_removed", "it takes no writes"
    )
    assert "was removed" in first.log
    # Nor is it enough to put it into the topology again.
    third.stop()
    seen = len(third.log)
    with_members(world, "node1", "node2", "node3")
    restarted(first, second)
    third.begin()
    wait_until(lambda: "sidecar reset" in third.log[seen:], "it is told again", 30)
    assert first.triples() == second.triples() == set(documents(range(5, 10)))

    words = ("reset", "--config", str(third.config), "--node", "node3")
    running = reset(third, *words, "--yes")
    assert (running.returncode, "in use by the sidecar" in running.stderr) == (1, True), running
    third.stop()
    unsure = reset(third, *words)
    assert (unsure.returncode, "--yes" in unsure.stderr) == (2, True), unsure
    assert "10 tuples" in unsure.stdout
    done = reset(third, *words, "--yes")
    assert (done.returncode, done.stderr) == (0, ""), done
    again = reset(third, *words, "--yes")
    assert (again.returncode, "nothing to reset" in again.stderr) == (2, True), again

    third.start()
    world.settle(limit_s=40)
    assert third.triples() == first.triples() == set(documents(range(5, 10)))
    assert third.digest() == first.digest()
    third.insert(*documents([20]))
    third.delete(*documents([5]))
    world.settle()
    wait_until(lambda: unsettled(*world.nodes) == [0, 0, 0], "collection goes on with it", 30)
    assert first.triples() == set(documents([*range(6, 10), 20]))


def reset(node: Node, *words: str) -> Any:
    """Run the command with the environment of the node: that is where its folder is named."""
    return sidecar(*words, environ=node.settings())


def _one() -> dict[str, object]:
    return {"relationships": [{"resource": "a:b", "relation": "c", "subject": "d:e"}]}
