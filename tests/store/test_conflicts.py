"""The log of conflicts on a real server: each that is counted has an entry with both versions."""

import pytest
import redis

from sidecar.core.conflict import ConflictResolutionStrategy, Rules, Sibling
from sidecar.core.relationship import Operation
from sidecar.core.state import Winner
from sidecar.errors import Refused, Unavailable
from sidecar.store.conflicts import ConflictEntry, Entry, Versioned
from tests.store.conftest import DELETE_WINS, Node, OpenNode, conflicts, dump, numbered

DOC = "+doc:1 viewer user:a"
MOST = 10_000
SLACK = 200
"""How many more a server may leave: it drops whole nodes of a stream, 100 entries or 4 KiB each."""


async def log_of(node: Node) -> list[ConflictEntry]:
    found = await node.store.conflicts(None, 100_000)
    return [one for one in found if isinstance(one, ConflictEntry)]


async def exchange(one: Node, other: Node) -> None:
    """Each takes what the other had written before."""
    lines = await one.own_lines()
    await one.take(other)
    await other.store.merge(b"\n".join(lines))


def length(node: Node) -> int:
    with redis.Redis.from_url(node.valkey.url, protocol=2) as client:
        return int(client.xlen(node.store.keys.conflicts))


async def test_an_entry_tells_both_versions_and_who_won(open_node: OpenNode) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    condition, until = '{"name":"é\\"\\\\🔑","n":[]}', 253_402_300_799_999_999
    inserted = await us.write(f"{DOC} if {condition} until {until}", tenant="acme")
    eu.clock.pass_s(1)
    deleted = await eu.write("-doc:1 viewer user:a", tenant="acme")
    us.clock.pass_s(5)
    await exchange(us, eu)

    insert = Versioned(
        (inserted.revision, us.store.origin), Sibling(Operation.INSERT, condition, until)
    )
    delete = Versioned((deleted.revision, eu.store.origin), Sibling(Operation.DELETE))
    for node, stored, arrived, resolved in (
        (us, insert, delete, Winner.REMOTE),
        (eu, delete, insert, Winner.LOCAL),
    ):
        revision = (await node.newest()).revision
        assert await log_of(node) == [
            ConflictEntry(
                f"{revision}-0",
                revision,
                node.clock.now_us,
                ("acme", "doc:1", "viewer", "user:a"),
                ConflictResolutionStrategy.LAST_WRITE_WINS,
                stored,
                arrived,
                delete,
                resolved,
            )
        ]


async def test_the_winner_may_be_a_third_version(open_node: OpenNode) -> None:
    """A delete was there beside an insert; the insert that arrives differs from both."""
    us, eu, ap = [await open_node(name, rules=DELETE_WINS) for name in ("us1", "eu1", "ap1")]
    await us.write(f"{DOC} if 1")
    await eu.write("-doc:1 viewer user:a")
    await ap.write(f"{DOC} if 2")
    await us.take(eu)
    await us.take(ap)
    *of_ap, of_eu = await log_of(us)
    assert (of_eu.resolved, of_eu.winner) == (Winner.REMOTE, of_eu.arrived)
    deleted = of_eu.arrived
    assert {one.arrived.sibling.condition for one in of_ap} == {"2"}
    beside = {one.stored.version[1]: one for one in of_ap}
    assert set(beside) == {us.store.origin, eu.store.origin}
    assert all(one.resolved is Winner.LOCAL for one in of_ap)
    assert beside[eu.store.origin].winner == beside[eu.store.origin].stored == deleted
    third = beside[us.store.origin]
    assert third.winner == deleted
    assert third.winner not in (third.stored, third.arrived)
    assert len({one.cursor for one in of_ap}) == 2
    assert conflicts(us) == (2, 1)


