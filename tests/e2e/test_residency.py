"""Tenants that are bound to regions: nothing of them leaves these, and nothing of them is lost.

One story on real processes: `shop-*` may be in two of three regions and is at home in one of these,
so that its writes are forwarded; `vault` may be in one.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest
import yaml

from sidecar.api.cursors import Place
from sidecar.core.residency import partition_of
from sidecar.core.token import Token
from sidecar.store.keys import Keys
from tests.captured import all_said
from tests.e2e.conftest import MakeWorld
from tests.waiting import wait_until
from tests.world import DELETE, LIST, REGIONS, WATCH, WRITE, Answer, Node, World, ask, sidecar

US, EU, AP = REGIONS
SHOP, VAULT = "shop-quagga", "vault"
EVALUATION = "/access/v1/evaluation"
TENANTS = {"shop-*": {"home": EU, "regions": [US, EU]}, VAULT: {"regions": [US]}}
# What no other region may ever see: names of the tenants, and of what their relationships name.
OF_SHOP = (SHOP.encode(), b"zebra", b"okapi", b"gnu-hours")
OF_VAULT = (VAULT.encode(), b"wombat", b"dingo")
CONTROL = b"meerkat"

Captured = Mapping[tuple[str, str], list[bytearray]]


def shop(number: int) -> dict[str, Any]:
    condition = {"condition": {"name": "gnu-hours"}} if number % 2 else {}
    return {"resource": f"zebra:{number}", "relation": "viewer", "subject": "okapi:a", **condition}


def in_vault(number: int) -> dict[str, str]:
    return {"resource": f"wombat:{number}", "relation": "viewer", "subject": "dingo:a"}


def everywhere(number: int) -> dict[str, str]:
    return {"resource": f"meerkat:{number}", "relation": "viewer", "subject": "user:a"}


def change(node: Node, path: str, tenant: str, relationships: Iterable[Mapping[str, Any]]) -> str:
    """The token of a write; a home that has just started, or come back, is waited for."""
    body, answers = {"relationships": list(relationships)}, list[Answer]()

    def is_written() -> bool:
        answers.append(node.post(path, body, X_Tenant=tenant))
        return answers[-1].status != 503

    wait_until(is_written, lambda: f"{node.name} writes: {answers[-1]}")
    assert answers[-1].status == 200, f"{node.name}: {answers[-1]}"
    return str(answers[-1].body["token"])


def resources(node: Node, tenant: str) -> set[str]:
    answer = node.post(LIST, {"limit": 5_000}, X_Tenant=tenant)
    assert answer.status == 200, f"{node.name}: {answer}"
    return {one["resource"] for one in answer.body["relationships"]}


def has(node: Node, tenant: str, wanted: set[str]) -> bool:
    """Whether it serves the tenant itself, and shows just these."""
    answer = node.post(LIST, {"limit": 5_000}, X_Tenant=tenant)
    shown = {one["resource"] for one in answer.body.get("relationships", ())}
    return answer.headers["X-Served-By"].endswith(f"/{node.name}") and shown == wanted


def names(kind: str, numbers: Iterable[int]) -> set[str]:
    return {f"{kind}:{number}" for number in numbers}


@pytest.fixture
def captured() -> dict[tuple[str, str], list[bytearray]]:
    """(source, target) -> what went over that link, both ways."""
    return {}


@pytest.fixture
def world(make_world: MakeWorld, captured: dict[tuple[str, str], list[bytearray]]) -> World:
    world = make_world(
        3,
        replication={
            "strategy": "multi_master",
            "tenants": TENANTS,
            "anti_entropy_interval_s": 1,
            "feed_retention_s": 5,
            "probe_interval_max_s": 1,
        },
    )
    for source in world.nodes:
        for target in world.nodes:
            if source is not target:
                captured[source.name, target.name] = world.link(source.name, target.name).record()
    return world.start()


def stored(node: Node) -> bytes:
    """Every key and value of its Redis, and every byte of its files: the append-only file too."""
    with node.store() as call:
        told = [key + repr(value) for key, value in _values(call)]
    files = (file.read_bytes() for file in node.folder.rglob("*") if file.is_file())
    return b"\n".join(["\n".join(told).encode("utf-8", "replace"), *files])


def _values(call: Any) -> Iterator[tuple[str, object]]:
    reads = {
        "hash": ("HGETALL",),
        "set": ("SMEMBERS",),
        "string": ("GET",),
        "zset": ("ZRANGE", "0", "-1"),
        "list": ("LRANGE", "0", "-1"),
        "stream": ("XRANGE", "-", "+"),
    }
    for key in call("KEYS", "*"):
        command, *rest = reads[call("TYPE", key)]
        yield key, call(command, key, *rest)


def assert_nothing_of(wanted: Iterable[bytes], text: bytes, where: str) -> None:
    found = [name.decode() for name in wanted if name in text]
    assert not found, f"{found} in {where}"


def assert_not_here(answer: Answer, regions: Iterable[str]) -> None:
    assert (answer.status, answer.body["error"]) == (403, "tenant_not_here"), answer
    assert ", ".join(sorted(regions)) in answer.body["message"]


def test_a_bound_tenant_never_leaves_its_regions_and_is_not_lost_in_them(
    world: World, captured: Captured
) -> None:
    us, eu, ap = world.nodes
    for number, node in enumerate(world.nodes):
        change(node, WRITE, "default", [everywhere(number)])
    # Large enough to travel compressed.
    change(us, WRITE, SHOP, map(shop, range(400)))
    change(us, WRITE, VAULT, map(in_vault, range(20)))
    written = us.post(WRITE, {"relationships": [shop(1)]}, X_Tenant=SHOP)
    assert written.headers["X-Served-By"] == f"{EU}/{eu.name}", "it is at home there"
    token = change(eu, WRITE, SHOP, map(shop, range(1_000, 1_100)))
    read = us.post(LIST, {}, X_Tenant=SHOP, X_Revision_Token=token)
    assert read.status == 200, "a token of one of its regions is good in the other"
    change(us, DELETE, SHOP, map(shop, range(1_090, 1_100)))
    left = names("zebra", [*range(400), *range(1_000, 1_090)])
    wait_until(lambda: resources(us, SHOP) == resources(eu, SHOP) == left, "both have all of it")

    refused_elsewhere(us, eu, ap, token)
    listed = [ask(n.app_port, "GET", "/access/v1/tenants").body["tenants"] for n in world.nodes]
    assert listed == [["default", SHOP, VAULT], ["default", SHOP], ["default"]]
    told_apart(us, ap)

    # A node outside loses everything and comes back, while the tenants are written.
    ap.kill()
    ap.forget()
    change(us, WRITE, SHOP, map(shop, range(400, 500)))
    change(us, WRITE, VAULT, map(in_vault, range(20, 30)))
    ap.start()
    wait_until(lambda: has(ap, "default", names("meerkat", range(3))), "it has caught up")

    # A node inside does, and gets it back from the other one, its own writes too.
    left |= names("zebra", range(400, 500))
    wait_until(lambda: resources(eu, SHOP) == left, "the new ones are there")
    eu.kill()
    eu.forget()
    eu.start()
    wait_until(lambda: has(eu, SHOP, left), "it has all of it again")
    assert resources(us, SHOP) == left
    wait_until(lambda: has(eu, "default", names("meerkat", range(3))), "and that of everywhere")
    assert resources(us, VAULT) == names("wombat", range(30))
    world.settle()
    # Comparisons of digests travel over the links as well.
    assert us.metrics()["inferadb_sidecar_digest_unequal_buckets{node2}"] == 0
    damage_is_mended(us, eu)

    for (source, target), streams in captured.items():
        said, where = all_said(streams), f"what went between {source} and {target}"
        assert CONTROL in said, where
        assert_nothing_of(OF_VAULT, said, where)
        if ap.name in (source, target):
            assert_nothing_of(OF_SHOP, said, where)
    between = all_said(captured[us.name, eu.name] + captured[eu.name, us.name])
    assert all(name in between for name in OF_SHOP), "this test can see what is told"
    inside, outside = stored(us), stored(ap)
    assert CONTROL in outside
    assert all(name in inside for name in (*OF_SHOP, *OF_VAULT)), "and what is stored"
    assert_nothing_of((*OF_SHOP, *OF_VAULT), outside, "what ap stores")
    assert_nothing_of(OF_VAULT, stored(eu), "what eu stores")

    changed_regions_are_refused(eu)


def refused_elsewhere(us: Node, eu: Node, ap: Node, token: str) -> None:
    """403 for every call, before anything of it goes anywhere; and tokens are not mixed up."""
    bodies: dict[str, object] = {
        WRITE: {"relationships": [shop(1)]},
        DELETE: {"relationships": [shop(1)]},
        "/access/v1/relationships/update": {"updates": []},
        LIST: {},
        WATCH: {},
        EVALUATION: {
            "subject": {"type": "okapi", "id": "a"},
            "action": {"name": "viewer"},
            "resource": {"type": "zebra", "id": "1"},
        },
    }
    for path, body in bodies.items():
        assert_not_here(ap.post(path, body, X_Tenant=SHOP), (US, EU))
        assert_not_here(ap.post(path, body, X_Tenant=SHOP, Idempotency_Key="once"), (US, EU))
        assert_not_here(eu.post(path, body, X_Tenant=VAULT), (US,))
    for tenant, text in (("default", token), (VAULT, token), (SHOP, us.page(1)["token"])):
        mixed = us.post(LIST, {}, X_Tenant=tenant, X_Revision_Token=text)
        assert (mixed.status, mixed.body["error"]) == (400, "invalid_token"), tenant
        assert "bound to other regions" in mixed.body["message"]
    # Anyone can make a token: one that names a node outside leads nobody there.
    forged = Token.decode(token)._replace(node=ap.name, vector={f"{ap.name}.zzzzzzzzzzzz": 2**52})
    sent = {"X_Consistency": "origin", "X_Consistency_Timeout_Ms": "1"}
    answer = us.post(LIST, {}, X_Tenant=SHOP, X_Revision_Token=forged.encode(), **sent)
    assert answer.status in (400, 409), answer
    assert answer.headers["X-Served-By"] == f"{US}/{us.name}"


def told_apart(us: Node, ap: Node) -> None:
    """Status says how each partition does, cursors are of one of them, metrics of the node."""
    status = ask(us.admin_port, "GET", "/status").body
    regions = sorted(tuple(one["regions"]) for one in status["partitions"].values())
    assert regions == [(EU, US), (US,)]
    by_regions = {tuple(one["regions"]): one for one in status["partitions"].values()}
    assert by_regions[EU, US]["targets"].keys() == {"node2"}
    assert by_regions[US,]["targets"] == {}
    assert {one["phase"] for one in by_regions.values()} == {"serving"}
    assert status["targets"].keys() == {"node2", "node3"}
    assert us.metric("targets_total") == us.metric("targets_connected") == 2
    assert ask(ap.admin_port, "GET", "/status").body["partitions"] == {}
    elsewhere = ask(ap.admin_port, "GET", "/deployment")
    assert_nothing_of((*OF_SHOP, *OF_VAULT), json.dumps(elsewhere.body).encode(), "what ap is told")
    told = elsewhere.body["nodes"]["node1"]["status"]["partitions"]
    assert {tuple(one["regions"]) for one in told.values()} == {(EU, US), (US,)}
    feed = Place(status["origin"], int(status["revision"])).encode()
    mixed = us.post(WATCH, {"cursor": feed}, X_Tenant=SHOP)
    assert (mixed.status, mixed.body["error"]) == (410, "write_lost")
    mixed = us.post(LIST, {"cursor": us.page(limit=1)["cursor"]}, X_Tenant=SHOP)
    assert (mixed.status, mixed.body["error"]) == (400, "invalid_cursor")
    shown = sidecar("status", "--node-only", "--url", f"http://127.0.0.1:{us.admin_port}").stdout
    assert f"{EU}, {US}" in shown


def damage_is_mended(us: Node, eu: Node) -> None:
    """Of a bound tenant, too, and by those that have it."""
    keys = Keys("sidecar", partition_of([US, EU]))
    with eu.store() as call:
        assert call("HDEL", keys.tuples(SHOP, "zebra:1"), "viewer#okapi:a") == 1
    done = sidecar("verify", "--config", str(us.config), "--repair", "--from", us.name)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *rest = done.stdout.splitlines()
    assert first == f"tenants of {EU}, {US}:"
    assert rest[0] == f"appears on {eu.name}: zebra:1 viewer okapi:a of tenant {SHOP}"
    assert rest[-1] == "all nodes store the same"
    assert "zebra:1" in resources(eu, SHOP)


def changed_regions_are_refused(node: Node) -> None:
    """It does not start where the settings say another partition than its Redis."""
    node.kill()
    settings = yaml.safe_load(node.config.read_text())
    settings["replication"]["tenants"] = {VAULT: {"regions": [US]}}
    node.config.write_text(yaml.safe_dump(settings))
    node.begin()
    wait_until(lambda: not node.is_running, "it has ended")
    assert f"the tuples of {SHOP} are stored in partition set-" in node.log
