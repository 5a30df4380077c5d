"""Custom scripts: what is let through, what is refused and where, and what the server is given."""

from pathlib import Path

import pytest

from sidecar.core.script import MAX_SCRIPT_BYTES, check
from sidecar.errors import Refused

ROOT = Path(__file__).parents[2]


def inside(statement: str, before: str = "") -> str:
    return f"{before}\nreturn function(siblings)\n  {statement}\n  return 1\nend\n"


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("", "w.lua:1: a script is local declarations, then"),
        ("return 1", "w.lua:1: a script returns a function"),
        ("return function(siblings) return 1", "w.lua:1: 'end' expected"),
        ("return function(a, b) return 1 end", "w.lua:1: the returned function has one parameter"),
        ("return function(siblings) end\nprint(1)", "w.lua:2: nothing follows the returned"),
        ("x = 1\nreturn function(siblings) end", "w.lua:1: a script is local declarations"),
        (inside("while true do end"), "w.lua:3: a loop that may not end"),
        (inside("repeat until false"), "w.lua:3: a loop that may not end"),
        (inside("for i = 1, 3 do end"), "w.lua:3: the only loop is: for index, one in ipairs(sib"),
        (inside("for k in pairs(siblings) do end"), "w.lua:3: the only loop is"),
        (inside("for _, s in ipairs({}) do end"), "w.lua:3: the only loop is"),
        (
            inside("for _, s in ipairs(siblings) do end", "local siblings = {}").replace(
                "function(siblings)", "function(list)"
            ),
            "w.lua:3: the only loop is",
        ),
        (inside("x = 1"), "w.lua:3: 'x' is not declared"),
        (inside("n = n + 1", "local n = 0"), "w.lua:3: what is declared outside the function"),
        (inside("siblings = {}"), "w.lua:3: 'siblings' is not assigned to"),
        (inside("local t = {} t.x = 1"), "w.lua:3: a script changes no tables"),
        (inside("local t = {} t[1] = 1"), "w.lua:3: a script changes no tables"),
        (inside("redis.call('FLUSHALL')"), "w.lua:3: 'redis' is not declared"),
        (inside("local t = redis.call('TIME')"), "w.lua:3: 'redis' is not declared"),
        (inside("local t = os.time()"), "w.lua:3: 'os' is not declared"),
        (inside("local t = _G.redis"), "w.lua:3: '_G' is not declared"),
        (inside("local t = math.random()"), "w.lua:3: math.random is not available; math.abs, "),
        (inside("local t = string.rep('x', 9)"), "w.lua:3: string.rep is not available"),
        (inside("local t = tostring({})"), "w.lua:3: 'tostring' is not declared"),
        (inside("local t = pcall(newer)"), "w.lua:3: 'pcall' is not declared"),
        (inside("local t = string.find('a', '.*b')"), "w.lua:3: string.find is called as (text,"),
        (inside("local f = newer"), "w.lua:3: 'newer' is a function: it can only be called"),
        (inside("local f = math.max"), "w.lua:3: 'math.max' is a function: it can only be called"),
        (inside("local f = g", "local function g() end"), "w.lua:3: 'g' is a function: it can"),
        (inside("local f = function() end"), "w.lua:3: a function has a name"),
        (inside("local t = ('x'):rep(9)"), "w.lua:3: only named functions are called"),
        (inside("local t = siblings[1].node:len()"), "w.lua:3: only named functions are called"),
        (inside("local t = siblings[1].node.rep('x', 9)"), "w.lua:3: only named functions are"),
        (inside("local t = 'a' .. 'b'"), "w.lua:3: texts are compared, not built"),
        (inside("local t = 2 ^ 3"), "w.lua:3: powers differ between machines"),
        (inside("local t = {...}"), "w.lua:3: a function names its parameters"),
        (inside("local t = [[x]]"), "w.lua:3: long brackets are not part"),
        (inside("--[[ x ]]"), "w.lua:3: long brackets are not part"),
        (inside("-- a\rwhile true do end"), "w.lua:3: holds a control character"),
        (inside("local custom = {}"), "w.lua:3: 'custom' cannot be the name of something else"),
        (inside("local function newer() end"), "w.lua:3: 'newer' cannot be the name"),
        (inside("break"), "w.lua:3: 'break' does not begin a statement"),
        (inside("goto x"), "w.lua:3: 'goto' is not declared"),
        (inside("local t = @"), "w.lua:3: '@' is not part of a custom script"),
        (
            "local function f(n)\n  return f(n)\nend\nreturn function(siblings) return f(1) end",
            "w.lua:2: 'f' calls itself: a script may not recurse",
        ),
        (
            inside("return g()", "local function f() return g() end\nlocal function g() end"),
            "w.lua:1: 'g' is not declared",
        ),
        (inside(f"local t = {'(' * 40}1{')' * 40}"), "w.lua:3: more than 32 levels"),
        (f"-- {'x' * MAX_SCRIPT_BYTES}", "w.lua: is longer than 8192 bytes"),
    ],
)
def test_what_could_hang_or_depend_on_anything_else_is_refused(script: str, complaint: str) -> None:
    with pytest.raises(Refused) as refused:
        check(script, "w.lua")
    assert refused.value.code == "bad_script"
    assert refused.value.message.startswith(complaint)


@pytest.mark.parametrize("path", ["config/winner.lua", "tests/data/majority.lua"])
def test_real_scripts_pass_and_keep_their_lines(path: str) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    script = check(source, path)
    assert script.source == source
    assert script.text.count("\n") == source.count("\n")
    for before, after in zip(source.splitlines(), script.text.splitlines(), strict=True):
        assert before.split("(")[0].strip() == "" or before.split("(")[0][:8] == after[:8]


def test_steps_are_counted_and_texts_compared_by_bytes() -> None:
    script = check(inside("for i, s in ipairs(siblings) do if 'a' < s.node then end end"), "w.lua")
    assert "function(siblings) custom.spend()" in script.text
    assert "ipairs(siblings) do custom.spend()" in script.text
    assert " < " not in script.text
    assert "(custom.less( 'a' , s.node))" in script.text


def test_what_a_script_compares_with_is_known_to_its_trial() -> None:
    script = check(inside("local t = { eu1 = 'x', [7] = 0x10, y = 1.5 }"), "w.lua")
    assert script.texts == ("eu1", "x", "y")
    assert script.numbers == (1, 7, 16)