@pytest.mark.parametrize("strategy", ["lww", "insert_wins", "delete_wins"])
async def test_each_conflict_that_is_counted_has_an_entry(
    open_node: OpenNode, strategy: str
) -> None:
    rules = Rules.of(ConflictResolutionStrategy(strategy))
    us, eu = await open_node("us1", rules=rules), await open_node("eu1", rules=rules)
    await us.write(*numbered(40), *numbered(10, "+doc:{} editor user:a"))
    eu.clock.pass_s(1)
    # 20 deletes against inserts, 10 that say the same, 10 with another condition, 10 alone.
    await eu.write(*numbered(20, "-doc:{} viewer user:a"), *numbered(30)[20:])
    await eu.write(*(f"{text} if 1" for text in numbered(40)[30:]))
    await exchange(us, eu)
    for node in (us, eu):
        log = await log_of(node)
        counted = dict(zip(Winner, conflicts(node), strict=True))
        assert {one: sum(e.resolved is one for e in log) for one in Winner} == counted
        assert len(log) == 30
        assert {e.tuple[1] for e in log} == {f"doc:{n}" for n in (*range(20), *range(30, 40))}
        assert {e.strategy.value for e in log} == {strategy}
        assert all(e.winner == (e.stored if e.resolved == "local" else e.arrived) for e in log)
    # A repeat is no conflict, and no entry.
    before = dump(us.valkey)
    await exchange(us, eu)
    assert dump(us.valkey) == before


async def test_without_a_conflict_there_is_no_log(open_node: OpenNode) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    await us.write(DOC)
    await eu.take(us)
    await eu.write("-doc:1 viewer user:a")
    await us.take(eu)
    assert await log_of(us) == await log_of(eu) == []
    assert not [key for key in dump(us.valkey) if key.endswith(b":conflicts")]


async def test_the_log_is_read_in_pages_from_the_newest_on(open_node: OpenNode) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    for start in range(0, 50, 10):
        await us.write(*numbered(50)[start : start + 10])
        await eu.write(*numbered(50, "-doc:{} viewer user:a")[start : start + 10])
    await us.take(eu)
    whole = await log_of(us)
    assert [one.tuple[1] for one in whole] == [f"doc:{n}" for n in range(49, -1, -1)]
    assert [one.revision for one in whole] == sorted((e.revision for e in whole), reverse=True)
    paged: list[Entry] = []
    while page := await us.store.conflicts(paged[-1].cursor if paged else None, 7):
        paged += page
    assert paged == whole
    assert await us.store.conflicts(None, 100, newer_than=whole[20].cursor) == whole[:20]
    assert await us.store.conflicts(whole[4].cursor, 100, whole[20].cursor) == whole[5:20]
    assert await us.store.conflicts(None, 100, newer_than=whole[0].cursor) == []


@pytest.mark.parametrize(
    "cursor", ["", "0-0", "-", "+", "1", "1-", "1-1-1", "(1-0", "9" * 20 + "-0", "1-0\n", "١-0"]
)
async def test_what_is_no_cursor_is_refused(open_node: OpenNode, cursor: str) -> None:
    us = await open_node("us1")
    for after, newer_than in ((cursor, None), (None, cursor)):
        with pytest.raises(Refused, match="cursor") as refused:
            await us.store.conflicts(after, 10, newer_than)
        assert refused.value.code == "invalid_cursor"
    assert us.store.is_open


async def test_the_oldest_conflicts_go_beyond_ten_thousand(open_node: OpenNode) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    for third in range(3):
        await us.write(*numbered(4_000, f"+doc:{third}-{{}} viewer user:a"))
        await eu.write(*numbered(4_000, f"-doc:{third}-{{}} viewer user:a"))
    await us.take(eu)
    assert sum(conflicts(us)) == 12_000
    assert MOST <= length(us) <= MOST + SLACK
    log = await log_of(us)
    assert len(log) == length(us)
    assert log[0].tuple[1] == "doc:2-3999"
    assert log[-1].tuple[1] == f"doc:0-{12_000 - len(log)}"


async def test_a_full_server_takes_no_conflict_and_no_part_of_one(open_node: OpenNode) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    await us.write(*numbered(100))
    await eu.write(*numbered(100, "-doc:{} viewer user:a"))
    us.valkey.call("CONFIG", "SET", "maxmemory", "1")
    try:
        before = dump(us.valkey)
        with pytest.raises(Unavailable, match="maxmemory"):
            await us.take(eu)
        assert dump(us.valkey) == before
        assert await log_of(us) == []
    finally:
        us.valkey.call("CONFIG", "SET", "maxmemory", "0")
    await us.take(eu)
    assert sum(conflicts(us)) == len(await log_of(us)) == 100
