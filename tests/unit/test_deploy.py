"""What lies in `deploy/` is what Docker, Kubernetes, systemd and the sidecar take."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from sidecar.config import load
from sidecar.settings import Config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMMON = (DEPLOY / "kubernetes/common.yaml").read_text(encoding="utf-8")
REGION = (DEPLOY / "kubernetes/region.yaml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text(encoding="utf-8"))
UNIT = (DEPLOY / "systemd/inferadb-sidecar.service").read_text(encoding="utf-8")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
REGIONS = ("us-west-1", "eu-central-1", "ap-southeast-1")
KUBERNETES = ("1.29", "1.33")
"""The first with native sidecars, and a later one."""

Manifest = dict[str, Any]


def manifests(region: str = "us-west-1") -> list[Manifest]:
    """All of a cluster, as the files say that a region is made of them."""
    texts = (COMMON, REGION.replace("us-west-1", region))
    return [one for text in texts for one in yaml.safe_load_all(text)]


def one(kind: str, region: str = "us-west-1") -> Manifest:
    (found,) = [manifest for manifest in manifests(region) if manifest["kind"] == kind]
    return found


def pod(region: str = "us-west-1") -> dict[str, Any]:
    spec: dict[str, Any] = one("StatefulSet", region)["spec"]["template"]["spec"]
    return spec


def container(name: str, region: str = "us-west-1") -> dict[str, Any]:
    spec = pod(region)
    (found,) = [c for c in spec["initContainers"] + spec["containers"] if c["name"] == name]
    return dict(found)


# -- Kubernetes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("release", KUBERNETES)
def test_kubernetes_takes_the_manifests_of_each_region(region: str, release: str) -> None:
    """Strictly: a field that it does not know is an error."""
    for manifest in manifests(region):
        kubernetes_validate.validate(manifest, release, strict=True)


def test_valkey_and_then_the_sidecar_start_before_the_application_and_stop_after_it() -> None:
    spec = pod()
    assert [c["name"] for c in spec["initContainers"]] == ["valkey", "sidecar"]
    assert {c["restartPolicy"] for c in spec["initContainers"]} == {"Always"}
    probes = {
        kind: container("sidecar")[f"{kind}Probe"]["httpGet"]["path"]
        for kind in ("startup", "liveness", "readiness")
    }
    assert probes == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}


def test_nobody_in_a_pod_is_root_or_writes_beside_its_volumes() -> None:
    spec = pod()
    whole = spec["securityContext"]
    assert whole["runAsNonRoot"] is True
    assert whole["runAsUser"] == int(re.findall(r"^USER ([0-9]+):", DOCKERFILE, re.MULTILINE)[0])
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    for each in spec["initContainers"] + spec["containers"]:
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"memory"} <= each["resources"]["limits"].keys()
        assert {"cpu", "memory"} <= each["resources"]["requests"].keys()
    assert spec["automountServiceAccountToken"] is False


def test_what_is_mounted_is_there() -> None:
    spec = pod()
    claims = [c["metadata"]["name"] for c in one("StatefulSet")["spec"]["volumeClaimTemplates"]]
    volumes = {volume["name"] for volume in spec["volumes"]} | set(claims)
    for each in spec["initContainers"] + spec["containers"]:
        assert {mount["name"] for mount in each["volumeMounts"]} <= volumes
    (config,) = [v["configMap"]["name"] for v in spec["volumes"] if v["name"] == "config"]
    assert config == one("ConfigMap")["metadata"]["name"]


def test_the_peer_port_is_for_peers_and_the_admin_port_for_those_who_watch() -> None:
    policy = one("NetworkPolicy")["spec"]
    labels = one("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    who = {rule["ports"][0]["port"]: rule["from"] for rule in policy["ingress"]}
    ports = {p["name"]: p["containerPort"] for p in container("sidecar")["ports"]}
    peers, watchers = who[ports["peer"]], who[ports["admin"]]
    assert {"podSelector": {"matchLabels": policy["podSelector"]["matchLabels"]}} in peers
    assert all("ipBlock" in other for other in peers[1:])
    (only,) = watchers
    assert only["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}


@pytest.mark.parametrize("region", REGIONS)
def test_services_and_budgets_find_the_pods(region: str) -> None:
    stateful = one("StatefulSet", region)
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    assert stateful["spec"]["selector"]["matchLabels"] == labels
    services = [m for m in manifests(region) if m["kind"] == "Service"]
    (headless,) = [s for s in services if s["spec"].get("clusterIP") == "None"]
    assert headless["metadata"]["name"] == stateful["spec"]["serviceName"]
    assert headless["spec"]["publishNotReadyAddresses"] is True
    for service in services:
        assert service["spec"]["selector"] == labels
    budget = one("PodDisruptionBudget", region)["spec"]
    assert budget["selector"]["matchLabels"] == labels
    assert budget["maxUnavailable"] == 1


@pytest.mark.parametrize("region", REGIONS)
def test_each_pod_is_a_node_of_the_configuration(region: str, tmp_path: Path) -> None:
    """The node is called as the pod, its endpoint is the pod's name in the headless service."""
    stateful = one("StatefulSet", region)
    name, count = stateful["metadata"]["name"], stateful["spec"]["replicas"]
    pods = [f"{name}-{number}" for number in range(count)]
    for each in pods:
        config = kubernetes_config(tmp_path, region, each)
        here = config.this_node
        assert (str(here.id), str(here.region)) == (each, region)
        service = f"{stateful['spec']['serviceName']}.{stateful['metadata']['namespace']}"
        assert str(here.endpoint) == f"{each}.{service}.svc.cluster.local:50051"
        assert [str(n.id) for n in config.topology.nodes() if n.region == region] == pods
        ports = {p["name"]: p["containerPort"] for p in container("sidecar")["ports"]}
        assert config.peer_address.port == ports["peer"]
        assert config.admin_address.port == ports["admin"]
        assert config.app_address.host == "127.0.0.1", "only the application in the pod"
        grace_s = pod(region)["terminationGracePeriodSeconds"]
        assert grace_s >= 2 * config.drain_timeout_s
        application = {e["name"]: e["value"] for e in container("application")["env"]}
        assert application["INFERADB_URL"] == f"http://{config.app_address}"


