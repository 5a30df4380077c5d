"""The commands as a person runs them, against a sidecar of its own process."""

import contextlib
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.servers import children_of, free_ports, wait_until_gone
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
HISTORY = DATA / "org-history.ndjson.gz"
START_LIMIT_S = 60.0


@dataclass
class OneNode:
    """A `sidecar run` without a configuration file, on free ports, and its folder."""

    folder: Path
    ports: list[int]
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    def start(self) -> None:
        app, peer, admin = (f"127.0.0.1:{port}" for port in self.ports)
        environ = {
            "INFERADB__LISTEN__APP": app,
            "INFERADB__LISTEN__PEER": peer,
            "INFERADB__LISTEN__ADMIN": admin,
            "INFERADB__REDIS__URL": f"embedded:{self.folder}/store",
        }
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sidecar", "run"],
                cwd=ROOT,
                env={**os.environ, **environ},
                stdout=log,
                stderr=log,
            )
        process, log_file = self.process, self.folder / "log.txt"

        def is_up() -> bool:
            assert process.poll() is None, log_file.read_text()
            return self.is_healthy()

        wait_until(is_up, log_file.read_text, START_LIMIT_S)

    def is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        family = [self.process.pid, *children_of(self.process.pid)]
        self.process.send_signal(number)
        try:
            return self.process.wait(timeout=60)
        finally:
            self.process.kill()
            self.process.wait()
            wait_until_gone(family)


@contextlib.contextmanager
def one_node(folder: Path) -> Iterator[OneNode]:
    folder.mkdir(exist_ok=True)
    node = OneNode(folder, free_ports(3))
    node.start()
    try:
        yield node
    finally:
        node.end()


def sidecar(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "sidecar", *words],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
    )


def succeeded(*words: str, stdin: bytes = b"") -> bytes:
    ended = sidecar(*words, stdin=stdin)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout


def complaint(code: int, *words: str, stdin: bytes = b"") -> str:
    """The one line of a command that ends with `code`."""
    ended = sidecar(*words, stdin=stdin)
    said = ended.stderr.decode()
    assert ended.returncode == code, said
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    return said


def history_at_its_end() -> set[tuple[str, str, str]]:
    left: set[tuple[str, str, str]] = set()
    with gzip.open(HISTORY) as file:
        for line in file:
            transaction = json.loads(line)
            left |= {tuple(each) for each in transaction["insert"]}
            left -= {tuple(each) for each in transaction["delete"]}
    return left


def triples(text: bytes) -> list[tuple[str, str, str]]:
    listed = [json.loads(line) for line in text.splitlines()]
    return [(each["resource"], each["relation"], each["subject"]) for each in listed]


def odd_relationships(seed: int, count: int) -> bytes:
    """Relationships of several tenants with payloads, in names that are hard on text."""
    rng = random.Random(seed)
    odd = "aZ0*é:/|\\\"'{}[],<>&%\u4e2d\U0001f600"

    def word() -> str:
        return "".join(rng.choice(odd) for _ in range(rng.randint(1, 12)))

    lines = []
    for number in range(count):
        content: dict[str, Any] = {
            "resource": f"doc:{number}{word()}",
            "relation": rng.choice(["viewer", "a/b", "Z-9"]),
            "subject": rng.choice([f"user:{word()}", f"team:{word()}#member", "user:*"]),
        }
        tenant = rng.choice(["default", "acme", "Zeta_1"])
        if tenant != "default":
            content["tenant"] = tenant
        if rng.random() < 0.5:
            content["condition"] = {word(): [rng.random(), word(), None, {"n": number}]}
        if rng.random() < 0.3:
            content["expires_at"] = f"2031-01-{rng.randint(10, 28)}T10:00:00.{number + 100_001:06}Z"
        lines.append(json.dumps(content, ensure_ascii=rng.random() < 0.5))
    return "\n".join(lines).encode()


def test_a_history_imports_and_exports_as_what_it_leaves(tmp_path: Path) -> None:
    with one_node(tmp_path / "node") as node:
        said = succeeded("import", str(HISTORY), "--url", node.url).decode()
        assert said.startswith("imported 2,769 transactions (16,179 inserts, 9,211 deletes) in ")
        exported = triples(succeeded("export", "--url", node.url))
        assert exported == sorted(history_at_its_end())
        assert len(exported) == 6_968
        # Once more, from a place in the middle: the same relationships.
        succeeded("import", str(HISTORY), "--url", node.url, "--from-line", "1000")
        assert triples(succeeded("export", "--url", node.url)) == exported


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_exported_imports_elsewhere_without_loss(tmp_path: Path, seed: int) -> None:
    first, second = tmp_path / "first.ndjson", tmp_path / "second.ndjson.gz"
    with one_node(tmp_path / "one") as node:
        succeeded("import", "-", "--url", node.url, stdin=odd_relationships(seed, 1_500))
        succeeded("export", "--url", node.url, "--all-tenants", str(first))
        own = succeeded("export", "--url", node.url, "--tenant", "acme").splitlines()
    with one_node(tmp_path / "other") as node:
        succeeded("import", str(first), "--url", node.url)
        succeeded("export", "--url", node.url, "--all-tenants", str(second))
    lines = first.read_bytes().splitlines()
    assert gzip.decompress(second.read_bytes()).splitlines() == lines
    assert len(lines) == 1_500
    assert own == [line for line in lines if b'"tenant":"acme"' in line]
    contents = [json.loads(line) for line in lines]
    wanted = [json.loads(line) for line in odd_relationships(seed, 1_500).splitlines()]
    assert {json.dumps(each, sort_keys=True) for each in contents} == {
        json.dumps(each, sort_keys=True) for each in wanted
    }


