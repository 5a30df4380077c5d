"""The scripts as texts: composed, documented, and honest about their arguments and replies."""

import re

import fakeredis
import pytest
import redis

from sidecar.core.digest import mix
from sidecar.store import scripts
from sidecar.store.calls import MergeOutcome
from tests.servers import RealValkey

HEADER = re.compile(r"\A((?:--.*\n)+)")
WHAT_IT_DOES = re.compile(r"-- (\w+): .+\.?\n")


def source(name: str) -> str:
    return (scripts.folder() / f"{name}.lua").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", scripts.names())
def test_a_header_states_the_call(name: str) -> None:
    text = source(name)
    header = HEADER.match(text)
    assert header is not None
    first = WHAT_IT_DOES.match(header[1])
    assert first is not None
    assert first[1] == name
    body = text[header.end() :]
    declared = {int(n) for n in re.findall(r"^--(?: ARGV|     ) (\d+)…? ", header[1], re.MULTILINE)}
    used = {int(n) for n in re.findall(r"ARGV\[(\d+)\]", body)}
    assert used <= declared, f"{name} uses ARGV {used - declared}, which its header does not name"
    for code in re.findall(r"error_reply\('([A-Z]+) ", body):
        assert re.search(rf"^-- (ERRORS|      ) {code} ", header[1], re.MULTILINE), code


def test_the_replies_of_merge_are_the_words_of_python() -> None:
    header = HEADER.match(source("merge"))
    assert header is not None
    reply = header[1].partition("REPLY")[2].partition(";")[0]
    assert set(re.findall(r'"(\w+)"', reply)) == {outcome.value for outcome in MergeOutcome}


def test_only_the_key_library_spells_keys() -> None:
    for file in scripts.folder().rglob("*.lua"):
        if file.name != "keys.lua":
            assert not re.search(r"base \.\.", file.read_text(encoding="utf-8")), file


def test_native_comparison_of_texts_is_left_to_one_place() -> None:
    """`<` on text follows the server's locale; only the order of pages, which is local, uses it."""
    assert "bytes_less" in source("page")


def test_a_library_is_included_once_and_before_its_use() -> None:
    text = scripts.script("merge").text
    assert text.count("\nlocal state = {}") == 1
    assert text.index("local number = {}") < text.index("local state = {}")


def test_a_line_in_an_error_leads_to_its_file(valkey: RealValkey) -> None:
    script = scripts.script("page")
    number = script.text[: script.text.index("local cursor = { '', '', '' }")].count("\n") + 1
    wanted = source("page")[: source("page").index("local cursor = { '', '', '' }")].count("\n") + 1
    explained = script.explain(f"ERR user_script:{number}: attempt to …")
    assert explained == f"ERR lua/page.lua:{wanted}: attempt to …"


def test_no_library_leaks_a_global(valkey: RealValkey) -> None:
    """A real server refuses globals; fakeredis would let one poison every script after it."""
    with redis.Redis.from_url(valkey.url, protocol=2) as client:
        for name in scripts.names():
            script = scripts.script(name)
            assigned = re.findall(r"^(\w+) = ", script.text, re.MULTILINE)
            assert not set(assigned) - set(re.findall(r"local (\w+)", script.text)), name
            client.script_load(script.text)


def test_what_frees_memory_or_moves_cursors_runs_above_maxmemory() -> None:
    """The first line says so to the server; what stores new tuples is never among them."""
    flagged = {name for name in scripts.names() if scripts.script(name).text.startswith("#!")}
    assert flagged == {
        *("applied", "begin", "collect", "cursor", "doubt", "finish", "known", "members"),
        *("pending", "phase", "raise", "trim", "withdraw"),
    }
    for name in flagged:
        script = scripts.script(name)
        assert script.text.startswith("#!lua flags=allow-oom\n")
        assert script.without_flags().text == script.text.partition("\n")[2]
        assert script.without_flags().sha != script.sha


def test_a_line_in_an_error_of_a_flagged_script_leads_to_its_file(valkey: RealValkey) -> None:
    script = scripts.script("trim")
    wanted = source("trim").splitlines().index("local self = node.read(ARGV[1])") + 1
    library = (scripts.folder() / "lib" / "node.lua").read_text(encoding="utf-8").splitlines()
    fails = next(n for n, line in enumerate(library, 1) if "tonumber(known)" in line)
    with redis.Redis.from_url(valkey.url, protocol=2) as client:
        client.hset("{x}:meta", mapping={"origin": "us1.1", "clock": "1"})
        with pytest.raises(redis.ResponseError) as failed:
            client.eval(script.text, 1, "{x}:meta", "not a number", 0, 0)
    assert f"lua/lib/node.lua:{fails}:" in script.explain(str(failed.value))
    line = script.text.splitlines().index("local self = node.read(ARGV[1])") + 1
    assert script.explain(f"user_script:{line}:") == f"lua/trim.lua:{wanted}:"


@pytest.mark.parametrize("kind", ["real", "fake"])
def test_the_self_check_passes_and_notices_another_digest(kind: str, valkey: RealValkey) -> None:
    server = redis.Redis.from_url(valkey.url) if kind == "real" else fakeredis.FakeRedis()
    script = scripts.script("check")
    sample = (2**40 - 2, 2**52 + 12_345, "node-1.abcdefgh0123")
    with server:
        good = server.eval(script.text, 1, "{x}:meta", *sample, mix(*sample))
        bad = server.eval(script.text, 1, "{x}:meta", *sample, mix(*sample) + 1)
    assert good[0] == b"ok"
    assert bad[0] == b"broken"