@pytest.mark.parametrize("region", REGIONS)
def test_secrets_are_where_the_configuration_looks_for_them(region: str) -> None:
    shown = {mount["name"]: mount["mountPath"] for mount in container("sidecar")["volumeMounts"]}
    files: set[str] = set()
    for volume in pod(region)["volumes"]:
        sources = volume.get("projected", {}).get("sources", [])
        secrets = [source["secret"] for source in sources] + [volume.get("secret", {})]
        items = [item for secret in secrets for item in secret.get("items", [])]
        files |= {f"{shown[volume['name']]}/{item['path']}" for item in items}
    written = yaml.safe_load(one("ConfigMap")["data"]["sidecar.yaml"])["security"]
    count = one("StatefulSet", region)["spec"]["replicas"]
    wanted = {written["peer"]["tls"]["authority"], written["admin"]["token_file"]}
    for variable in container("sidecar")["env"]:
        if "__TLS__" in variable["name"]:
            wanted |= {
                variable["value"].replace("$(INFERADB__NODE)", f"{region}-{number}")
                for number in range(count)
            }
    assert wanted == files


def kubernetes_config(folder: Path, region: str, name: str) -> Config:
    """The configuration of a pod, with the environment that its manifest gives it."""
    file = folder / "sidecar.yaml"
    file.write_text(one("ConfigMap", region)["data"]["sidecar.yaml"])
    environ = {v["name"]: v.get("value", name) for v in container("sidecar", region)["env"]}
    return loaded(file, {k: t.replace("$(INFERADB__NODE)", name) for k, t in environ.items()})


def loaded(file: Path, environ: dict[str, str]) -> Config:
    if "security" not in Config.model_fields:
        # Until that part of the settings is there.
        written = yaml.safe_load(file.read_text())
        del written["security"]
        file = file.with_name("without-security.yaml")
        file.write_text(yaml.safe_dump(written))
        environ = {k: text for k, text in environ.items() if "__SECURITY__" not in k}
    return load(file, environ=environ)


