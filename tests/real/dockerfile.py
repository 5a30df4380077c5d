"""The Dockerfile, read as far as it is used there: what to do without Docker."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Instruction(NamedTuple):
    word: str
    rest: str


Stage = list[Instruction]


def stages(path: Path) -> list[Stage]:
    """The instructions of each stage, FROM first; comments are left out, lines are joined."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found: list[Stage] = []
    for line in filter(None, text.splitlines()):
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            found.append([])
        found[-1].append(Instruction(word, rest.strip()))
    return found


def only(stage: Stage, word: str) -> list[str]:
    return [rest for name, rest in stage if name == word]


def environment(stage: Stage, given: Mapping[str, str]) -> dict[str, str]:
    """What ENV makes of an environment."""
    made = dict(given)
    for rest in only(stage, "ENV"):
        for pair in shlex.split(rest):
            name, _, text = pair.partition("=")
            made[name] = re.sub(r"\$(\w+)", lambda found: made[found[1]], text)
    return made


def command(stage: Stage, word: str) -> list[str]:
    """The words of CMD, ENTRYPOINT, or of the CMD in HEALTHCHECK."""
    (rest,) = only(stage, word)
    words: list[str] = json.loads(rest[rest.index("[") :])
    return words
