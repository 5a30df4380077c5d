"""Custom scripts on a real server: tried before they run, and parked when they fail."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.core.conflict import ConflictResolutionStrategy, Override, Rules
from sidecar.core.script import CustomScript, check
from sidecar.core.wire import encode_bucket
from sidecar.errors import Refused, Unavailable
from sidecar.store import trial
from sidecar.store.calls import Way
from sidecar.store.conflicts import ConflictEntry
from sidecar.store.link import Link, pool_of
from tests import twins
from tests.servers import RealValkey
from tests.store.conftest import BEGIN_US, Node, OpenNode, conflicts, dump, running_node

ROOT = Path(__file__).parents[2]
DOC = "doc:1 viewer user:a"
CUSTOM = ConflictResolutionStrategy.CUSTOM

BEST = """
local function beats(a, b)
  {}
end
return function(siblings)
  local best = 1
  for index, one in ipairs(siblings) do
    if beats(one, siblings[best]) then best = index end
  end
  return best
end
"""
FAILS_AT = BEGIN_US + 123_456_789
FAILS = check(
    BEST.format(f"if a.expires_at == {FAILS_AT // 1000} * 1000 + 789 then return a.x.y end")
    .replace("\nend\nreturn", "\n  return newer(a, b)\nend\nreturn"),
    "fails.lua",
)  # fmt: skip
"""Fails for one time of expiry that no trial comes upon."""


def rules_of(script: CustomScript) -> Rules:
    return Rules.of(CUSTOM, script=script.source)


async def tried(valkey: RealValkey, body: str) -> str:
    """What is wrong with the comparison `body`; "" for nothing."""
    script = check(BEST.format(body), "w.lua")
    async with contextlib.AsyncExitStack() as stack:
        link = Link(pool_of(valkey.url, 10.0), 10.0)
        stack.push_async_callback(link.close)
        try:
            await trial.try_script(link, "{x}:meta", script, rules_of(script))
        except Refused as refused:
            return f"{refused.code} {refused.message}"
    return ""


CHOOSES = (
    "bad_script w.lua: of the siblings AB it chooses {}, of the same ones as BA {}, where "
    "A = delete at 1 by a.1; B = delete at 1 by {}"
)
FAILS_FOR = "bad_script w.lua: it fails for the siblings AB: "
BY_OPERATION = "if a.operation ~= b.operation then return a.operation == 'insert' end "
BY_TIME = "if a.timestamp ~= b.timestamp then return a.timestamp > b.timestamp end "


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("return newer(a, b)", ""),
        (BY_OPERATION + "return newer(a, b)", ""),
        ("return a.operation == 'delete'", CHOOSES.format("B", "A", "b.1")),
        ("return a.timestamp > b.timestamp", CHOOSES.format("A", "B", "b.1")),
        (BY_TIME + "return a.node > b.node", CHOOSES.format("A", "B", "a.2")),
        ("return a.expires_at > 1", FAILS_FOR + "w.lua:3: attempt to compare number with nil"),
        ("return newer(a)", FAILS_FOR),
    ],
)
async def test_the_smallest_counter_example_is_shown(
    body: str, complaint: str, valkey: RealValkey
) -> None:
    message = await tried(valkey, body)
    assert message.startswith(complaint)
    assert complaint or not message


async def test_a_fault_that_needs_three_is_found(valkey: RealValkey) -> None:
    """Scissors, paper, stone: each pair has a winner, three have none."""
    message = await tried(
        valkey,
        "local rank = { a = 1, b = 2, c = 3 }\n"
        "local x, y = rank[a.node] or 0, rank[b.node] or 0\n"
        "if x == y or x == 0 or y == 0 then return newer(a, b) end\n"
        "return (x - y) % 3 == 1",
    )
    assert "; C = " in message
    assert "; D = " not in message


async def test_the_scripts_of_the_tree_are_sound(valkey: RealValkey) -> None:
    for path in ("config/winner.lua", "tests/data/majority.lua"):
        script = check((ROOT / path).read_text(encoding="utf-8"), path)
        rules = replace(rules_of(script), priority={"us1": 1, "eu1": 0})
        link = Link(pool_of(valkey.url, 10.0), 10.0)
        assert await trial.try_script(link, "{x}:meta", script, rules) > 3000
        await link.close()


async def test_an_unsound_script_stops_a_node_before_it_stores_anything(valkey: RealValkey) -> None:
    script = check(BEST.format("return a.operation == 'delete'"), "w.lua")
    before = dump(valkey)
    with pytest.raises(Refused, match="of the siblings AB it chooses B") as refused:
        async with running_node(valkey, "us1", rules=rules_of(script), custom=script) as node:
            await node.store.opened()
    await node.store.__aexit__(None, None, None)
    assert refused.value.code == "bad_script"
    assert dump(valkey) == before


async def pair(open_node: OpenNode, script: CustomScript) -> tuple[Node, Node]:
    rules = rules_of(script)
    return (
        await open_node("us1", rules=rules, custom=script),
        await open_node("eu1", rules=rules, custom=script),
    )


async def test_concurrent_writes_get_the_winner_of_the_script(open_node: OpenNode) -> None:
    us, eu = await pair(open_node, twins.MAJORITY)
    await us.write(f"+{DOC}")
    await eu.write(f"-{DOC}")
    await us.take(eu)
    await eu.take(us)
    assert await us.listed() == await eu.listed() == [DOC], "one to one, the insert"
    assert (conflicts(us), conflicts(eu)) == ((1, 0), (0, 1))
    (entry,) = await us.store.conflicts(None, 10)
    assert isinstance(entry, ConflictEntry)
    assert entry.strategy is CUSTOM


async def test_a_transaction_for_which_the_script_fails_is_parked(open_node: OpenNode) -> None:
    us, eu = await pair(open_node, FAILS)
    await us.write(f"+{DOC}")
    await us.write("+doc:2 viewer user:a")
    await eu.write("+doc:2 viewer user:b", f"+{DOC} until {FAILS_AT}")
    await eu.write("+doc:3 viewer user:a")
    vector = dict(us.store.vector)
    merged = await us.take(eu)
    reason = merged.parked[eu.store.origin]
    assert reason.startswith("fails.lua:3: attempt to index field 'x'")
    assert us.store.vector[eu.store.origin] < eu.store.vector[eu.store.origin]
    assert us.store.vector[us.store.origin] == vector[us.store.origin]
    assert await us.listed() == [DOC, "doc:2 viewer user:a"], "all of it waits, and what follows"
    assert (await us.store.parked())[eu.store.origin]["reason"] == reason

    # A write of now has seen the sibling that is here: the script is not asked.
    await us.write(f"-{DOC}", f"+{DOC.replace('1', '4')}")
    assert await us.listed() == ["doc:2 viewer user:a", "doc:4 viewer user:a"]
    assert (await us.take(eu)).parked, "it goes on waiting"


async def test_what_waits_is_applied_once_the_script_is_mended(valkey: RealValkey) -> None:
    async with running_node(valkey, "eu1", rules=rules_of(FAILS), custom=FAILS) as eu:
        await eu.store.opened()
        async with running_node(valkey, "us1", rules=rules_of(FAILS), custom=FAILS) as us:
            await us.store.opened()
            await us.write(f"+{DOC}")
            await eu.write(f"+{DOC} until {FAILS_AT}")
            assert (await us.take(eu)).parked
        mended = check(BEST.format("return newer(a, b)"), "fails.lua")
        async with running_node(valkey, "us1", rules=rules_of(mended), custom=mended) as us:
            await us.store.opened()
            assert not (await us.take(eu)).parked
            assert await us.store.parked() == {}
            assert us.store.vector[eu.store.origin] == eu.store.vector[eu.store.origin]


@pytest.mark.parametrize("way", list(Way))
async def test_a_page_for_which_the_script_fails_is_not_taken_in(
    way: Way, open_node: OpenNode, valkey: RealValkey
) -> None:
    us, eu = await pair(open_node, FAILS)
    await us.write(f"+{DOC}")
    await eu.write(f"+{DOC} until {FAILS_AT}", "+doc:1 editor user:b")
    states = await eu.store.states(0, 4096, 10_000)
    lines = [encode_bucket(b.number, states.vector, b.tuples) for b in states.buckets]
    before = dump(valkey)
    with pytest.raises(Unavailable, match=r"fails\.lua:3: attempt to index") as failed:
        await us.store.absorb(b"\n".join(lines), way, "progress" if way is Way.JOIN else "")
    assert failed.value.code == "custom_script_failed"
    assert dump(valkey) == before
    await us.write(f"+{DOC}")


async def test_a_conflict_names_the_strategy_that_decided_it(open_node: OpenNode) -> None:
    overrides = [
        Override(ConflictResolutionStrategy.DELETE_WINS, relation="banned"),
        Override(ConflictResolutionStrategy.INSERT_WINS, resource_type="doc"),
    ]
    rules = Rules.of(ConflictResolutionStrategy.LAST_WRITE_WINS, overrides=overrides)
    us, eu = await open_node("us1", rules=rules), await open_node("eu1", rules=rules)
    tuples = ["doc:1 banned user:a", "doc:1 viewer user:a", "team:1 viewer user:a"]
    await us.write(*(f"-{one}" for one in tuples))
    us.clock.pass_s(1)
    await us.write(*(f"+{one}" for one in tuples))
    eu.clock.pass_s(2)
    await eu.write(*(f"-{one}" for one in tuples))
    await us.take(eu)
    await eu.take(us)
    assert await us.listed() == await eu.listed() == ["doc:1 viewer user:a"]
    for node in (us, eu):
        named = {
            f"{one.tuple[1]} {one.tuple[2]}": one.strategy.value
            for one in await node.store.conflicts(None, 10)
            if isinstance(one, ConflictEntry)
        }
        assert named == {
            "doc:1 banned": "delete_wins",
            "doc:1 viewer": "insert_wins",
            "team:1 viewer": "lww",
        }


def test_fields_of_a_sibling_are_those_of_the_conflict_log() -> None:
    text = (ROOT / "lua" / "lib" / "custom.lua").read_text(encoding="utf-8")
    view = text.partition("function custom.view")[2].partition("end\n")[0]
    for name in json.loads('["timestamp","origin","operation","condition","expires_at"]'):
        assert f"{name} = " in view
