"""The code about itself: what may import what, what no file may name, what the wheel holds."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = sorted((ROOT / "sidecar").rglob("*.py"))

# Spelled apart, so that this file does not name them.
REGISTRY_HOSTS = [
    ".".join(words).encode()
    for words in [
        ("pypi", "org"),
        ("pypi", "python", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("yarnpkg", "com"),
        ("crates", "io"),
        ("golang", "org"),
        ("rubygems", "org"),
        ("anaconda", "org"),
        ("luarocks", "org"),
        ("debian", "org"),
    ]
]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield module
                yield from (f"{module}.{name.name}" for name in names)
            case ast.ImportFrom():
                pytest.fail(f"{path}: relative import")


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False, text=True
    )
    if listed.returncode != 0:
        pytest.skip("this tree is not a git clone")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_core_imports_the_standard_library_itself_and_the_errors() -> None:
    for path in (ROOT / "sidecar" / "core").rglob("*.py"):
        for name in imports(path):
            is_ours = name == "sidecar" or name.startswith(("sidecar.core", "sidecar.errors"))
            assert is_ours or name.split(".")[0] in sys.stdlib_module_names, f"{path}: {name}"


def test_core_has_no_clock_no_chance_and_no_waiting() -> None:
    banned = {"asyncio", "random", "secrets", "time", "logging", "os", "socket", "threading"}
    for path in (ROOT / "sidecar" / "core").rglob("*.py"):
        met = {name.split(".")[0] for name in imports(path)} & banned
        assert not met, f"{path}: {met}"
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in tree), path


def test_only_the_command_line_imports_the_app() -> None:
    for path in CODE:
        if path.is_relative_to(ROOT / "sidecar" / "cli") or path == ROOT / "sidecar" / "app.py":
            continue
        assert not any(name.startswith("sidecar.app") for name in imports(path)), path


def test_no_part_of_a_node_imports_the_library() -> None:
    for path in CODE:
        if path.is_relative_to(ROOT / "sidecar" / "library"):
            continue
        if path != ROOT / "sidecar" / "__init__.py":
            assert not any(name.startswith("sidecar.library") for name in imports(path)), path


def test_only_the_store_talks_to_redis() -> None:
    for path in CODE:
        if path.is_relative_to(ROOT / "sidecar" / "store"):
            continue
        assert not any(name.split(".")[0] == "redis" for name in imports(path)), path


def test_no_file_names_the_host_of_a_package_registry() -> None:
    for path in tracked_files():
        content = path.read_bytes().lower()
        named = [host.decode() for host in REGISTRY_HOSTS if host in content]
        assert not named, f"{path} names {named}"


def test_the_scripts_are_in_the_wheel_and_the_command_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["sidecar"]
    assert wheel["force-include"] == {"lua": "sidecar/lua"}
    assert project["project"]["name"] == "inferadb-sidecar"
    assert project["project"]["scripts"] == {"sidecar": "sidecar.cli:main"}


def test_the_changelog_knows_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{project['project']['version']}]" in changelog
