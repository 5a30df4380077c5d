"""What the documents name is there: links, anchors, files, functions, metrics, settings.

That their commands run is shown in `tests/operating/test_docs.py`.
"""

import re
from pathlib import Path

import pytest

from sidecar.settings import Config
from tests import reference
from tests.documents import PAGES, ROOT, anchors, blocks, links, prose, syntax_error
from tests.unit.test_house import tracked_files

FOLDERS = ("sidecar", "lua", "tests", "config", "docs", "bench", "deploy", "examples")
PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+|(?:\w+/)*\w+\.(?:py|lua))`")
NAMED_IN = re.compile(r"`([\w/.]+\.(?:py|lua))`,? \(`([\w.]+)`")
NAMED_BEFORE = re.compile(r"`(_?\w+)`,? in\s+`([\w/.]+\.(?:py|lua))`")
PAGE_IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def file_of(name: str) -> Path | None:
    """What a document calls a file: from the root, from `sidecar/`, or by its name alone."""
    found = (path for path in (ROOT / name, ROOT / "sidecar" / name) if path.exists())
    by_name = (path for path in tracked_files() if path.name == name)
    return next(found, None) or next(by_name, None)


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(target), f"{link}: {sorted(anchors(target))}"


def test_links_from_elsewhere_lead_to_a_heading() -> None:
    """Alerts and messages name places of the docs by their path."""
    for path in tracked_files():
        if path.suffix in (".md", ".gz"):
            continue
        text = path.read_bytes().decode("utf-8", "replace")
        for page, anchor in re.findall(r"\b(docs/[a-z-]+\.md)#([\w-]+)", text):
            assert (ROOT / page).exists(), f"{path} names {page}"
            assert anchor in anchors(ROOT / page), f"{path} names {page}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_named_files_and_functions_are_there(page: Path) -> None:
    text = prose(page)
    for name in PATH.findall(text):
        assert file_of(name) is not None, f"{name}: no such file"
    pairs = [*NAMED_IN.findall(text), *((path, name) for name, path in NAMED_BEFORE.findall(text))]
    for name, word in pairs:
        path = file_of(name)
        assert path is not None, f"{name}: no such file"
        last = word.rpartition(".")[2]
        assert re.search(rf"\b{last}\b", path.read_text(encoding="utf-8")), f"{name} has no {word}"


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_named_metrics_are_there(page: Path) -> None:
    known = (ROOT / "sidecar" / "metrics.py").read_text(encoding="utf-8")
    for name in re.findall(r"\binferadb_(?:replication|sidecar)_[a-z_]+[a-z]", page.read_text()):
        stem = re.sub(r"_(total|bucket|count|sum)$", "", name)
        assert re.search(rf'"{stem}(_total)?"', known), f"{name} is no metric"


def test_every_shell_block_can_be_read_by_the_shell() -> None:
    for block in blocks("sh", "sh walk"):
        assert syntax_error(block.text) is None, block.where


RUN_HERE = {"sh", "yaml"}
RUN_ELSEWHERE = {
    "sh walk": "tests/operating/test_example.py",
    "python": "tests/e2e/test_library.py, tests/unit/test_docs.py",
}
TO_BE_READ = {"", "json", "lua", "promql", "ini", "nginx", "http"}


def test_a_block_says_what_it_is_in() -> None:
    """One in `bash` or `yml` would be run by no test."""
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            found = re.match(r" *```(.+)", line)
            known = RUN_HERE | set(RUN_ELSEWHERE) | TO_BE_READ
            assert found is None or found[1].strip() in known, f"{page}: {line}"


def test_python_blocks_can_be_read() -> None:
    for block in blocks("python"):
        lines = "\n".join(f"    {line}" for line in block.text.splitlines())
        compile(f"async def main():\n{lines}\n", block.where, "exec")


def test_the_reference_of_settings_is_that_of_the_code() -> None:
    written = reference.PAGE.read_text(encoding="utf-8")
    assert written == reference.page(), "run: python -m tests.reference"
    names = {one.path for one in reference.settings()}
    assert {"listen.app", "replication.agent.batch_size", "replication.regions[].id"} <= names
    assert {path.partition(".")[0].partition("[")[0] for path in names} == set(Config.model_fields)
