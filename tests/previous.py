"""The code of the release before this one, taken from the history of this repository.

It is that of the newest tag before the present commit. Before there are tags it is named in
`previous_release.txt`: version and commit.
"""

import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
NAMED = Path(__file__).parent / "previous_release.txt"


class Previous(NamedTuple):
    """What there was before."""

    version: str
    commit: str


class NoHistoryError(Exception):
    """This clone does not have it; the text says what is missing."""


def previous_release() -> Previous:
    """Which one it is. Raises NoHistoryError."""
    tag = _git("describe", "--tags", "--abbrev=0", "HEAD^")
    if tag.returncode == 0:
        version = tag.stdout.decode().strip()
        return Previous(version.removeprefix("v"), version)
    version, commit = NAMED.read_text(encoding="utf-8").split()
    return Previous(version, commit)


def check_out(previous: Previous, folder: Path) -> Path:
    """Lay its code down in a folder that is not there yet. Raises NoHistoryError."""
    packed = _git("archive", "--format=tar", previous.commit)
    if packed.returncode != 0:
        raise NoHistoryError(f"no {previous.commit} here: {packed.stderr.decode().strip()}")
    folder.mkdir(parents=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
    return folder


def _git(*words: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=False)
    except FileNotFoundError:
        raise NoHistoryError("there is no git on this machine") from None
