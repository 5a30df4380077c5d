"""The Lua scripts: found, composed with the libraries they include, and checked.

A script names what it needs with `-- @include NAME`; the libraries, each once, in the order of
their needs, become one text. The hash of that text is the version of the script.

A script that must run above `maxmemory` says `-- FLAGS  allow-oom` in its header; the server is
told in a first line, `#!lua flags=allow-oom`.

The custom script of a deployment is part of the text of those that choose winners, behind the
library `custom`: it is compiled with them, and their hashes change with it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from pathlib import Path

from sidecar.core.script import CustomScript

_INCLUDE = re.compile(r"^-- @include (\w+)$", re.MULTILINE)
_FLAGS = re.compile(r"^-- FLAGS +([a-z,-]+)$", re.MULTILINE)
_LINE_IN_ERROR = re.compile(r"user_script:(\d+)")


@dataclass(frozen=True, slots=True)
class Script:
    """One atomic transition. `text` is what the server runs, `sha` its SHA-1 there."""

    name: str
    text: str
    sha: str
    sources: tuple[tuple[int, str], ...]
    """(first line in text, file), ascending: where each part came from."""

    def without_flags(self) -> "Script":
        """The same for a server that does not know the first line, as fakeredis."""
        text = self.text if not self.text.startswith("#!") else self.text.partition("\n")[2]
        return Script(self.name, text, sha1(text.encode()).hexdigest(), self.sources)

    def explain(self, error: str) -> str:
        """The server's error with the line number of the composed text led back to its file."""

        def place(found: re.Match[str]) -> str:
            line = int(found[1])
            first, file = max((s for s in self.sources if s[0] <= line), default=(1, "?"))
            return f"{file}:{line - first + 1}"

        return _LINE_IN_ERROR.sub(place, error)


def folder() -> Path:
    """Where the scripts lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "lua"
    return installed if installed.is_dir() else package.parent / "lua"


@cache
def script(name: str, custom: CustomScript | None = None) -> Script:
    """The script `lua/<name>.lua`, composed. Raises FileNotFoundError for an unknown name."""
    own = folder() / f"{name}.lua"
    flags = _FLAGS.search(own.read_text(encoding="utf-8"))
    lines: list[str] = [f"#!lua flags={flags[1]}"] if flags else []
    sources: list[tuple[int, str]] = []
    for file in _in_order(own, seen=set()):
        sources.append((len(lines) + 1, f"lua/{file.relative_to(folder()).as_posix()}"))
        lines += file.read_text(encoding="utf-8").splitlines()
        if custom is not None and file.name == "custom.lua":
            file_name = re.sub(r"[^\w./ -]", "?", custom.file, flags=re.ASCII)
            lines.append("custom.given = custom.load(function()")
            first = len(lines)
            sources.append((first + 1, file_name))
            # Not splitlines: it knows more ends of a line than Lua does.
            lines += custom.text.split("\n")
            lines.append(f"end) custom.file, custom.line = '{file_name}', {first}")
    text = "\n".join(lines) + "\n"
    return Script(name, text, sha1(text.encode()).hexdigest(), tuple(sources))


def names() -> list[str]:
    """Every script, sorted."""
    return sorted(path.stem for path in folder().glob("*.lua"))


def _in_order(file: Path, seen: set[Path]) -> Iterator[Path]:
    for name in _INCLUDE.findall(file.read_text(encoding="utf-8")):
        library = folder() / "lib" / f"{name}.lua"
        if library not in seen:
            seen.add(library)
            yield from _in_order(library, seen)
    yield file
