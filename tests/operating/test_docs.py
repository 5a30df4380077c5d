"""Every command and every configuration of README and docs, run as it stands there.

Shell blocks run in a folder that looks like a clone whose demo is up, with its `config/`, `tests/`
and `data/`; the ports of the demo are replaced by free ones. Those that promote have a demo with a
primary. What cannot run here is listed below with the reason; `tests/unit/test_docs.py` shows that
the shell can read it, and that the files it names are there.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from sidecar.cli import app
from sidecar.security.app_keys import LEAST_KEY
from tests.certificates import Authority
from tests.documents import ROOT, Block, blocks, commands
from tests.operating.test_demo import Demo, running_demo
from tests.world import clean_environ

LIMIT_S = 60.0
A_WHILE_S = 2.0
"""How long what never ends may run; it must have said something by then."""

ONE_OF_ACME = '{"resource": "document:a", "relation": "viewer", "subject": "user:anna"}\n'
KEYS = "secrets/app-keys.yaml"
PRIMARY = ("--strategy", "primary_replica")

# -- what is not run as it stands, and why ---------------------------------------------------------

NOT_HERE = {
    "docker": "needs a container runtime",
    "kubectl": "needs a cluster",
    "helm": "needs a cluster",
    "systemctl": "needs systemd, and to be root",
    "journalctl": "needs systemd",
    "sudo": "needs to be root",
    "git clone": "is how the tests came here",
    "cd inferadb-sidecar": "is how the tests came here",
    "make": "runs what runs this test; that the target is there is looked up",
    "pip install": "fetches packages",
    "npm": "fetches packages",
    ".venv/bin/python -m examples": "is run by tests/operating/test_example.py",
    "promtool": "is Debian's, see tests/real",
    "ping": "needs the network",
}
"""Commands that begin like this."""

REFUSED = {
    r"sidecar accept-loss": "there is no loss to accept",
    r"sidecar parked (drop|release)": "is parked there",
    r"sidecar (adopt|reapply|held)": "no database",
    r"sidecar reset (?!.*--yes)": "nothing was deleted",
}
"""Commands for a case that a healthy demo is not in: they are run, and must say this."""

NEVER_ENDS = ("curl -N", "curl -sN", "--follow")

NOT_OURS = ("apiVersion", "services", "groups", "scrape_configs", "route", "global", "openapi")
"""Blocks of YAML for other programs begin with one of these; they must be YAML."""


def not_here(command: str) -> str | None:
    """Why a command does not run in this test; None when it does."""
    return next((why for begin, why in NOT_HERE.items() if command.startswith(begin)), None)


# -- a place to run them ---------------------------------------------------------------------------


def with_url() -> Iterator[tuple[str, str]]:
    """The commands that ask a listener, `admin` or `app`, which `--url` names."""

    def walk(command: Any, words: str) -> Iterator[tuple[str, str]]:
        for one in command.params:
            if "--url" in one.opts:
                yield words, "app" if ":8080" in str(one.default) or one.required else "admin"
        for name, below in getattr(command, "commands", {}).items():
            yield from walk(below, f"{words} {name}".strip())

    yield from walk(typer.main.get_command(app), "")


def stand_in(base_port: int) -> str:
    """`sidecar` in the shell: asks the demo where no `--url` is given; `run` ends when it is up."""
    admin = [words.split()[0] for words, listener in with_url() if listener == "admin"]
    command = f"{shlex.quote(sys.executable)} -m sidecar"
    return f"""#!/bin/bash
if [ "$1" = run ]; then
  export INFERADB__LISTEN__APP=127.0.0.1:0 INFERADB__LISTEN__ADMIN=127.0.0.1:0
  export INFERADB__LISTEN__PEER=127.0.0.1:0
  export INFERADB__REDIS__URL="embedded:${{FOLDER:-$(mktemp -d -p .)}}"
  {command} "$@" > run.log 2>&1 & pid=$!
  trap 'kill $pid; wait $pid; cat run.log' EXIT
  for _ in $(seq 300); do
    grep -q 'node ready' run.log && exit 0
    kill -0 $pid || exit 1
    sleep 0.1
  done
  exit 1
fi
case " $* " in
  *" --url "*|*" --help "*) ;;
  *) case " {" ".join(dict.fromkeys(admin))} " in
       *" $1 "*) set -- "$@" --url http://127.0.0.1:{base_port + 2} ;;
     esac ;;