def test_an_import_outlives_the_death_of_the_sidecar(tmp_path: Path) -> None:
    with one_node(tmp_path / "node") as node:
        with subprocess.Popen(
            [sys.executable, "-m", "sidecar", "import", str(HISTORY), "--url", node.url],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as importing:
            while len(triples(succeeded("export", "--url", node.url))) < 1_000:
                assert importing.poll() is None
            node.end(signal.SIGKILL)
            node.start()
            said, complained = importing.communicate(timeout=120)
        assert importing.returncode == 0, complained.decode()
        assert said.startswith(b"imported 2,769 transactions")
        assert triples(succeeded("export", "--url", node.url)) == sorted(history_at_its_end())


def test_an_interrupted_import_says_where_to_resume(tmp_path: Path) -> None:
    with one_node(tmp_path / "node") as node:
        with subprocess.Popen(
            [sys.executable, "-m", "sidecar", "import", str(HISTORY), "--url", node.url],
            cwd=ROOT,
            stderr=subprocess.PIPE,
        ) as importing:
            while not triples(succeeded("export", "--url", node.url)):
                assert importing.poll() is None
            importing.send_signal(signal.SIGINT)
            _, complained = importing.communicate(timeout=60)
        assert importing.returncode == 130, complained.decode()
        line = complained.decode().strip().rpartition(" ")[2]
        assert f"resume with --from-line {line}" in complained.decode()
        assert 1 < int(line) <= 2_769
        succeeded("import", str(HISTORY), "--url", node.url, "--from-line", line)
        assert triples(succeeded("export", "--url", node.url)) == sorted(history_at_its_end())


def test_a_sidecar_ends_cleanly_and_its_folder_is_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    with one_node(folder) as node:
        environ = {
            **os.environ,
            "INFERADB__REDIS__URL": f"embedded:{folder}/store",
            "INFERADB__LISTEN__APP": "127.0.0.1:0",
            "INFERADB__LISTEN__PEER": "127.0.0.1:0",
            "INFERADB__LISTEN__ADMIN": "127.0.0.1:0",
        }
        second = subprocess.run(
            [sys.executable, "-m", "sidecar", "run"],
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 1
        assert "is in use by the sidecar with pid" in second.stderr
        assert "Traceback" not in second.stderr
        assert node.is_healthy()
        assert node.end(signal.SIGINT) == 0
        node.start()
        assert node.end(signal.SIGTERM) == 0
        node.start()


def test_bad_lines_are_named(tmp_path: Path) -> None:
    good = b'{"resource":"doc:1","relation":"viewer","subject":"user:a"}\n'
    with one_node(tmp_path / "node") as node:
        said = complaint(2, "import", "-", "--url", node.url, stdin=good + b"{oops\n")
        assert "standard input:2: is not JSON" in said
        assert "resume with --from-line 2" in said
        twice = b'{"insert":[["doc:1","viewer","user:a"],["doc:1","viewer","user:a"]]}'
        assert "input:1: insert[1]" in complaint(2, "import", "-", "--url", node.url, stdin=twice)
        assert triples(succeeded("export", "--url", node.url)) == [("doc:1", "viewer", "user:a")]


def test_what_cannot_be_done_is_one_line(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    nobody = f"http://127.0.0.1:{port}"
    file = str(tmp_path / "nothing")
    assert f"no sidecar answers at {nobody}" in complaint(1, "export", "--url", nobody)
    assert f"{file}: cannot be read: No such file" in complaint(2, "import", file, "--url", nobody)
    assert "http://127.0.0.1:8080" in complaint(2, "export", "--url", "localhost")
    assert "--url" in complaint(2, "import", str(HISTORY))
    assert "'bogus'" in complaint(2, "bogus")
    assert "tenant" in complaint(2, "export", "--url", nobody, "--tenant", "a b")
    assert file in complaint(2, "check-config", file)
    assert file in complaint(2, "run", "--config", file)


def test_check_config_says_what_a_file_means(tmp_path: Path) -> None:
    file = str(DATA / "seed-config.yaml")
    said = succeeded("check-config", file, "--node", "node2").decode()
    assert "node2 at localhost:50052, zone eu-central-1a  <- this node" in said
    assert "us-west-1 (US West 1) ships to eu-central-1" in said
    other = tmp_path / "other.yaml"
    bound = "replication: {tenants: {'acme-*': {regions: [local]}, b: {regions: [local]}}}\n"
    other.write_text(f"{bound}database: {{dialect: spicedb, url: 'http://h'}}\n")
    said = succeeded("check-config", str(other)).decode()
    assert "tenants              acme-*, b only in local (set-" in said
    assert "database             spicedb at http://h" in said
    assert "node9" in complaint(2, "check-config", file, "--node", "node9")


def test_version_and_help() -> None:
    assert succeeded("--version").startswith(b"sidecar ")
    assert b"check-config" in succeeded("--help")
    lost = sidecar()
    assert (lost.returncode, b"check-config" in lost.stdout, lost.stderr) == (2, True, b"")
