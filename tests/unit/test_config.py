"""Settings: the seed's files load unchanged, the environment beats the file, mistakes are named."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from sidecar.config import Agent, Config, default_config, load
from sidecar.errors import Refused

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
SEED = DATA / "seed-config.yaml"
SAMPLE = ROOT / "config" / "sidecar.yaml"
AGENT = "INFERADB__REPLICATION__AGENT__"
SHORT = "INFERADB__REPLICATION__"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        path = tmp_path / "sidecar.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return written


def complaint(path: Path | None, *, node: str | None = None, **environ: str) -> str:
    with pytest.raises(Refused) as caught:
        load(path, node=node, environ=environ)
    assert caught.value.code == "bad_config"
    assert "\n" not in caught.value.message
    return caught.value.message


# -- the seed's files ------------------------------------------------------------------------------


def test_the_seeds_file_loads_unchanged_and_may_run() -> None:
    config = load(SEED, environ={})
    assert config.node == "node1"
    assert config.replication.local_region == "us-west-1"
    assert config.replication.region_priorities == ("us-west-1", "eu-central-1", "ap-southeast-1")
    assert config.replication.agent == Agent()
    assert [target.id for target in config.topology.targets_of("node1")] == ["node2"]


@pytest.mark.parametrize(
    ("name", "regions"),
    [
        ("seed-two-region-active-active", 2),
        ("seed-three-region-primary-replica", 3),
        ("seed-multi-master", 1),
    ],
)
def test_the_deployment_patterns_of_the_seed_load(name: str, regions: int) -> None:
    config = load(DATA / f"{name}.yaml", environ={})
    assert len(config.topology.regions) == regions
    assert config.this_node.region == "us-west-1"


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("two-region-active-active", ["node1", "node2"]),
        ("three-region-primary-replica", ["node1", "node2", "node3"]),
        ("multi-region-multi-master", ["node1", "node2", "node3"]),
    ],
)
def test_our_deployment_patterns_serve_every_node_from_one_file(
    name: str, nodes: list[str]
) -> None:
    for node in nodes:
        config = load(ROOT / "config" / f"{name}.yaml", node=node, environ={})
        assert config.this_node.id == node
        assert len(config.topology.targets_of(node)) == len(nodes) - 1


def test_the_environment_block_of_the_seed_loads() -> None:
    lines = (DATA / "seed-environment.sh").read_text().splitlines()
    exports = [line.removeprefix("export ") for line in lines if line.startswith("export ")]
    environ = dict(line.split("=", 1) for line in exports)
    assert len(environ) == 5
    assert load(SEED, environ=environ).replication.agent == Agent()


# -- environment -----------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", list(Agent.model_fields))
def test_each_of_the_five_names_of_the_seed_has_an_effect(setting: str) -> None:
    config = load(SEED, environ={f"{SHORT}{setting.upper()}": "77"})
    assert config.replication.agent.model_dump()[setting] == 77


@pytest.mark.parametrize("setting", list(Agent.model_fields))
def test_the_nested_name_beats_the_short_one_which_beats_the_file(setting: str) -> None:
    environ = {f"{SHORT}{setting.upper()}": "77", f"{AGENT}{setting.upper()}": "99"}
    assert load(SEED, environ=environ).replication.agent.model_dump()[setting] == 99


def test_the_environment_reaches_every_kind_of_setting() -> None:
    environ = {
        "INFERADB__LISTEN__APP": "127.0.0.1:9000",
        "INFERADB__REDIS__URL": "redis://localhost:6379/1",
        "INFERADB__LOG__FORMAT": "json",
        "INFERADB__DRAIN_TIMEOUT_S": "3",
        "INFERADB__REPLICATION__WINDOW": "4",
        "INFERADB__REPLICATION__CONFLICT_RESOLUTION": "source_priority",
        "INFERADB__REPLICATION__REGION_PRIORITIES": '["eu-central-1", "us-west-1"]',
        "INFERADB__REPLICATION__REPLICATION_TARGETS": '{"us-west-1": ["eu-central-1"],'
        '"eu-central-1": ["us-west-1"]}',
    }
    config = load(SEED, environ=environ)
    assert config.app_address == ("127.0.0.1", 9000)
    assert config.redis.url == "redis://localhost:6379/1"
    assert config.log.format == "json"
    assert config.drain_timeout_s == 3
    assert config.replication.window == 4
    assert config.replication.region_priorities == ("eu-central-1", "us-west-1")


def test_an_empty_variable_counts_as_unset_and_foreign_sections_are_ignored() -> None:
    environ = {f"{SHORT}MAX_RETRIES": "", "INFERADB__NODE": "", "INFERADB__STORAGE__URL": "x"}
    assert load(SEED, environ={**environ, "HOME": "/"}) == load(SEED, environ={})


@pytest.mark.parametrize(
    ("name", "value", "complaint_is"),
    [
        (f"{SHORT}MAX_RETRIES", "many", f"agent.max_retries ({SHORT}MAX_RETRIES): should be a wh"),
        (f"{AGENT}MAX_RETRIES", "-1", f"agent.max_retries ({AGENT}MAX_RETRIES): should be at leas"),
        (f"{SHORT}MAX_RETRYS", "1", "unknown setting; is agent.max_retries meant?"),
        (f"{AGENT}WINDOW", "1", f"replication.agent.window ({AGENT}WINDOW): unknown setting"),
        ("INFERADB__LISTEN__APPS", "x", "(INFERADB__LISTEN__APPS): unknown setting"),
        (
            "INFERADB__REDIS__URI",
            "x",
            "(INFERADB__REDIS__URI): unknown setting; allowed: url, prefix",
        ),
        ("INFERADB__DATABASE__NAME", "x", "(INFERADB__DATABASE__NAME): unknown setting"),
        ("INFERADB__LOG__COLOUR", "x", "(INFERADB__LOG__COLOUR): unknown setting"),
        ("INFERADB__NODE__ID", "x", "INFERADB__NODE__ID: unknown setting"),
        ("INFERADB__DRAIN_TIMEOUT_S__X", "1", "INFERADB__DRAIN_TIMEOUT_S__X: unknown setting"),
        ("INFERADB__LISTEN", "8080", "listen (INFERADB__LISTEN): should be a mapping"),
        (f"{SHORT}REGION_PRIORITIES", "[", f"({SHORT}REGION_PRIORITIES): should be a list"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(
    name: str, value: str, complaint_is: str
) -> None:
    assert complaint_is in complaint(SEED, **{name: value})


# -- which node am I -------------------------------------------------------------------------------


def test_unnamed_the_only_node_of_the_local_region_is_meant() -> None:
    environ = {f"{SHORT}LOCAL_REGION": "eu-central-1"}
    assert load(SEED, environ=environ).this_node.id == "node2"


def test_several_nodes_in_the_local_region_are_listed(write: Write) -> None:
    node = '                    - id: node3\n                      endpoint: "localhost:50053"\n'
    text = SEED.read_text().replace('"localhost:50051"\n', f'"localhost:50051"\n{node}')
    said = complaint(write(text))
    assert "node: region us-west-1 has several nodes (node1, node3); name one with --node" in said


def test_the_command_line_beats_the_environment_which_beats_the_file(write: Write) -> None:
    path = write("node: node1\n" + SEED.read_text())
    assert load(path, environ={}).node == "node1"
    assert load(path, environ={"INFERADB__NODE": "node2"}).node == "node2"
    both = load(path, node="node1", environ={"INFERADB__NODE": "node2"})
    assert both.node == "node1"


def test_the_region_follows_from_the_node_so_one_file_serves_all() -> None:
    config = load(SEED, node="node2", environ={})
    assert config.replication.local_region == "eu-central-1"
    assert config.topology.local_region == "eu-central-1"
    assert config.peer_address == ("127.0.0.1", 50052)


@pytest.mark.parametrize(
    ("node", "environ", "place"),
    [
        (None, {}, "node"),
        (None, {f"{SHORT}LOCAL_REGION": "us-west-1"}, "node"),
        (
            None,
            {f"{SHORT}LOCAL_REGION": "us-west-1", "INFERADB__NODE": "node2"},
            "INFERADB__NODE",
        ),
    ],
)
def test_a_local_region_as_strong_as_the_node_must_agree(
    write: Write, node: str | None, environ: dict[str, str], place: str
) -> None:
    path = write("node: node2\n" + SEED.read_text())
    said = complaint(path, node=node, **environ)
    assert f"replication.local_region: 'us-west-1' contradicts {place}, because" in said


def test_a_local_region_in_the_environment_gives_way_to_the_command_line() -> None:
    environ = {f"{SHORT}LOCAL_REGION": "us-west-1"}
    assert load(SEED, node="node2", environ=environ).replication.local_region == "eu-central-1"


@pytest.mark.parametrize(
    ("node", "environ", "place"),
    [("node9", {}, "--node"), (None, {"INFERADB__NODE": "node9"}, "INFERADB__NODE")],
)
def test_a_node_that_is_not_in_the_topology_is_refused(
    node: str | None, environ: dict[str, str], place: str
) -> None:
    said = complaint(SEED, node=node, **environ)
    assert said.endswith(f"{place}: there is no node 'node9'; nodes: node1, node2")


def test_without_a_file_there_is_one_region_and_one_node() -> None:
    config = default_config({})
    assert (config.node, config.replication.local_region) == ("node1", "local")
    assert config.redis.url == "embedded:./data"
    addresses = [config.app_address, config.peer_address, config.admin_address]
    assert [address.port for address in addresses] == [8080, 8081, 8082]
    assert config.topology.targets_of("node1") == ()


# -- mistakes in the file --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "complaint_is"),
    [
        ("max_retries", "max_retires", "agent.max_retires: unknown setting; is max_retries meant?"),
        ("max_retries: 5", "max_retries: true", "agent.max_retries: should be a whole number"),
        ("max_retries: 5", "max_retries: 1.5", "agent.max_retries: should be a whole number"),
        ("batch_size: 100", "batch_size: 0", "agent.batch_size: should be at least 1"),
        ("batch_size: 100", "batch_size: 10001", "agent.batch_size: should be at most 10000"),
        ("active_active", "leader", "replication.strategy: should be one of 'active_active',"),
        ("lww", "newest", "conflict_resolution: should be one of 'lww', 'source_priority',"),
        (
            "is_primary: false",
            "is_primary: true",
            "replication.regions[1].is_primary: eu-central-1 and us-west-1 are both primary",
        ),
        ("node2", "node1", "regions[1].zones[0].nodes[0].id: node 'node1' is also in region us-w"),
        ("50052", "50051", "regions[1].zones[0].nodes[0].endpoint: 'localhost:50051' is the endp"),
        (":50052", "", "replication.regions[1].zones[0].nodes[0].endpoint: should be host:port"),
        (":50052", ":0", "nodes[0].endpoint: needs a port above 0"),
        (":50052", ":65536", "nodes[0].endpoint: should be host:port"),
        ("- id: eu-central-1\n", "- id: us-west-1\n", "regions[1].id: region 'us-west-1' is there"),
        ("id: eu-central-1a", "id: EU", "regions[1].zones[0].id: 'EU' is not an id"),
        ("id: eu-central-1a", "id: no", "zones[0].id: should be text; in YAML put it in quotes"),
        (
            "            - us-west-1\n",
            "            - us-east-1\n",
            "replication_targets.eu-central-1[0]: there is no region 'us-east-1'",
        ),
        (
            "local_region: us-west-1",
            "local_region: us-east-1",
            "replication.local_region: there is no region 'us-east-1'",
        ),
        (
            "        eu-central-1:\n            - us-west-1\n",
            "",
            "replication.replication_targets: writes of eu-central-1 would never reach us-west-1",
        ),
        ("active_active\n", "primary_replica\n", "replication.regions: primary_replica needs one"),
    ],
)
def test_a_mistake_in_the_seeds_file_is_named_with_its_path(
    write: Write, old: str, new: str, complaint_is: str
) -> None:
    text = SEED.read_text()
    # Behind the list of priorities, which names regions that are not there.
    head, regions, tail = text.partition("    # Topology")
    changed = head.replace(old, new) if old in head and "- us" not in old else head
    changed += regions + tail.replace(old, new)
    assert changed != text
    assert complaint_is in complaint(write(changed))


@pytest.mark.parametrize(
    ("text", "complaint_is"),
    [
        ("nodes: x", "nodes: unknown setting; is node meant?"),
        ("replication: []", "replication: should be a mapping of settings"),
        ("redis: {url: 'postgres://u:secret@h'}", "redis.url: should be one of embedded:DIR"),
        ("redis: {url: 'redis://u:secret@h:99999'}", "redis.url: is not a URL"),
        ("redis: {url: 'redis://u:secret@'}", "redis.url: is incomplete"),
        ("redis: {url: 'redis://h/first'}", "redis.url: the path of a Redis URL"),
        ("redis: {url: 'unix://'}", "redis.url: is incomplete"),
        ("redis: {url: 'embedded:'}", "redis.url: names no folder"),
        ("redis: {prefix: '{a}'}", "redis.prefix: should be 1 to 64 letters"),
        ("database: {dialect: spicedb}", "database.url: is required"),
        (
            "database: {dialect: mysql, url: 'http://h'}",
            "database.dialect: should be one of 'spicedb', 'openfga' or 'passthrough'",
        ),
        ("database: {dialect: spicedb, url: 'h:8443'}", "database.url: should be http://HOST"),
        ("database: {dialect: spicedb, url: 'grpc://h'}", "database.url: should be http://HOST"),
        ("database: {dialect: spicedb, url: 'http://'}", "database.url: should be http://HOST"),
        ("database: {dialect: spicedb, url: 'http://h:0'}", "database.url: should be http://HOST"),
        ("database: {dialect: spicedb, url: 'http://h h'}", "database.url: should be http://HOST"),
        ("database: {dialect: spicedb, url: 'http://h:x'}", "database.url: is not a URL"),
        ("database: {dialect: spicedb, url: 'http://h/v1'}", "database.url: should end after"),
        ("database: {dialect: spicedb, url: 'http://h?a=b'}", "database.url: should end after"),
        ("database: {dialect: spicedb, url: 'http://:k@h'}", "database.url: names a user; the key"),
        (
            "database: {dialect: spicedb, url: 'http://h', on_unknown: ask}",
            "database.on_unknown: should be one of 'refuse' or 'pass'",
        ),
        (
            "database: {dialect: spicedb, url: 'http://h', max_connections: 0}",
            "database.max_connections: should be at least 1",
        ),
        (
            "database: {dialect: spicedb, url: 'http://h', stores: {a: {local: {store: S}}}}",
            "database.stores: only openfga has stores, not spicedb",
        ),
        ("listen: {app: ':8080'}", "listen.app: should be host:port"),
        ("listen: {app: '127.0.0.1:8082'}", "listen.admin: 127.0.0.1:8082 is the address of list"),
        ("listen: {app: '0.0.0.0:8081'}", "the endpoint of node1: 127.0.0.1:8081 is the address"),
        ("listen: {peer: '127.0.0.1:8080'}", "listen.peer: 127.0.0.1:8080 is the address of lis"),
        ("log: {level: loud}", "log.level: should be one of 'debug',"),
        ("drain_timeout_s: 3601", "drain_timeout_s: should be at most 3600"),
        ("replication: {window: 0}", "replication.window: should be at least 1"),
        ("replication: {regions: [{id: us}]}", "regions[0].zones: region us has no node"),
        ("replication: {regions: [{id: us, zones: [...]}]}", "regions[0].zones[0]: should be a"),
        ("replication: {conflict_resolution: source_priority}", "region_priorities: source_prio"),
        (
            "replication: {conflict_resolution: source_priority, region_priorities: [lokal]}",
            "region_priorities[0]: there is no region 'lokal', and 'local' is not listed",
        ),
        ("replication: {region_priorities: [a, a]}", "region_priorities[1]: region 'a' is there"),
        ("replication: {conflict_resolution: custom}", "replication.custom_script: conflict reso"),
        ("replication: {custom_script: a.lua}", "replication.custom_script: is not used"),
        ("replication: {conflict_overrides: [{strategy: lww}]}", "overrides[0]: needs either"),
        (
            "replication: {conflict_overrides: [{relation: banned, strategy: never}]}",
            "replication.conflict_overrides[0].strategy: should be one of 'lww'",
        ),
        (
            "{replication: {conflict_overrides: ["
            + ", ".join(f"{{relation: a, strategy: {word}}}" for word in ("lww", "delete_wins"))
            + "]}}",
            "replication.conflict_overrides[1]: 'a' has an override already",
        ),
        ("replication: {tenants: {acme: {home: mars}}}", "tenants.acme.home: there is no region"),
        ("replication: {tenants: {acme: {regions: [mars]}}}", "tenants.acme.regions[0]: there is"),
        ("replication: {tenants: {acme: {regions: []}}}", "tenants.acme.regions: is empty"),
        (
            "replication: {strategy: primary_replica, tenants: {acme: {regions: [local]}}}",
            "replication.tenants.acme.regions: has no place with primary_replica",
        ),
        ("replication: {tenants: {'a b': {}}}", "replication.tenants.a b: is not 1"),
        ("a: 1\na: 2", "line 2, column 1: the key 'a' is there twice"),
        ("log:\n  level: info\n  level: error", "line 3, column 3: the key 'level' is there twice"),
        ("a: [1", "line 1, column 6:"),
        ("- 1", "should be a mapping of settings"),
        ("[" * 5000, "is not YAML"),
        ("? [a]\n: b", "unhashable key"),
        ("1: 2", "[1]: should be text"),
        ("a: 2001-99-99", "is not YAML: month must be in 1..12"),
        ("!!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_a_mistake_in_a_small_file_is_named_with_its_path(
    write: Write, text: str, complaint_is: str
) -> None:
    said = complaint(write(text))
    assert complaint_is in said
    assert "secret" not in said


def test_of_several_mistakes_the_first_is_told_and_the_others_counted(write: Write) -> None:
    said = complaint(write("one: 1\ntwo: 2\nthree: 3\n"))
    assert "one: unknown setting" in said
    assert said.endswith("(and 2 more)")


def test_a_file_that_cannot_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    assert complaint(tmp_path / "none.yaml").endswith(
        "none.yaml: cannot be read: No such file or directory"
    )
    assert "cannot be read: Is a directory" in complaint(tmp_path)
    broken = tmp_path / "broken.yaml"
    broken.write_bytes(b"node: \xff\n")
    assert "is not UTF-8 (byte 6)" in complaint(broken)
    broken.write_bytes(b"#" * (2 << 20))
    assert "is larger than" in complaint(broken)


@pytest.mark.parametrize("text", ["", "# nothing\n", "null\n", "---\n"])
def test_a_file_that_says_nothing_is_the_default(write: Write, text: str) -> None:
    assert load(write(text), environ={}) == default_config({})


# -- secrets, and frozen ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://me:s3cret@h:1/0?password=s3cret&db=2", "redis://me:***@h:1/0?password=***&db=2"),
        ("rediss://:s3cret@h", "rediss://:***@h"),
        ("unix://me:s3cret@/run/valkey.sock?db=1", "unix://me:***@/run/valkey.sock?db=1"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
        ("embedded:./data", "embedded:./data"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    config = load(None, environ={"INFERADB__REDIS__URL": url})
    assert config.redis.url == url
    assert config.redis.safe_url == shown
    assert "s3cret" not in repr(config)


def test_settings_do_not_change_once_read() -> None:
    config = default_config({})
    with pytest.raises(ValidationError):
        config.node = "node2"  # type: ignore[misc]


# -- the database ----------------------------------------------------------------------------------


def test_a_database_needs_a_dialect_and_a_url_and_has_defaults_for_the_rest(write: Write) -> None:
    database = load(
        write("database: {dialect: spicedb, url: 'http://h:8443/'}"), environ={}
    ).database
    assert database is not None
    assert database.url == "http://h:8443"
    assert (database.on_unknown, database.max_connections) == ("refuse", 256)
    assert (database.token_file, database.stores) == (None, {})


def test_the_key_of_the_database_lies_beside_the_file(write: Write) -> None:
    path = write("database: {dialect: spicedb, url: 'https://h', token_file: db.key}")
    database = load(path, environ={}).database
    assert database is not None
    assert database.token_file == path.parent / "db.key"


def with_stores(stores: object, tenants: object = None) -> str:
    regions = [
        {"id": r, "zones": [{"id": r, "nodes": [{"id": f"n-{r}", "endpoint": f"h-{r}:1"}]}]}
        for r in ("us", "eu")
    ]
    replication = {"regions": regions, **({"tenants": tenants} if tenants else {})}
    database = {"dialect": "openfga", "url": "http://h", "stores": stores}
    content = {"node": "n-us", "database": database, "replication": replication}
    return yaml.safe_dump(content, sort_keys=False)


US = {"store": "S1", "models": {"v1": "M1"}}
EU = {"store": "S2", "models": {"v1": "M2"}}


def test_a_store_has_its_ids_in_each_region_it_may_be_in(write: Write) -> None:
    config = load(write(with_stores({"shop": {"us": US, "eu": EU}})), environ={})
    assert config.database is not None
    assert config.database.stores["shop"]["eu"].models == {"v1": "M2"}
    here_only = with_stores({"shop": {"us": US}}, {"shop": {"regions": ["us"]}})
    assert load(write(here_only), environ={}).database is not None


@pytest.mark.parametrize(
    ("stores", "complaint_is"),
    [
        ({}, "database.stores: openfga needs it"),
        ({"shop": {}}, "database.stores.shop: has no id for region us (and 1 more)"),
        ({"shop": {"us": US}}, "database.stores.shop: has no id for region eu"),
        ({"shop": {"us": US, "eu": EU, "ap": EU}}, "stores.shop.ap: there is no region 'ap'"),
        ({"a b": {"us": US, "eu": EU}}, "database.stores.a b: tenant"),
        ({"shop": {"us": {}, "eu": EU}}, "database.stores.shop.us.store: is required"),
        ({"shop": {"us": US | {"model": "M"}, "eu": EU}}, "unknown setting; is models meant?"),
        ({"shop": {"us": {"store": "a/b"}, "eu": EU}}, "shop.us.store: is no id of OpenFGA"),
        (
            {"shop": {"us": {"store": "S1"}, "eu": EU}},
            "database.stores.shop.us.models: has no id for the model 'v1', which another",
        ),
        (
            {"shop": {"us": US, "eu": EU}, "bank": {"us": EU, "eu": EU | {"store": "S3"}}},
            "database.stores.bank.us.store: is the id of the store 'shop' already",
        ),
        (
            {"shop": {r: {"store": "S", "models": {"v1": "M", "v2": "M"}} for r in ("us", "eu")}},
            "database.stores.shop.us.models.v2: is the id of the model 'v1' already (and 1 more)",
        ),
    ],
)
def test_stores_that_would_be_ambiguous_or_missing_are_refused(
    write: Write, stores: object, complaint_is: str
) -> None:
    assert complaint_is in complaint(write(with_stores(stores)))


# -- what may run ----------------------------------------------------------------------------------


def test_the_regions_of_a_tenant_need_paths_that_stay_within_them(write: Write) -> None:
    """Nobody outside may relay for them."""
    regions = [
        {"id": r, "zones": [{"id": r, "nodes": [{"id": f"n-{r}", "endpoint": f"h-{r}:1"}]}]}
        for r in "abc"
    ]
    star = {"a": ["b", "c"], "b": ["a"], "c": ["a"]}

    def settings(*bound: str) -> str:
        tenants = {"acme-*": {"regions": list(bound)}}
        replication = {"regions": regions, "replication_targets": star, "tenants": tenants}
        return yaml.safe_dump({"replication": {"local_region": "a", **replication}})

    said = complaint(write(settings("b", "c")))
    assert "tenants.acme-*.regions: writes of b would never reach c within b, c: " in said
    config = load(write(settings("a", "c")), environ={})
    assert list(config.residency.sets.values()) == [("a", "c")]


def test_a_ring_of_regions_runs_and_its_nodes_relay(write: Write) -> None:
    names = ["a", "b", "c"]
    regions = [
        {"id": r, "zones": [{"id": r, "nodes": [{"id": f"n-{r}", "endpoint": f"h-{r}:1"}]}]}
        for r in names
    ]
    ring = {"a": ["b"], "b": ["c"], "c": ["a"]}
    replication = {"local_region": "a", "regions": regions, "replication_targets": ring}
    config = load(write(yaml.safe_dump({"replication": replication})), environ={})
    assert list(config.topology.relayed()) == [("a", "c"), ("b", "a"), ("c", "b")]


def test_settings_without_effect_are_remarked() -> None:
    assert load(SEED, environ={}).remarks() == (
        "replication.region_priorities: has no effect with conflict_resolution lww",
    )
    assert default_config({}).remarks() == ()


# -- the sample file -------------------------------------------------------------------------------


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from sections(argument)


def every_setting(model: type[BaseModel], path: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        below = list(sections(field.annotation))
        yield f"{path}{name}"
        for section in below:
            yield from every_setting(section, f"{path}{name}.")


def entries(annotation: Any, value: Any) -> Iterator[tuple[type[BaseModel], Any]]:
    """The sections in a value, whatever lists and free mappings, such as tenants, are around."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, value
    elif get_origin(annotation) is dict:
        for one in value.values():
            yield from entries(get_args(annotation)[1], one)
    elif get_origin(annotation) is tuple:
        for one in value:
            yield from entries(get_args(annotation)[0], one)
    elif get_origin(annotation) in (Annotated, Union, UnionType):
        for argument in get_args(annotation):
            yield from entries(argument, value)