esac
exec {command} "$@"
"""


@dataclass(frozen=True)
class Place:
    """A folder that looks like a clone whose demo is up."""

    folder: Path
    demo: Demo

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "bin").mkdir(exist_ok=True)
        program = self.folder / "bin" / "sidecar"
        program.write_text(stand_in(self.demo.base_port))
        program.chmod(0o755)
        path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environ = clean_environ({"PATH": path, "PYTHONPATH": str(ROOT)})
        return subprocess.run(
            ["bash", "-eu", "-c", script],
            cwd=self.folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )


def place(folder: Path, demo: Demo, data: Path) -> Place:
    """config/ and tests/ as here, data/ as the demo has it, and the files that blocks speak of."""
    # Copies: what a block writes must not come into this tree.
    for name in ("config", "deploy", "examples", "tests/data"):
        shutil.copytree(ROOT / name, folder / name, dirs_exist_ok=True)
    (folder / "data").symlink_to(data)
    three = yaml.safe_load((ROOT / "config" / "three-region-primary-replica.yaml").read_text())
    three["redis"] = {"url": "embedded:./node3"}
    (folder / "sidecar.yaml").write_text(yaml.safe_dump(three))
    (folder / "acme.ndjson").write_text(ONE_OF_ACME)
    there = Place(folder, demo)
    app = f"http://127.0.0.1:{demo.base_port}"
    begun = there.run(f"sidecar import acme.ndjson --tenant acme --url {app}")
    assert begun.returncode == 0, begun.stderr
    return there


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Place]]:
    """Demos that the blocks share, each begun when the first block asks for it."""
    with ExitStack() as stack:
        begun: dict[tuple[str, ...], Place] = {}

        def at(*options: str) -> Place:
            if options not in begun:
                folder = tmp_path_factory.mktemp("demo")
                words = ("--data-dir", str(folder / "data"), *options)
                (folder / "clone").mkdir()
                demo = stack.enter_context(running_demo(folder, *words))
                begun[options] = place(folder / "clone", demo, folder / "data")
            return begun[options]

        yield at


# -- shell -----------------------------------------------------------------------------------------


def ported(text: str, base_port: int) -> str:
    """With the ports of this demo in place of the usual ones, of up to three nodes."""

    def port(found: re.Match[str]) -> str:
        return f"{found[1]}:{base_port + int(found[2]) - 8080}"

    return re.sub(r"(127\.0\.0\.1|localhost):(80[89]\d|810\d)\b", port, text)


def checked(command: str) -> str:
    """The command as it is run: what must be refused, what never ends, what is not for here."""
    said = next((words for begin, words in REFUSED.items() if re.match(begin, command)), None)
    if said is not None:
        return (
            f'if out=$({{ {command}\n}} 2>&1); then echo "not refused: $out"; exit 9; fi\n'
            f'grep -qF {shlex.quote(said)} <<< "$out" || {{ echo "$out"; exit 9; }}'
        )
    if any(sign in command for sign in NEVER_ENDS):
        return f'out=$(timeout {A_WHILE_S} bash -c {shlex.quote(command)} || true); echo "$out"'
    if command.startswith("make "):
        return f"make -C {shlex.quote(str(ROOT))} --dry-run {command.removeprefix('make ')}"
    return command


def answers(text: str) -> Iterator[str]:
    """Patterns of the answers that a block shows as comments; `…` stands for anything."""
    for line in text.splitlines():
        if line.startswith("# {"):
            pattern = re.escape(line.removeprefix("# ")).replace("…", ".*")
            yield re.sub(r'"[0-9]+\.\*"', '"[0-9]+"', pattern)


def is_destructive(block: Block) -> bool:
    """Whether it needs a stopped node: then it is given a copy of the data."""
    return re.search(r"^(rm|mv|cp) .*\bdata/", block.text, re.MULTILINE) is not None


@pytest.mark.parametrize("block", blocks("sh"), ids=lambda block: block.where)
def test_a_shell_block_runs(block: Block, places: Callable[..., Place], tmp_path: Path) -> None:
    parts = commands(block.text)
    assert parts, "a block without a command"
    for program in ("curl", "jq", "openssl"):
        if re.search(rf"\b{program} ", block.text) and shutil.which(program) is None:
            pytest.skip(f"there is no {program} here")
    reasons = {why for part in parts if not part.startswith("make") and (why := not_here(part))}
    if reasons:
        pytest.skip("; ".join(sorted(reasons)))
    where = places(*(PRIMARY if "sidecar promote" in block.text else ()))
    if is_destructive(block):
        shutil.copytree(where.folder / "data", tmp_path / "data", ignore=_no_sockets)
        shutil.copytree(
            where.folder / "data" / "node1" / "appendonlydir", tmp_path / "backup/node1"
        )
        where = Place(tmp_path, where.demo)
    if "sidecar reset" in block.text:
        begun = where.run("FOLDER=./node3 sidecar run --config sidecar.yaml --node node3")
        assert begun.returncode == 0, begun.stdout
    script = ported("\n".join(map(checked, parts)), where.demo.base_port)
    done = where.run(script)
    assert done.returncode == 0, f"{script}\n--\n{done.stdout}{done.stderr}\n{where.demo.said}"
    for pattern in answers(block.text):
        assert re.search(pattern, done.stdout), f"{pattern}\n--\n{done.stdout}"


def _no_sockets(folder: str, names: list[str]) -> list[str]:
    return [
        name
        for name in names
        if not (Path(folder) / name).is_file() and not (Path(folder) / name).is_dir()
    ]


# -- settings --------------------------------------------------------------------------------------


def base_for(fragment: Mapping[str, Any]) -> dict[str, Any]:
    """A deployment of the regions that the docs speak of, for a fragment that has none."""
    strategy = fragment.get("replication", {}).get("strategy")
    regions = [
        {
            "id": region,
            "is_primary": strategy == "primary_replica" and number == 1,
            "zones": [
                {
                    "id": f"{region}a",
                    "nodes": [{"id": f"node{number}", "endpoint": f"localhost:{50050 + number}"}],
                }
            ],
        }
        for number, region in enumerate(("us-west-1", "eu-central-1", "eu-west-1"), 1)
    ]
    return {"node": "node1", "replication": {"regions": regions}}


def merged(base: Any, above: Any) -> Any:
    if isinstance(base, dict) and isinstance(above, dict):
        return base | {name: merged(base.get(name), value) for name, value in above.items()}
    return above


def check_config(file: Path, *options: str) -> Result:
    """In this process: nothing but the start of a program would be gained by another one."""
    ours = {name: None for name in os.environ if name.startswith("INFERADB__")}
    return CliRunner().invoke(app, ["check-config", str(file), *options], env=ours)


def prove(folder: Path) -> None:
    """The files that `security` speaks of in the docs, where they are not there yet."""
    authority = Authority()
    node = authority.issue(folder / "tls", ["node1"])
    authority.write(folder / "tls" / "ca.crt")
    for suffix, file in ((".crt", node.certificate), (".key", node.key)):
        (folder / "tls" / f"app{suffix}").write_bytes(file.read_bytes())
    secrets = folder / "secrets"
    secrets.mkdir(exist_ok=True)
    for name in ("peer.key", "admin.token"):
        (secrets / name).write_text("0123456789abcdef" * 4)
    if not (folder / KEYS).exists():
        (folder / KEYS).write_text("keys: []\n")
    for file in secrets.iterdir():
        file.chmod(0o600)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.where)
def test_a_configuration_is_accepted(block: Block, tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all(block.text))
    if any(str(next(iter(one), "")) in NOT_OURS for one in documents if isinstance(one, dict)):
        return
    (fragment,) = documents
    if "keys" in fragment:
        # The file that `security.app.keys_file` names; the keys themselves are shortened there.
        (tmp_path / KEYS).parent.mkdir()
        (tmp_path / KEYS).write_text(block.text.replace("…", "0" * LEAST_KEY))
        fragment = {"security": {"app": {"keys_file": KEYS}}}
    if "agent" in fragment:
        fragment = {"replication": fragment}
    regions = fragment.get("replication", {}).get("regions")
    if isinstance(fragment.get("database", {}).get("stores"), dict):
        # Its regions are those that the stores have.
        wanted = {region for store in fragment["database"]["stores"].values() for region in store}
        base = base_for(fragment)
        kept = [one for one in base["replication"]["regions"] if one["id"] in wanted]
        base["replication"]["regions"] = kept
    else:
        base = base_for(fragment) if regions is None else {"node": "node1"}
    file = tmp_path / "sidecar.yaml"
    file.write_text(yaml.safe_dump(merged(base, fragment)))
    (tmp_path / "winner.lua").write_text((ROOT / "config" / "winner.lua").read_text())
    (tmp_path / "spicedb.key").write_text("secret\n")
    if "security" in fragment:
        prove(tmp_path)
    done = check_config(file)
    assert done.exit_code == 0, f"{file.read_text()}\n--\n{done.output}"
    assert "note:" not in done.output, done.output


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")), ids=lambda f: f.name)
def test_a_file_of_settings_is_accepted(file: Path) -> None:
    done = check_config(file, "--node", "node1")
    assert done.exit_code == 0, done.output
