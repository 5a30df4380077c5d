"""Nodes that know each other by certificates: who has not the right one gets nowhere."""

import shutil
import subprocess
from collections.abc import Callable

import pytest

from tests.certificates import Authority, Files
from tests.e2e.conftest import MakeWorld
from tests.secured import ask_tls, speak_tls, with_tls
from tests.waiting import wait_until
from tests.world import LIST, ROOT, WRITE, Node, World, ask, documents, sidecar

QUICK = {"probe_interval_max_s": 1}
AT_HOME_IN_EU = {
    "strategy": "multi_master",
    "tenants": {"acme": {"home": "eu-central-1"}},
    **QUICK,
}


def relationships(count: int) -> dict[str, object]:
    return {
        "relationships": [
            {"resource": f"document:{n}", "relation": "viewer", "subject": "user:alice"}
            for n in range(count)
        ]
    }


def says(node: Node, *words: str) -> Callable[[], bool]:
    """Whether a line of the log has all these words."""
    return lambda: any(all(word in line for word in words) for line in node.log.splitlines())


def forward(node: Node) -> None:
    """Write what another node has to take; it must have been seen to be healthy first."""

    def is_taken() -> bool:
        answer = node.post(WRITE, relationships(3), X_Tenant="acme")
        return answer.status == 200 and answer.headers["X-Served-By"] == "eu-central-1/node2"

    wait_until(is_taken, "a write is forwarded")


def is_connected(node: Node) -> bool:
    return node.metric("targets_connected") > 0


def test_two_regions_replicate_forward_and_are_verified_under_tls(make_world: MakeWorld) -> None:
    world = make_world(replication=AT_HOME_IN_EU)
    with_tls(world, Authority())
    world.start()
    us, eu = world.nodes
    us.insert(*documents(range(20)))
    eu.insert(*documents(range(20, 40)))
    forward(us)
    world.settle()
    assert us.triples() == eu.triples() == {*documents(range(40))}
    for node in world.nodes:
        done = sidecar("verify", "--config", str(node.config), environ=node.settings())
        assert done.returncode == 0, done.stderr + done.stdout
    # What looks from outside needs no certificate for /health, and gets nothing else.
    trusted = world.folder / "ca.crt"
    assert ask_tls(us.peer_port, "GET", "/health", None, files=None, trusted=trusted).status == 200
    refused = ask_tls(us.peer_port, "POST", LIST, {"limit": 1}, files=None, trusted=trusted)
    assert (refused.status, refused.body["error"]) == (401, "peer_unauthenticated")
    assert says(us, "request refused", "it shows no certificate")()


def test_a_wrong_certificate_gets_nowhere_and_the_right_one_is_taken_up_without_restart(
    make_world: MakeWorld,
) -> None:
    """Node 2 tries them one after the other; neither node is restarted."""
    authority, stranger = Authority(), Authority("another authority")
    world = make_world(replication=QUICK)
    files = with_tls(world, authority)
    folder = files["node2"].certificate.parent
    us, eu = world.nodes
    authority.issue(folder, ["node2"], is_expired=True)
    for node in world.nodes:
        node.begin()
    for node in world.nodes:
        node.wait_until_serving()
    eu.insert(*documents(range(5)))

    def refused(issue: Callable[[], Files], *reasons: str) -> None:
        issue()
        # Whoever dials looks at the other's certificate, too.
        wait_until(says(us, "refused", reasons[0]), f"node1 says {reasons[0]}")
        wait_until(says(us, "replication failed", reasons[-1]), f"node1 says {reasons[-1]}")
        assert not is_connected(us)
        assert not is_connected(eu)
        assert us.triples() == set()

    refused(lambda: files["node2"], "certificate has expired")
    refused(
        lambda: stranger.issue(folder, ["node2"]),
        "unable to get local issuer certificate",
    )
    refused(
        lambda: authority.issue(folder, ["node3"]),
        "it says to be 'node2', and what it shows is that of node3",
        "its certificate is that of node3, not of node2",
    )
    authority.issue(folder, uris=["spiffe://example.org/ns/db/node/node2"])
    wait_until(lambda: is_connected(us) and is_connected(eu), "the sessions stand")
    world.settle()
    assert us.triples() == {*documents(range(5))}
    # One that comes again with the same fault is no news.
    lines = [line for line in us.log.splitlines() if "request refused" in line]
    assert sum("expired" in line for line in lines) == 1, lines


def test_an_authority_that_is_taken_away_is_believed_no_more(make_world: MakeWorld) -> None:
    old, new = Authority("old"), Authority("new")
    world = make_world(replication=QUICK)
    files = with_tls(world, old)
    trusted = world.folder / "ca.crt"
    world.start()
    us, eu = world.nodes
    eu.insert(*documents([1]))
    old.write(trusted, new)
    for node in world.nodes:
        new.issue(files[node.name].certificate.parent, [node.name])
    world.cut()
    wait_until(lambda: not is_connected(us), "the session is gone")
    world.heal()
    wait_until(lambda: is_connected(us) and is_connected(eu), "both authorities are believed")
    new.write(trusted)
    stale = old.issue(world.folder / "stale", ["node2"])
    world.cut()
    wait_until(lambda: not is_connected(us), "the session is gone")
    world.heal()
    wait_until(lambda: is_connected(us) and is_connected(eu), "the new one is enough")
    eu.insert(*documents([2]))
    world.settle()
    assert us.triples() == {*documents([1, 2])}
    try:
        answer = ask_tls(us.peer_port, "POST", LIST, {"limit": 1}, files=stale, trusted=trusted)
    except OSError:
        answer = None
    assert answer is None
    wait_until(says(us, "request refused", "unable to get local issuer"), "node1 says why")


def test_plain_and_tls_do_not_meet_and_both_say_why(make_world: MakeWorld) -> None:
    world = make_world(replication=QUICK)
    with_tls(world, Authority())
    us, eu = world.nodes
    eu.environ.clear()
    eu.ask_peer = ask
    for node in world.nodes:
        node.begin()
    for node in world.nodes:
        node.wait_until_serving()
    eu.insert(*documents([1]))
    wait_until(says(us, "request refused", "it does not speak TLS"), "node1 says why")
    wait_until(says(us, "replication failed", "does not speak TLS"), "node1 says why it ships not")
    wait_until(says(eu, "not valid HTTP"), "node2 says why")
    assert not is_connected(us)
    assert not is_connected(eu)
    assert us.triples() == set()


def test_the_certificates_of_the_documentation_are_good(make_world: MakeWorld) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl command here")
    text = (ROOT / "docs" / "security.md").read_text()
    script = text.partition("```sh\n")[2].partition("```")[0]
    world = make_world(replication=QUICK)
    folder = world.folder / "made"
    folder.mkdir()
    subprocess.run(["sh", "-eu", "-c", script], cwd=folder, check=True, capture_output=True)
    for node in world.nodes:
        files = Files(folder / f"{node.name}.crt", folder / f"{node.name}.key")
        speak_tls(node, files, folder / "ca.crt")
    world.start()
    world.nodes[0].insert(*documents([1]))
    world.settle()
    assert world.nodes[1].triples() == {*documents([1])}


def test_a_start_without_its_files_names_the_setting(make_world: MakeWorld) -> None:
    world: World = make_world()
    with_tls(world, Authority())
    node = world.nodes[0]
    (world.folder / "tls-node1" / "node.key").write_text("")
    done = sidecar("run", "--config", str(node.config), "--node", "node1", environ=node.settings())
    assert done.returncode == 2
    assert "security.peer.tls.key" in done.stderr
    assert "is empty" in done.stderr
