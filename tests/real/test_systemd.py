"""systemd's own opinion of the unit, where there is a systemd to ask."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.promql import DEPLOY

UNIT = DEPLOY / "systemd" / "inferadb-sidecar.service"


@pytest.fixture(autouse=True)
def systemd_is_here() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd: systemd-analyze cannot be found")


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_unit_is_valid(tmp_path: Path) -> None:
    """With a program that there is here: the path of the command is checked, too."""
    unit = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8")
    unit.write_text(text.replace("/opt/inferadb-sidecar/bin/sidecar", sys.executable))
    done = analyze("verify", "--man=no", str(unit))
    assert done.returncode == 0, done.stderr
    assert UNIT.name not in done.stderr, "not even a warning"


def test_the_unit_is_well_confined() -> None:
    """From 0 (safe) to 100; systemd calls what is below 20 OK."""
    done = analyze("security", "--offline=true", "--threshold=20", str(UNIT))
    assert done.returncode == 0, done.stdout
