"""The reference of all settings, made of the settings' models and the words of the sample file.

Usage: python -m tests.reference   writes it into docs/configuration.md, below the marker. A test
compares. Names, kinds and limits come from `sidecar/settings.py`, defaults and texts from
`config/sidecar.yaml`; neither is told twice.
"""

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sidecar import values
from sidecar.settings import Config

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "config" / "sidecar.yaml"
PAGE = ROOT / "docs" / "configuration.md"
MARKER = "<!-- What follows is made by `python -m tests.reference`; a test compares. -->"

KINDS = {
    values.Id: "id",
    values.ListenAddress: "host:port",
    values.Endpoint: "host:port",
    values.StoreUrl: "URL",
    values.DatabaseUrl: "URL",
    values.TenantName: "tenant",
    values.TenantPattern: "tenant",
}


@dataclass(frozen=True)
class Setting:
    """path: as people write it, `[]` for an entry of a list, `<name>` for one of a mapping."""

    path: str
    kind: str
    default: str
    text: str
    is_section: bool

    @property
    def section(self) -> str:
        return self.path.rpartition(".")[0]


def uncommented(text: str) -> str:
    """The sample with its examples active: prose has exactly one space behind its `#`."""
    return re.sub(r"^( *)#(?=[^ \n]|  )", r"\1", text, flags=re.MULTILINE)


def settings() -> Iterator[Setting]:
    """Every setting, in the order of the sample file."""
    text = uncommented(SAMPLE.read_text(encoding="utf-8"))
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    yield from _settings(Config, [root], text.splitlines(), "")


def _settings(
    model: type[BaseModel], nodes: list[yaml.MappingNode], lines: list[str], path: str
) -> Iterator[Setting]:
    """What a section has: of several examples the first that names a setting explains it."""
    hints = get_type_hints(model, include_extras=True)
    named: dict[str, list[tuple[yaml.Node, yaml.Node]]] = {}
    for node in nodes:
        for key, value in node.value:
            named.setdefault(key.value, []).append((key, value))
    for name, written in named.items():
        entry = _entry(hints[name])
        spelling = "" if entry is None else entry[1]
        yield Setting(
            f"{path}{name}",
            _limits(model.model_fields[name]) or _kind(hints[name]),
            _default(model.model_fields[name]),
            _comment(lines, written[0][0].start_mark.line),
            entry is not None,
        )
        if entry is not None:
            below = [one for _, value in written for one in _sections(value, spelling.count("<"))]
            yield from _settings(entry[0], below, lines, f"{path}{name}{spelling}.")


def _sections(node: yaml.Node, depth: int) -> Iterator[yaml.MappingNode]:
    """The sections in a value: entries of a list, or of `depth` mappings of names, or itself."""
    if isinstance(node, yaml.SequenceNode):
        for one in node.value:
            yield from _sections(one, depth)
    elif isinstance(node, yaml.MappingNode) and depth:
        for _, one in node.value:
            yield from _sections(one, depth - 1)
    elif isinstance(node, yaml.MappingNode):
        yield node


def _entry(annotation: Any) -> tuple[type[BaseModel], str] | None:
    """The section below a setting, and how an entry of it is spelled behind its name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Annotated, Union, UnionType):
        return next((found for one in arguments if (found := _entry(one))), None)
    if origin is tuple and (found := _entry(arguments[0])):
        return found[0], f"[]{found[1]}"
    if origin is dict and (found := _entry(arguments[1])):
        return found[0], f".<{_kind(arguments[0])}>{found[1]}"
    return None


def _kind(annotation: Any) -> str:
    named = next((word for alias, word in KINDS.items() if alias == annotation), None)
    if named is not None:
        return named
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin in (Union, UnionType):
        return _kind(next(one for one in arguments if one is not NoneType))
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return f"mapping of {_kind(arguments[0])} to {_kind(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return ", ".join(f"`{one.value}`" for one in annotation)
    return {bool: "`true`, `false`", Path: "path", int: "whole number"}.get(annotation, "text")


def _limits(field: FieldInfo) -> str:
    found = {
        side: getattr(one, side)
        for one in field.metadata
        for side in ("ge", "le")
        if hasattr(one, side)
    }
    return f"{found['ge']:,} to {found['le']:,}" if len(found) == 2 else ""


def _default(field: FieldInfo) -> str:
    value = field.get_default()
    if field.is_required() or value in (None, (), {}) or isinstance(value, BaseModel):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _comment(lines: list[str], line: int) -> str:
    """The comment above a line of the sample, as one paragraph."""
    found: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        found.append(lines[line].lstrip().lstrip("#").strip())
    return " ".join(reversed(found))


def reference() -> str:
    """The generated part of the page: a table for each section."""
    found = list(settings())
    parts = [_table("At the root", "", [one for one in found if not _under(one)])]
    for section in filter(lambda one: one.is_section, found):
        rows = [one for one in found if _under(one) == section.path]
        parts.append(_table(f"`{section.path}`", section.text, rows))
    return "\n".join(filter(None, parts))


def _table(title: str, text: str, settings: list[Setting]) -> str:
    """A heading, what is said of the section, and its settings; nothing where both are missing."""
    rows = [_row(one) for one in settings if not one.is_section]
    table = "\n".join(["| setting | allowed | default | |", "|---|---|---|---|", *rows])
    below = filter(None, [_escaped(text), table if rows else ""])
    inside = "\n\n".join(below)
    return f"## {title}\n\n{inside}\n" if inside else ""


def _under(setting: Setting) -> str:
    """The section of a setting without how its entries are spelled."""
    return re.sub(r"(\[\]|\.<[a-z ]+>)+$", "", setting.section)


def _row(setting: Setting) -> str:
    name = setting.path.rpartition(".")[2]
    default = f"`{setting.default}`" if setting.default else "–"
    return f"| `{name}` | {setting.kind} | {default} | {_escaped(setting.text)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def page() -> str:
    """The page as it should be: what people wrote, the marker, the reference."""
    written, marker, _ = PAGE.read_text(encoding="utf-8").partition(MARKER)
    assert marker, f"{PAGE} has no line {MARKER}"
    return f"{written}{MARKER}\n\n{reference()}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
