"""What the Dockerfile does, in a bare environment: no image can be built without Docker.

The commands are those of the file itself. What stays untried is the base image, and that root
cannot be written to.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from sidecar.tether import tethered
from tests.promql import DEPLOY
from tests.real.dockerfile import command, environment, only, stages
from tests.servers import children_of, free_ports, wait_until_gone
from tests.waiting import wait_until
from tests.world import HOST, ROOT, ask

BUILD, LAST = stages(DEPLOY / "Dockerfile")
# As pip is set up here: where it finds packages is no part of the image.
PIP = {name: text for name, text in os.environ.items() if name.startswith("PIP_")}
LIMIT_S = 600


class Image:
    """A folder that stands for the root of the image: its paths are found below it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # `python` of the base image: the interpreter behind the virtual environment of the tests.
        self.python = root / "usr" / "bin" / "python"
        self.python.parent.mkdir(parents=True)
        self.python.symlink_to(Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}"))
        self.environ = {"PATH": f"{self.python.parent}:/usr/bin:/bin", "HOME": str(root)}
        self.workdir = root

    def here(self, text: str) -> str:
        """The paths of the image in a text, as they are below this root."""
        for path in ("/opt/sidecar", "/wheels", "/src", "/data"):
            text = text.replace(path, f"{self.root}{path}")
        return text

    def run(
        self, words: Sequence[str], environ: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """With nothing in the environment but what is given."""
        return subprocess.run(
            words,
            cwd=self.workdir,
            env=dict(environ),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def build(self) -> None:
        for word, rest in BUILD[1:]:
            if word == "WORKDIR":
                self.workdir = Path(self.here(rest))
                self.workdir.mkdir(parents=True)
            elif word == "COPY":
                *sources, target = rest.split()
                self._copy(sources, self.workdir / target)
            else:
                assert word == "RUN", word
                done = self.run(["sh", "-ec", self.here(rest)], {**self.environ, **PIP})
                if "Could not find a version" in done.stderr or "connection" in done.stderr.lower():
                    pytest.skip(f"pip does not get at packages: {done.stderr[-300:]}")
                assert done.returncode == 0, f"{rest}\n{done.stdout}\n{done.stderr}"
        self.workdir = Path(self.here(only(LAST, "WORKDIR")[0]))
        self.workdir.mkdir()

    def _copy(self, sources: Sequence[str], target: Path) -> None:
        for source in sources:
            path = ROOT / source
            if path.is_dir():
                shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, target / path.name if len(sources) > 1 else target)

    def running_environ(self, **more: str) -> dict[str, str]:
        """Of the last stage, without the tools of the machine."""
        base = {"PATH": "", "HOME": str(self.root)}
        made = environment(LAST, base)
        return {name: self.here(text) for name, text in made.items()} | more

    def program(self, words: Sequence[str]) -> list[str]:
        """The words of a command, its program found as the image finds it."""
        found = shutil.which(words[0], path=self.running_environ()["PATH"])
        assert found is not None, f"{words[0]} is not in the PATH of the image"
        return [found, *words[1:]]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    made = Image(tmp_path_factory.mktemp("image"))
    made.build()
    return made


def test_the_last_stage_takes_over_what_the_first_has_made() -> None:
    (copied,) = only(LAST, "COPY")
    _, source, target = copied.split()
    assert source == target, "a virtual environment cannot be moved"
    assert only(BUILD, "FROM")[0].split()[0] == only(LAST, "FROM")[0], "the same Python"


def test_what_is_installed_is_the_sidecar_with_its_scripts_and_no_pip(image: Image) -> None:
    done = image.run(image.program(["sidecar", "--version"]), image.running_environ())
    assert done.returncode == 0, done.stderr
    assert "0." in done.stdout
    asked = "import sidecar, os; print(len(os.listdir(f'{sidecar.__path__[0]}/lua')))"
    done = image.run(image.program(["python", "-c", asked]), image.running_environ())
    assert int(done.stdout) == len([*(ROOT / "lua").iterdir()])
    done = image.run(image.program(["python", "-m", "pip"]), image.running_environ())
    assert "No module named pip" in done.stderr


@pytest.fixture
def node(image: Image, tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A container of it, so to speak: its entry point, its command. Ports of app and admin."""
    app, peer, admin = free_ports(3)
    config = tmp_path / "sidecar.yaml"
    config.write_text(
        f"listen: {{app: '{HOST}:{app}', peer: '{HOST}:{peer}', admin: '{HOST}:{admin}'}}\n"
    )
    words = [*command(LAST, "ENTRYPOINT"), *command(LAST, "CMD")]
    assert words[-1] == "/etc/sidecar/sidecar.yaml"
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            tethered(image.program([*words[:-1], str(config)]), signal.SIGKILL),
            cwd=image.workdir,
            env=image.running_environ(),
            stdout=output,
            stderr=output,
        )

    def serves() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return ask(app, "GET", "/health").status == 200
        except OSError:
            return False

    try:
        wait_until(serves, lambda: f"serves: {log.read_text()}", 30.0)
        yield app, admin
    finally:
        family = children_of(process.pid)
        process.send_signal(signal.Signals[only(LAST, "STOPSIGNAL")[0]])
        process.wait(timeout=30)
        wait_until_gone(family)


def test_a_node_runs_from_it_and_says_that_it_lives(image: Image, node: tuple[int, int]) -> None:
    app, admin = node
    assert ask(app, "GET", "/health").body["status"] == "healthy"
    assert ask(admin, "GET", "/livez").status == 200
    assert [*image.workdir.glob("appendonlydir/*")], "its data are in the volume"
    words = image.program(command(LAST, "HEALTHCHECK"))
    here = [word.replace(":8082", f":{admin}") for word in words]
    assert image.run(here, image.running_environ()).returncode == 0


def test_the_health_check_fails_where_nobody_answers(image: Image) -> None:
    (port,) = free_ports(1)
    words = image.program(command(LAST, "HEALTHCHECK"))
    here = [word.replace(":8082", f":{port}") for word in words]
    assert here != words
    assert image.run(here, image.running_environ()).returncode != 0
