"""The example application between two regions, 50 ms apart: its walk, and a link that is cut.

An instance stands in each region, as its README starts them. What the README lets a reader paste is
pasted here, with the ports of this test.
"""

import contextlib
import http.client
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from examples.documents.permissions import Change
from examples.documents.shelf import Shelf
from tests.e2e.conftest import MakeWorld
from tests.servers import free_ports
from tests.waiting import wait_until
from tests.world import HOST, ROOT, Node, Pace, World, clean_environ, sidecar_command

FAR = Pace(there_s=0.05, back_s=0.05)
README = ROOT / "examples" / "documents" / "README.md"
EVALUATION = "/access/v1/evaluation"


class Said(NamedTuple):
    status: int
    text: str


class Instance:
    """The application in one region, beside the sidecar of that region."""

    def __init__(self, line: str, node: Node, shelf: Path) -> None:
        (self.port,) = free_ports(1)
        program, *words = shlex.split(line)
        assert program == ".venv/bin/python"
        command = [sys.executable, *words]
        for option, here in (("port", self.port), ("sidecar", node.url), ("shelf", shelf)):
            command[command.index(f"--{option}") + 1] = str(here)
        self.log = shelf.with_suffix(f".{node.name}.log")
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=clean_environ(), stdout=output, stderr=output
            )

    def ask(self, method: str, path: str, user: str, text: str | None = None) -> Said:
        with contextlib.closing(http.client.HTTPConnection(HOST, self.port, timeout=30)) as client:
            client.request(method, f"/documents{path}", text, {"X-User": user})
            response = client.getresponse()
            return Said(response.status, response.read().decode().strip())

    def wait_until_serving(self) -> None:
        def serves() -> bool:
            assert self._process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError):
                return self.ask("GET", "/none", "nobody").status == 403
            return False

        wait_until(serves, "the application serves")

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        finally:
            self._process.kill()
            self._process.wait()


class Regions(NamedTuple):
    """us and eu: the application there; shelf: the file of both."""

    world: World
    shelf: Path
    us: Instance
    eu: Instance


@pytest.fixture
def regions(make_world: MakeWorld, tmp_path: Path) -> Iterator[Regions]:
    world = make_world(replication={"probe_interval_max_s": 1}).start()
    for link in world.links:
        link.slow(FAR)
    shelf = tmp_path / "shelf.sqlite"
    lines = re.findall(r"^\S+ -m examples\.documents .*", README.read_text(), re.MULTILINE)
    with contextlib.ExitStack() as stack:
        places = zip(lines, world.nodes, strict=True)
        instances = [Instance(line, node, shelf) for line, node in places]
        for instance in instances:
            stack.callback(instance.end)
        for instance in instances:
            instance.wait_until_serving()
        yield Regions(world, shelf, *instances)


def decides(node: Node, user: str, document: str) -> bool:
    """What the node alone says without a token: whether this user is a viewer."""
    question = {
        "subject": {"type": "user", "id": user},
        "action": {"name": "viewer"},
        "resource": {"type": "document", "id": document},
    }
    return bool(node.post_here(EVALUATION, question).body["decision"])


def shared_with_bob(us: Instance) -> str:
    document = us.ask("POST", "", "alice", "the plan").text
    assert us.ask("PUT", f"/{document}/viewers/bob", "alice").status == 204
    return document


# -- the walk --------------------------------------------------------------------------------------


def walk_of(readme: str) -> tuple[str, list[str]]:
    """The lines to paste, and the lines that they should answer."""
    pasted = "".join(re.findall(r"^```sh walk\n(.*?)^```", readme, re.MULTILINE | re.DOTALL))
    lines = pasted.splitlines()
    return pasted, [line.removeprefix("# ") for line in lines if line.startswith("# ")]


