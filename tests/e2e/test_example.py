"""The example application between two regions, 50 ms apart: its walk, and a link that is cut.

An instance stands in each region, as its README starts them. What the README lets a reader paste is
pasted here, with the ports of this test.
"""

import contextlib
import http.client
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.conftest import MakeWorld
from tests.servers import free_ports
from tests.waiting import wait_until
from tests.world import HOST, ROOT, Node, Pace, World, clean_environ

FAR = Pace(there_s=0.05, back_s=0.05)
README = ROOT / "examples" / "documents" / "README.md"
EVALUATION = "/access/v1/evaluation"


class Said(NamedTuple):
    status: int
    text: str


class Instance:
    """The application in one region, beside the sidecar of that region."""

    def __init__(self, node: Node, shelf: Path) -> None:
        (self.port,) = free_ports(1)
        where = ["--port", str(self.port), "--sidecar", node.url, "--shelf", str(shelf)]
        command = [sys.executable, "-m", "examples.documents", *where]
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
    """us and eu: the application there."""

    world: World
    us: Instance
    eu: Instance


@pytest.fixture
def regions(make_world: MakeWorld, tmp_path: Path) -> Iterator[Regions]:
    world = make_world(replication={"probe_interval_max_s": 1}).start()
    for link in world.links:
        link.slow(FAR)
    with contextlib.ExitStack() as stack:
        instances = [Instance(node, tmp_path / "shelf.sqlite") for node in world.nodes]
        for instance in instances:
            stack.callback(instance.end)
        for instance in instances:
            instance.wait_until_serving()
        yield Regions(world, *instances)


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
    assert len(expected) >= 7
    for port, instance in (("8180", regions.us), ("8190", regions.eu)):
        pasted = pasted.replace(f":{port}/", f":{instance.port}/")
    environ = clean_environ()
    if shutil.which("curl") is None:
        environ["PATH"] = f"{curl_of_python(tmp_path)}:{environ['PATH']}"
    walked = subprocess.run(
        ["sh", "-eu", "-c", pasted],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (walked.stderr, walked.returncode) == ("", 0)
    # A text ends as it was written, without a new line.
    assert walked.stdout.replace("\n", "") == "".join(expected)


def curl_of_python(folder: Path) -> Path:
    """A stand-in for machines without curl: what the walk needs of it, and no more."""
    file = folder / "curl"
    file.write_text(
        f"#!{sys.executable}\n"
        "import argparse, urllib.error, urllib.request\n"
        "parser = argparse.ArgumentParser()\n"
        "for name in ('-X', '-H', '-d', '-w'):\n"
        "    parser.add_argument(name)\n"
        "parser.add_argument('-sS', action='store_true')\n"
        "parser.add_argument('url')\n"
        "got = parser.parse_args()\n"
        "headers = dict([got.H.split(': ')])\n"
        "body = None if got.d is None else got.d.encode()\n"
        "request = urllib.request.Request(got.url, body, headers, method=got.X)\n"
        "try:\n"
        "    response = urllib.request.urlopen(request, timeout=30)\n"
        "except urllib.error.HTTPError as refused:\n"
        "    response = refused\n"
        "print(response.read().decode(), end='')\n"
        "if got.w:\n"
        "    print(response.status)\n"
    )
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
    world, us, eu = regions
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
    world, us, eu = regions
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
    world, us, eu = regions
    document = shared_with_bob(us)
    world.nodes[1].kill()
    assert eu.ask("GET", f"/{document}", "alice").status == 503
    assert eu.ask("POST", "", "alice", "another").status == 503
    assert us.ask("GET", f"/{document}", "bob") == (200, "the plan")


def test_what_was_lost_with_a_region_lets_nobody_in_until_its_owner_starts_afresh(
    regions: Regions,
) -> None:
    """A revocation that no other region had heard of goes with the disk that it was on."""
    world, us, eu = regions
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


def test_strangers_may_nothing_and_names_are_checked(regions: Regions) -> None:
    _, us, eu = regions
    document = shared_with_bob(us)
    for user in ("bob", "carol"):
        assert eu.ask("PUT", f"/{document}", user, "mine").status == 403
        assert eu.ask("PUT", f"/{document}/viewers/{user}", user).status == 403
        assert eu.ask("DELETE", f"/{document}/viewers", user).status == 403
    assert us.ask("GET", f"/{document}", "carol").status == 403
    assert us.ask("GET", f"/{document}", "alice#owner").status == 400
    assert us.ask("PUT", f"/{document}/viewers/a%20b", "alice").status == 400
    assert us.ask("POST", "", "alice", "x" * 65_537).status == 413