def every_written(content: Any, model: type[BaseModel], path: str = "") -> Iterator[str]:
    """The settings that a file names; the keys of free mappings are none."""
    for name, value in content.items():
        yield f"{path}{name}"
        field = model.model_fields.get(name)
        for section, entry in entries(field.annotation, value) if field else ():
            yield from every_written(entry, section, f"{path}{name}.")


def uncommented(text: str) -> str:
    """The sample with its examples active: prose has exactly one space behind its `#`."""
    return re.sub(r"^( *)#(?=[^ \n]|  )", r"\1", text, flags=re.MULTILINE)


def test_the_sample_file_holds_the_defaults_of_the_code() -> None:
    assert load(SAMPLE, environ={}) == default_config({})


def test_what_the_sample_file_leaves_active_has_a_default_and_the_rest_has_none() -> None:
    active = set(every_written(yaml.safe_load(SAMPLE.read_text()), Config))
    defaults = Config().model_dump(mode="json")

    def with_default(content: dict[str, Any], path: str = "") -> Iterator[str]:
        for name, value in content.items():
            if value not in (None, {}) and f"{path}{name}" not in {
                "replication.conflict_overrides",
                "replication.regions",
            }:
                yield f"{path}{name}"
            if isinstance(value, dict):
                yield from with_default(value, f"{path}{name}.")

    assert active == set(with_default(defaults))


def test_the_sample_file_names_every_setting_and_no_other() -> None:
    content = yaml.safe_load(uncommented(SAMPLE.read_text()))
    assert set(every_written(content, Config)) == set(every_setting(Config))


def test_the_examples_in_the_sample_file_are_valid(write: Write) -> None:
    config = load(write(uncommented(SAMPLE.read_text())), environ={})
    assert config.node == "node1"
    assert len(config.topology.nodes()) == 2