def test_the_walk_of_the_readme_answers_what_it_says(regions: Regions, tmp_path: Path) -> None:
    pasted, expected = walk_of(README.read_text(encoding="utf-8"))
    assert len(expected) >= 12
    us, eu = regions.world.nodes
    ports = {8180: regions.us.port, 8190: regions.eu.port, 8082: us.admin_port, 8090: eu.app_port}
    for said, here in ports.items():
        assert f":{said}" in pasted
        pasted = pasted.replace(f":{said}", f":{here}")
    pasted = pasted.replace(".venv/bin/sidecar", shlex.join(sidecar_command()))
    environ = clean_environ()
    if shutil.which("curl") is None:
        environ["PATH"] = f"{curl_of_python(tmp_path)}:{environ['PATH']}"
    walked = subprocess.run(
        ["sh", "-eu", "-c", pasted],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (walked.stderr, walked.returncode) == ("", 0)
    assert walked.stdout.splitlines() == expected


CURL = """\
import argparse, time, urllib.error, urllib.request
parser = argparse.ArgumentParser()
for name in ("-X", "-d", "-w", "--retry"):
    parser.add_argument(name)
for name in ("-sS", "-sf"):
    parser.add_argument(name, action="store_true")
parser.add_argument("-H", action="append")
parser.add_argument("url")
got = parser.parse_args()
headers = dict(header.split(": ") for header in got.H)
body = None if got.d is None else got.d.encode()
request = urllib.request.Request(got.url, body, headers, method=got.X)
for left in reversed(range(int(got.retry or 0) + 1)):
    try:
        response = urllib.request.urlopen(request, timeout=30)
        break
    except urllib.error.HTTPError as refused:
        response = refused
        if refused.status != 503:
            break
    time.sleep(1 if left else 0)  # as `curl --retry` does
print(response.read().decode(), end="")
print((got.w or "").replace("%{http_code}", str(response.status)).replace("\\\\n", "\\n"), end="")
"""


def curl_of_python(folder: Path) -> Path:
    """A folder with a stand-in for machines without curl: what the walk needs of it, no more."""
    file = folder / "curl"
    file.write_text(f"#!{sys.executable}\n{CURL}")
    file.chmod(0o755)
    return folder


def test_the_stand_in_for_curl_walks_as_well(
    regions: Regions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    test_the_walk_of_the_readme_answers_what_it_says(regions, tmp_path)


# -- a link that is cut ----------------------------------------------------------------------------


def test_a_region_that_has_not_heard_of_a_revocation_does_not_grant(regions: Regions) -> None:
    """The new enemy: without the token the cut region says yes, with it nobody is let in."""
    world, _, us, eu = regions
    document = shared_with_bob(us)
    assert eu.ask("GET", f"/{document}", "bob") == (200, "the plan")
    world.cut()
    assert us.ask("DELETE", f"/{document}/viewers/bob", "alice").status == 204
    assert us.ask("PUT", f"/{document}", "alice", "without bob").status == 204

    assert decides(world.nodes[1], "bob", document), "eu has not heard of it"
    assert eu.ask("GET", f"/{document}", "bob").status == 503
    assert us.ask("GET", f"/{document}", "bob").status == 403
    assert us.ask("GET", f"/{document}", "alice") == (200, "without bob")
    assert eu.ask("PUT", f"/{document}/viewers/bob", "alice").status == 503, "neither may she share"

    world.heal()
    wait_until(lambda: eu.ask("GET", f"/{document}", "bob").status == 403, "eu has heard of it")
    assert eu.ask("GET", f"/{document}", "alice") == (200, "without bob")


def test_a_revocation_that_waits_for_all_regions_says_when_they_do_not_have_it(
    regions: Regions,
) -> None:
    world, _, us, eu = regions
    document = shared_with_bob(us)
    world.settle()
    world.cut()
    revocation = ("DELETE", f"/{document}/viewers/bob?everywhere=yes", "alice")
    assert us.ask(*revocation).status == 202
    assert us.ask("GET", f"/{document}", "bob").status == 403, "it is made here all the same"
    assert eu.ask("GET", f"/{document}", "bob").status == 503
    world.heal()
    wait_until(lambda: us.ask(*revocation).status == 204, "all regions have it")
    assert not decides(world.nodes[1], "bob", document)


def test_a_region_that_is_down_denies_and_says_that_it_cannot_tell(regions: Regions) -> None:
    """The sidecar of the region is away: no answer is no yes."""
    world, _, us, eu = regions
    document = shared_with_bob(us)
    world.nodes[1].kill()
    assert eu.ask("GET", f"/{document}", "alice").status == 503
    assert eu.ask("POST", "", "alice", "another").status == 503
    assert us.ask("GET", f"/{document}", "bob") == (200, "the plan")


def test_what_was_lost_with_a_region_lets_nobody_in_until_its_owner_starts_afresh(
    regions: Regions,
) -> None:
    """A revocation that no other region had heard of goes with the disk that it was on."""
    world, _, us, eu = regions
    document = shared_with_bob(us)
    world.settle()
    world.cut()
    assert us.ask("DELETE", f"/{document}/viewers/bob", "alice").status == 204
    first = world.nodes[0]
    first.kill()
    first.forget()
    world.heal()
    first.start()

    path = f"/{document}"
    said = "permissions were lost; its owner has to share it anew"
    for instance in (us, eu):
        wait_until(lambda at=instance: at.ask("GET", path, "bob") == (403, said), said)  # type: ignore[misc]
    assert decides(first, "bob", document), "the revocation is gone"
    assert us.ask("DELETE", f"{path}/viewers", "bob").status == 403, "that is not for him to do"
    assert us.ask("DELETE", f"{path}/viewers", "alice").status == 204
    assert eu.ask("GET", path, "bob").status == 403
    assert us.ask("PUT", f"{path}/viewers/carol", "alice").status == 204
    assert eu.ask("GET", path, "carol") == (200, "the plan")


# -- tokens ----------------------------------------------------------------------------------------


def tokens_of(shelf: Path, document: str) -> list[str]:
    with contextlib.closing(Shelf(shelf)) as opened:
        found = opened.get(document)
    assert found is not None
    return found.tokens


def test_the_token_of_a_change_takes_the_place_of_those_it_was_checked_with(
    regions: Regions,
) -> None:
    """So that in turns, in whatever region, a document has one: each names all before it."""
    _, shelf, us, eu = regions
    document = shared_with_bob(us)
    seen = tokens_of(shelf, document)
    for instance, user in ((eu, "carol"), (us, "dave"), (eu, "erin")):
        assert instance.ask("PUT", f"/{document}/viewers/{user}", "alice").status == 204
        (token,) = tokens_of(shelf, document)
        assert token not in seen
        seen.append(token)
    for user in ("bob", "carol", "dave", "erin"):
        assert us.ask("GET", f"/{document}", user) == (200, "the plan")


def test_neither_of_two_changes_at_once_forgets_the_token_of_the_other(tmp_path: Path) -> None:
    file = tmp_path / "shelf.sqlite"
    with contextlib.closing(Shelf(file)) as us, contextlib.closing(Shelf(file)) as eu:
        us.put("one", "the plan", "created")
        checked_with = [us.get("one"), eu.get("one")]
        for shelf, document, token in zip((us, eu), checked_with, ("there", "here"), strict=True):
            assert document is not None
            shelf.note("one", token, document.tokens)
        assert tokens_of(file, "one") == ["there", "here"]
        us.note("one", "next", ["there", "here"])
        assert tokens_of(file, "one") == ["next"]


def test_a_token_covers_only_what_its_own_node_has_been_asked_for() -> None:
    change = Change("token", "us-west-1/node1", is_everywhere=False)
    assert change.covered(["old"], ["us-west-1/node1"]) == ["old"]
    for nodes in (["eu-central-1/node2"], ["us-west-1/node1", "eu-central-1/node2"], []):
        assert not change.covered(["old"], nodes)


def test_strangers_may_nothing_and_names_are_checked(regions: Regions) -> None:
    _, _, us, eu = regions
    document = shared_with_bob(us)
    for user in ("bob", "carol"):
        assert eu.ask("PUT", f"/{document}", user, "mine").status == 403
        assert eu.ask("PUT", f"/{document}/viewers/{user}", user).status == 403
        assert eu.ask("DELETE", f"/{document}/viewers", user).status == 403
    assert us.ask("GET", f"/{document}", "carol").status == 403
    assert us.ask("GET", f"/{document}", "alice#owner").status == 400
    assert us.ask("PUT", f"/{document}/viewers/a%20b", "alice").status == 400
    assert us.ask("POST", "", "alice", "x" * 65_537).status == 413
