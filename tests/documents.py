"""README and docs as tests read them: fenced blocks, links, anchors, and what they name."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(page for folder in ("deploy", "examples") for page in (ROOT / folder).rglob("*.md")),
]

_FENCE = re.compile(r"( *)```(.*)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"#+ (.*)")


@dataclass(frozen=True)
class Block:
    """A fenced block. line: of its first line, from 1. language: all that the fence says."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        """`docs/api.md:96`, for people and as the id of a test."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """All blocks in these languages, in the order of the pages."""
    return [one for page in PAGES for one in _blocks_of(page) if one.language in languages]


def _blocks_of(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    begun: tuple[int, str, str] | None = None
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if fence is None:
            continue
        if begun is None:
            begun = (number + 1, fence[1], fence[2].strip())
            continue
        first, indent, language = begun
        inside = [one.removeprefix(indent) for one in lines[first - 1 : number - 1]]
        yield Block(page, first, language, "\n".join(inside) + "\n")
        begun = None
    assert begun is None, f"{page}: the block at line {begun} has no end"


def prose(page: Path) -> str:
    """The text of a page without its blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    """The targets of the links of a page."""
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """What a link into a page may name behind its `#`: headings as GitHub spells them."""
    found: set[str] = set()
    for line in prose(page).splitlines():
        if heading := _HEADING.fullmatch(line):
            words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
            slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
            taken = sum(1 for one in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", one))
            found.add(f"{slug}-{taken}" if taken else slug)
    return found


def commands(text: str) -> list[str]:
    """The commands of a shell block, each with all its lines; comments and empty lines go."""
    found: list[str] = []
    pending = ""
    for line in text.splitlines():
        if not pending and (not line.strip() or line.lstrip().startswith("#")):
            continue
        pending += f"{line}\n"
        if not line.endswith("\\") and syntax_error(pending) is None:
            found.append(pending.rstrip("\n"))
            pending = ""
    if pending:
        found.append(pending.rstrip("\n"))
    return found


def syntax_error(text: str) -> str | None:
    """What bash says about a text that it cannot read; None when it can."""
    checked = subprocess.run(
        ["bash", "-n"], input=text, capture_output=True, text=True, check=False
    )
    return checked.stderr if checked.returncode or checked.stderr else None
