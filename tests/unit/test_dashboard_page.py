"""The page itself: nothing from elsewhere, nothing inline, and all of it in the wheel."""

import re
import subprocess

import pytest

from sidecar.admin.page import FOLDER, POLICY, TYPES

FILES = sorted(FOLDER.iterdir())
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in FILES}


def test_there_is_nothing_but_what_is_served() -> None:
    assert {path.suffix for path in FILES} == set(TYPES)


@pytest.mark.parametrize("name", TEXTS)
def test_nothing_is_fetched_from_elsewhere(name: str) -> None:
    """The one address with a host is the name of a language, which nothing fetches."""
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", _code(name)))
    assert addresses <= {"http://www.w3.org/2000/svg"}, addresses


@pytest.mark.parametrize("name", TEXTS)
def test_nothing_that_the_policy_forbids_is_written(name: str) -> None:
    text = TEXTS[name]
    assert "unsafe" not in POLICY
    if name.endswith(".html"):
        assert not re.search(r"<[^>]*\s(?:on\w+|style)\s*=", text), "an inline handler or style"
        assert not re.search(r"<style|<script(?![^>]*src=)", text), "an inline script or style"
    if name.endswith(".js"):
        assert not re.search(r"\beval\(|new Function|\.cssText|\"style\"", text)


@pytest.mark.parametrize("name", [name for name in TEXTS if name.endswith(".js")])
def test_no_text_becomes_markup(name: str) -> None:
    """Names of tuples, reasons of nodes: whoever writes a tuple does not write this page."""
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|createContextualFragment"
    assert not re.search(ways + r"|DOMParser|setHTML", TEXTS[name])


@pytest.mark.parametrize("name", [name for name in TEXTS if name.endswith((".js", ".html"))])
def test_what_is_named_is_there(name: str) -> None:
    text = TEXTS[name]
    named = re.findall(r"from \"\./([\w.]+)\"|(?:src|href)=\"dashboard/([\w.]+)\"", text)
    for found in named:
        assert "".join(found) in TEXTS
    for wanted in re.findall(r"byId\(\"([\w-]+)\"\)", text):
        assert f'id="{wanted}"' in TEXTS["index.html"], wanted


def test_git_and_so_the_wheel_have_all_of_it() -> None:
    """The package is taken as it is, without what git leaves out."""
    listed = subprocess.run(
        ["git", "check-ignore", *map(str, FILES)],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode > 1:
        pytest.skip("this tree is not a git clone")
    assert listed.stdout == ""


def _code(name: str) -> str:
    """Without comments of scripts, which begin with two slashes as well."""
    return re.sub(r"^\s*// .*$|  // .*$", "", TEXTS[name], flags=re.MULTILINE)
