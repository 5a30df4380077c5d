"""What `deploy/` starts: its Valkeys take their settings, `check-config` takes its files, and a
sidecar runs on both.
"""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from tests.promql import DEPLOY
from tests.servers import running_valkey
from tests.world import sidecar

WANTED = {
    "appendonly": "yes",
    "appendfsync": "always",
    "save": "",
    "maxmemory-policy": "noeviction",
}
SECRETS = ("etc/sidecar/secrets/admin.token", "run/secrets/admin.token", "run/secrets/peer.key")


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())
    return found


def region() -> dict[str, Any]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes/region.yaml").read_text())
    (found,) = [one for one in documents if one["kind"] == "StatefulSet"]
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


def common() -> str:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes/common.yaml").read_text())
    (found,) = [one for one in documents if one["kind"] == "ConfigMap"]
    text: str = found["data"]["sidecar.yaml"]
    return text


def valkey_args(place: str) -> list[str]:
    if place == "kubernetes":
        (valkey,) = [c for c in region()["initContainers"] if c["name"] == "valkey"]
        return list(valkey["args"])
    command = compose()["x-valkey"]["command"]
    assert command[0] == "valkey-server"
    return list(command[1:])


def environ_of(place: str, node: str) -> dict[str, str]:
    """What the container of a node gets beside the file."""
    if place == "compose":
        given: dict[str, str] = compose()["services"][node]["environment"]
        return given
    (container,) = [c for c in region()["initContainers"] if c["name"] == "sidecar"]
    named = {one["name"]: one.get("value", node) for one in container["env"]}
    return {name: text.replace("$(INFERADB__NODE)", node) for name, text in named.items()}


def here(args: Sequence[str]) -> list[str]:
    """Without what is only there: its volumes."""
    return [arg for arg in args if not re.match(r"--(unixsocket|dir)\b", arg)]


@pytest.mark.parametrize("place", ["kubernetes", "compose"])
def test_valkey_starts_with_the_settings_of_the_manifests(place: str) -> None:
    args = valkey_args(place)
    with running_valkey(args=[*here(args), "--port 0"]) as valkey, ExitStack() as stack:
        client = redis.Redis(unix_socket_path=str(valkey.socket_path), decode_responses=True)
        stack.callback(client.close)
        for name, value in WANTED.items():
            assert client.config_get(name) == {name: value}
        assert int(client.config_get("maxmemory")["maxmemory"] or 0) >= 512 << 20


@pytest.mark.parametrize("place", ["kubernetes", "compose"])
def test_check_config_takes_the_files_and_the_secrets_beside_them(
    place: str, tmp_path: Path
) -> None:
    """With the paths of a container below a folder here instead of /."""
    # Both are there as soon as nodes prove who they are.
    certificates = pytest.importorskip("tests.certificates")
    text, node = common(), "us-west-1-0"
    if place == "compose":
        text, node = (DEPLOY / "compose/sidecar.yaml").read_text(), "node1"

    def below(text: str) -> str:
        return re.sub(r"(/etc/sidecar|/run/secrets)/", rf"{tmp_path}\1/", text)

    for name in SECRETS:
        secret = tmp_path / name
        secret.parent.mkdir(parents=True, exist_ok=True)
        secret.write_text("0123456789abcdef0123456789abcdef\n")
        secret.chmod(0o400)
    # As docs/deploying.md says that they are to be.
    authority = certificates.Authority()
    issued = authority.issue(tmp_path / "issued", uris=[f"spiffe://example.org/node/{node}"])
    tls = tmp_path / "etc/sidecar/tls"
    tls.mkdir()
    issued.certificate.rename(tls / f"{node}.crt")
    issued.key.rename(tls / f"{node}.key")
    authority.write(tls / "ca.crt")

    file = tmp_path / "sidecar.yaml"
    file.write_text(below(text))
    environ = {name: below(text) for name, text in environ_of(place, node).items()}
    done = sidecar("check-config", str(file), "--node", node, environ=environ)
    assert done.returncode == 0, done.stderr

    for path in [*tls.iterdir(), *(tmp_path / name for name in SECRETS)]:
        path.unlink()
    done = sidecar("check-config", str(file), "--node", node, environ=environ)
    assert done.returncode == 2, "without them it says so"
    assert "security." in done.stderr