# -- Compose ---------------------------------------------------------------------------------------


def nodes() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, service in COMPOSE["services"].items():
        if service["image"] == "inferadb-sidecar":
            yield name, service


def test_each_region_of_the_compose_file_has_a_sidecar_and_a_valkey_of_its_own(
    tmp_path: Path,
) -> None:
    regions, stores, published = set(), set(), list[str]()
    for name, service in nodes():
        file = tmp_path / "sidecar.yaml"
        file.write_text((DEPLOY / "compose/sidecar.yaml").read_text(encoding="utf-8"))
        config = loaded(file, service["environment"])
        here = config.this_node
        assert str(here.id) == name
        assert str(here.endpoint) == f"{name}:{config.peer_address.port}"
        regions.add(str(here.region))
        store = re.fullmatch(r"redis://(\w+):6379/0", config.redis.url)
        assert store is not None
        valkey = COMPOSE["services"][store[1]]
        (shared,) = set(valkey["networks"]) & set(service["networks"])
        assert shared == here.region, "nobody else reaches it"
        assert service["depends_on"] == [store[1]]
        stores |= set(valkey["volumes"])
        inner = [int(port.rpartition(":")[2]) for port in service["ports"]]
        assert inner == [config.app_address.port, config.admin_address.port]
        published += [port.rpartition(":")[0] for port in service["ports"]]
        assert float(service["stop_grace_period"].removesuffix("s")) > config.drain_timeout_s
    assert regions == set(REGIONS)
    assert len(stores) == 3
    assert len(set(published)) == 6
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_containers_of_the_compose_file_are_confined() -> None:
    for name, service in COMPOSE["services"].items():
        if "profiles" not in service:
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name


def test_what_the_compose_file_names_is_there() -> None:
    folder = DEPLOY / "compose"
    for name, service in COMPOSE["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (folder / source).exists(), f"{name}: {source}"
            else:
                assert source in COMPOSE["volumes"]
        assert set(service["networks"]) <= COMPOSE["networks"].keys()
        assert set(service.get("secrets", [])) <= COMPOSE["secrets"].keys()
    build = COMPOSE["x-sidecar"]["build"]
    assert (folder / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    secrets = yaml.safe_load((folder / "sidecar.yaml").read_text())["security"]
    named = {secrets["peer"]["shared_key_file"], secrets["admin"]["token_file"]}
    assert named == {f"/run/secrets/{name}" for name in COMPOSE["secrets"]}


# -- the image -------------------------------------------------------------------------------------


def test_the_image_is_not_root_and_asks_itself_whether_it_lives() -> None:
    """What its commands do is tried in tests/real/test_image.py."""
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert "/livez" in last
    assert last.index("USER ") < last.index("ENTRYPOINT ")


# -- systemd ---------------------------------------------------------------------------------------


def unit() -> dict[str, dict[str, list[str]]]:
    sections: dict[str, dict[str, list[str]]] = {}
    for line in UNIT.splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = sections.setdefault(header[1], {})
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            section.setdefault(key, []).append(value)
    return sections


def test_the_service_is_confined_and_has_time_to_drain() -> None:
    """`systemd-analyze verify` says the rest where there is one: tests/real/test_systemd.py."""
    service = unit()["Service"]
    for key in ("NoNewPrivileges", "PrivateDevices", "PrivateTmp", "ProtectHome"):
        assert service[key] == ["yes"]
    assert service["ProtectSystem"] == ["strict"]
    assert service["CapabilityBoundingSet"] == [""]
    assert "root" not in service["User"]
    assert int(service["TimeoutStopSec"][0].removesuffix("s")) > 2 * Config().drain_timeout_s
    assert service["KillMode"] == ["mixed"], "the sidecar ends its Valkey itself"
    environ = dict(text.split("=", 1) for text in service["Environment"])
    config = load(None, environ=environ)
    state = Path("/var/lib") / service["StateDirectory"][0]
    assert Path(config.redis.url.removeprefix("embedded:")).parent == state
