"""The histories have teeth: scripts with one rule broken are found out."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from sidecar.core.conflict import ConflictResolutionStrategy
from sidecar.store import scripts
from tests.lua.histories import run_history
from tests.servers import RealValkey

VARIANTS = {
    "one winner kept per comparison": (
        "insert_wins",
        "state",
        "return rules.keeps_losers and siblings or { siblings[1] }",
        "return { siblings[1] }",
    ),
    "beyond is forgotten": (
        "delete_wins",
        "state",
        "if old.beyond or unreached or extra then",
        "if false then",
    ),
    "a write's own beyond is not told": (
        "insert_wins",
        "state",
        "beyond = old and old.beyond and state.above(old.beyond, nil, vector) or nil,",
        "",
    ),
    "the context is not used": (
        "source_priority",
        "state",
        "local covered = at <= (context[origin] or 0)",
        "local covered = false",
    ),
    "ties go to the joined text": (
        "lww",
        "version",
        "if node_a ~= node_b then",
        "if true then return version.bytes_less(origin_b, origin_a) end\n    if false then",
    ),
    "the clock stands still": (
        "lww",
        "node",
        "math.max(now_us, self.clock + 1, seen + 1)",
        "math.max(now_us, self.clock + 1)",
    ),
    "digests ignore what was visible before": (
        "lww",
        "tuples",
        "amount = -digest.mix(change.hash, before.at, before.origin)",
        "amount = 0",
    ),
    "conflicts of equal writes are counted": (
        "lww",
        "state",
        "if arrives and not same(stored, sibling) then",
        "if arrives then",
    ),
    "the log takes a third version for the stored one": (
        "insert_wins",
        "conflicts",
        "winner == stored and 'stored' or text(winner)",
        "'stored'",
    ),
    "the log has one entry per change": (
        "delete_wins",
        "conflicts",
        "count = revision == last and count + 1 or 0",
        "if revision == last then return end",
    ),
    "the log tells the winner for what arrived": (
        "source_priority",
        "conflicts",
        "'arrived', text(arrived))",
        "'arrived', text(winner))",
    ),
}


@pytest.fixture
def broken_lua(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    copy = tmp_path / "lua"
    shutil.copytree(scripts.folder(), copy)
    monkeypatch.setattr(scripts, "folder", lambda: copy)
    scripts.script.cache_clear()
    yield copy
    scripts.script.cache_clear()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_broken_rule_is_found(name: str, broken_lua: Path, valkey: RealValkey) -> None:
    strategy, library, right, wrong = VARIANTS[name]
    file = broken_lua / "lib" / f"{library}.lua"
    text = file.read_text(encoding="utf-8")
    assert text.count(right) == 1, "the rule that this test breaks is written differently now"
    file.write_text(text.replace(right, wrong), encoding="utf-8")
    with redis.Redis.from_url(valkey.url, protocol=2) as client:
        for seed in range(400):
            try:
                run_history(client, seed, ConflictResolutionStrategy(strategy))
            except (AssertionError, redis.ResponseError):
                print(f"{name}: found in history {seed + 1}")
                return
    pytest.fail(f"{name}: not found in 400 histories")
