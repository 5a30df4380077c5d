"""Worlds whose nodes prove to each other who they are, and what a test asks them with."""

import contextlib
import http.client
import json
import ssl
import time
from pathlib import Path

from sidecar.security.names import SIGNATURE
from sidecar.security.signing import Signature, body_hash
from tests.certificates import Authority, Files
from tests.world import HOST, Answer, Node, World, ask

KEY = "of the tests, and at least 16 characters"


def with_tls(world: World, authority: Authority) -> dict[str, Files]:
    """Have every node speak TLS, with a certificate of this authority; node -> its files."""
    trusted = authority.write(world.folder / "ca.crt")
    files = {}
    for node in world.nodes:
        files[node.name] = authority.issue(world.folder / f"tls-{node.name}", [node.name])
        speak_tls(node, files[node.name], trusted)
    return files


def speak_tls(node: Node, files: Files, trusted: Path) -> None:
    named = {"CERTIFICATE": files.certificate, "KEY": files.key, "AUTHORITY": trusted}
    node.environ |= {f"INFERADB__SECURITY__PEER__TLS__{n}": str(p) for n, p in named.items()}

    def asked(port: int, method: str, path: str, body: object) -> Answer:
        return ask_tls(port, method, path, body, files=files, trusted=trusted)

    node.ask_peer = asked


def ask_tls(
    port: int, method: str, path: str, body: object, *, files: Files | None, trusted: Path
) -> Answer:
    """One request over TLS, with the certificate in these files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(trusted)
    if files is not None:
        context.load_cert_chain(files.certificate, files.key)
    client = http.client.HTTPSConnection(HOST, port, timeout=30, context=context)
    with contextlib.closing(client):
        raw = None if body is None else json.dumps(body).encode()
        client.request(method, path, raw, {"Content-Type": "application/json"})
        response = client.getresponse()
        return Answer(response.status, dict(response.headers), json.loads(response.read()))


def with_key(world: World, key: str = KEY) -> Path:
    """Have every node prove itself by a key; the file that it stands in."""
    path = world.folder / "peer.key"
    path.write_text(f"{key}\n")
    path.chmod(0o600)
    for node in world.nodes:
        share_key(node, path)
    return path


def share_key(node: Node, path: Path) -> None:
    node.environ |= {"INFERADB__SECURITY__PEER__SHARED_KEY_FILE": str(path)}

    def asked(port: int, method: str, path: str, body: object) -> Answer:
        raw = b"" if body is None else json.dumps(body).encode()
        return ask(port, method, path, raw or None, signed(node.name, method, path, raw))

    node.ask_peer = asked


_numbers = iter(range(1, 1_000_000))


def signed(
    to: str,
    method: str,
    path: str,
    raw: bytes,
    *,
    key: str = KEY,
    by: str = "node1",
    ago_s: int = 0,
) -> dict[str, str]:
    """The header of a request that somebody signs who may be a node."""
    at = int((time.time() - ago_s) * 1000)
    signature = Signature(by, "tests", next(_numbers), at, body_hash(raw))
    return {SIGNATURE: signature.signed(key.encode(), to, method, path)}
