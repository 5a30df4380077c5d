"""What the store promises, on a real Valkey: writes, merges, guards, and servers that go away."""

import asyncio
import json
import random
from pathlib import Path

import pytest
import redis

from sidecar.core.conflict import ConflictResolutionStrategy, Rules
from sidecar.core.vector import is_covered
from sidecar.errors import Refused, Unavailable
from sidecar.store.calls import MergeOutcome, Phase, WriteRequest
from tests.servers import RealValkey, start_valkey
from tests.store.conftest import (
    BEGIN_US,
    DELETE_WINS,
    OpenNode,
    WallClock,
    change_of,
    conflicts,
    dump,
    numbered,
    running_node,
    text_of,
)

DOC, TUPLE = "+doc:1 viewer user:a", "doc:1 viewer user:a"
INSERT_WINS = Rules.of(ConflictResolutionStrategy.INSERT_WINS)


# -- writes ---------------------------------------------------------------------------------------


async def test_concurrent_writers_get_revisions_of_their_own_in_the_order_they_came(
    open_node: OpenNode,
) -> None:
    us = await open_node("us1")
    begin = us.store.revision
    answers = await asyncio.gather(*(us.write(text) for text in numbered(64)))
    revisions = [answer.revision for answer in answers]
    assert revisions == sorted(set(revisions))
    assert begin < revisions[0]
    assert us.store.revision == revisions[-1]
    for answer in answers:
        assert answer.vector == {us.store.origin: answer.revision}
        assert (answer.written, answer.deleted, answer.replayed) == (1, 0, False)
    feed = await us.store.feed_after(begin, 100)
    assert [entry.revision for entry in feed] == revisions
    assert [entry.timestamp for entry in feed] == revisions


async def test_each_writer_is_judged_by_what_the_ones_before_it_did(open_node: OpenNode) -> None:
    """All of them expect the tuple as it was; the first one changes it."""
    us = await open_node("us1")
    begin = us.store.revision
    answers = await asyncio.gather(
        *(us.write(DOC, expected_revision=begin) for _ in range(64)), return_exceptions=True
    )
    first, *others = answers
    assert not isinstance(first, BaseException)
    for other in others:
        assert isinstance(other, Refused)
        assert (other.code, other.status) == ("revision_mismatch", 409)
        assert "doc:1#viewer@user:a" in other.message
        assert str(first.revision) in other.message
    assert len(await us.own_lines(begin)) == 1


async def test_one_that_is_refused_takes_nobody_along(open_node: OpenNode) -> None:
    us = await open_node("us1")
    await us.write(DOC)
    texts = numbered(9, "+doc:{} editor user:b")
    texts[4] = "-doc:1 viewer user:a"
    answers = await asyncio.gather(
        *(us.write(text, expected_revision=0 if text[0] == "-" else None) for text in texts),
        return_exceptions=True,
    )
    assert [isinstance(answer, Refused) for answer in answers] == [n == 4 for n in range(9)]
    assert len(await us.listed()) == 9


async def test_a_write_that_is_refused_does_none_of_its_changes(open_node: OpenNode) -> None:
    us = await open_node("us1")
    begin = us.store.revision
    await us.write(DOC)
    before = dump(us.valkey)
    with pytest.raises(Refused):
        await us.write("+doc:0 viewer user:a", DOC, "-doc:2 viewer user:a", expected_revision=begin)
    assert dump(us.valkey) == before


async def test_a_revision_goes_on_when_the_wall_clock_steps_back(open_node: OpenNode) -> None:
    us = await open_node("us1")
    revisions = []
    for seconds in (0, 5, -60, -3_600, 3_700, 0):
        us.clock.pass_s(seconds)
        revisions.append((await us.write(DOC)).revision)
    assert revisions == sorted(set(revisions))


async def test_what_is_there_already_or_not_there_is_a_write_like_any_other(
    open_node: OpenNode,
) -> None:
    """It gets a version and replicates: elsewhere it may decide a conflict."""
    us, eu = await open_node("us1"), await open_node("eu1")
    begin = us.store.revision
    await us.write(DOC)
    again = await us.write(DOC)
    nothing = await us.write("-doc:2 viewer user:a")
    assert (again.written, again.deleted) == (1, 0)
    assert (nothing.written, nothing.deleted) == (0, 0)
    assert begin < again.revision < nothing.revision
    assert len(await us.own_lines(begin)) == 3
    assert (await eu.take(us)).transactions == 4
    assert eu.store.vector[us.store.origin] == nothing.revision


async def test_deleted_are_those_that_were_visible(open_node: OpenNode) -> None:
    us = await open_node("us1")
    until = us.clock.now_us + 10_000_000
    await us.write(DOC, f"+doc:2 viewer user:a until {until}", "+doc:3 viewer user:a")
    await us.write("-doc:3 viewer user:a")
    gone = ["-doc:1 viewer user:a", "-doc:2 viewer user:a", "-doc:3 viewer user:a"]
    us.clock.pass_s(10)  # at this moment it has expired
    answer = await us.write(*gone, "-doc:4 viewer user:a", "+doc:5 viewer user:a")
    assert (answer.written, answer.deleted) == (1, 1)
    assert await us.listed() == ["doc:5 viewer user:a"]
    await us.write(f"+doc:2 viewer user:a until {us.clock.now_us + 1}")
    assert (await us.write(*gone)).deleted == 1


async def test_a_large_write_is_one_transaction(open_node: OpenNode) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    texts = numbered(5_000)
    answer = await us.write(*texts)
    assert (answer.written, answer.deleted) == (5_000, 0)
    await eu.take(us)
    entry = await eu.newest()
    assert (entry.changes, len(entry.transaction().changes)) == (5_000, 5_000)
    assert await eu.listed() == sorted(text[1:] for text in texts)


async def test_payload_comes_back_as_it_was(open_node: OpenNode) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    condition = '{"a":[1,null,{}],"name":"é\\"\\\\🔑\\u0000","when":12345678901234567890}'
    until = 253_402_300_799_999_999
    texts = [f"doc:é{{}} viewer group:漢#member if {condition} until {until}", TUPLE]
    await us.write(*(f"+{text}" for text in texts))
    await eu.take(us)
    for node in (us, eu):
        assert await node.listed() == sorted(texts)
        found = await node.store.find("default", "doc:é{}", "viewer", "group:漢#member")
        assert found is not None
        assert text_of(found) == texts[0]
        feed = await node.store.feed_after(0, 100)
        changes = next(e for e in feed if e.changes).transaction().changes
        assert [text_of(change.relationship) for change in changes] == texts


async def test_find_shows_what_is_visible(open_node: OpenNode) -> None:
    us = await open_node("us1")
    await us.write(DOC, f"+doc:2 viewer user:a until {us.clock.now_us + 1}", tenant="acme")
    await us.write("-doc:1 viewer user:a", tenant="acme")
    found = await us.store.find("acme", "doc:2", "viewer", "user:a")
    assert found is not None
    assert found.tenant == "acme"
    assert await us.store.find("default", "doc:2", "viewer", "user:a") is None
    us.clock.now_us += 1
    for resource in ("doc:1", "doc:2", "doc:3"):
        assert await us.store.find("acme", resource, "viewer", "user:a") is None


# -- guards ---------------------------------------------------------------------------------------


async def test_a_repeat_gets_the_first_answer_and_has_no_effect(open_node: OpenNode) -> None:
    us = await open_node("us1")
    await us.write(DOC)
    request = {"idempotency_key": "a key", "request_hash": "1"}
    first = await us.write("-doc:1 viewer user:a", "+doc:2 viewer user:a", **request)
    await us.write(DOC)
    before = dump(us.valkey)
    again = await us.write("-doc:1 viewer user:a", "+doc:2 viewer user:a", **request)
    assert again.replayed
    assert (again.revision, again.written, again.deleted) == (first.revision, 1, 1)
    assert again.vector == first.vector
    assert dump(us.valkey) == before


async def test_repeats_in_one_group_have_one_effect(open_node: OpenNode) -> None:
    us = await open_node("us1")
    begin = us.store.revision
    request = {"idempotency_key": "key", "request_hash": "1"}
    answers = await asyncio.gather(*(us.write(DOC, **request) for _ in range(20)))
    assert len({answer.revision for answer in answers}) == 1
    assert [answer.replayed for answer in answers] == [False] + [True] * 19
    assert len(await us.own_lines(begin)) == 1


async def test_a_key_stands_for_one_request_of_one_tenant(open_node: OpenNode) -> None:
    us = await open_node("us1")
    await us.write(DOC, idempotency_key="key", request_hash="1")
    with pytest.raises(Refused) as refused:
        await us.write("+doc:2 viewer user:a", idempotency_key="key", request_hash="2")
    assert (refused.value.code, refused.value.status) == ("idempotency_key_reused", 422)
    other = await us.write(DOC, tenant="acme", idempotency_key="key", request_hash="2")
    assert not other.replayed
    assert await us.listed() == [TUPLE]


async def test_a_refused_write_does_not_use_up_its_key(open_node: OpenNode) -> None:
    us = await open_node("us1")
    revision = (await us.write(DOC)).revision
    request = {"idempotency_key": "key", "request_hash": "1"}
    with pytest.raises(Refused, match="expected_revision"):
        await us.write(DOC, expected_revision=revision - 1, **request)
    assert not (await us.write(DOC, expected_revision=revision, **request)).replayed


async def test_a_repeat_is_not_judged_again(open_node: OpenNode) -> None:
    """Its own first effect would refuse it."""
    us = await open_node("us1")
    begin = us.store.revision
    request = {"idempotency_key": "key", "request_hash": "1"}
    first = await us.write(DOC, expected_revision=begin, **request)
    again = await us.write(DOC, expected_revision=begin, **request)
    assert again.revision == first.revision


async def test_a_key_is_kept_for_ten_minutes(open_node: OpenNode) -> None:
    us = await open_node("us1")
    await us.write(DOC, idempotency_key="any text: {}/é", request_hash="1")
    with redis.Redis.from_url(us.valkey.url, protocol=2) as client:
        (key,) = client.keys("*:i:*")
        assert 590 < client.ttl(key) <= 600


async def test_expected_revision_sees_local_and_remote_changes(open_node: OpenNode) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    begin = us.store.revision
    await eu.write(DOC)
    await us.take(eu)
    with pytest.raises(Refused, match="expected_revision"):
        await us.write("-doc:1 viewer user:a", expected_revision=begin)
    # A tuple that nobody touched, and one read after its change.
    await us.write("+doc:2 viewer user:a", expected_revision=begin)
    deleted = await us.write("-doc:1 viewer user:a", expected_revision=us.store.revision)
    with pytest.raises(Refused, match=str(deleted.revision)):
        await us.write(DOC, expected_revision=deleted.revision - 1)
    await us.write(DOC, expected_revision=deleted.revision)


async def test_a_change_that_loses_here_did_not_change_the_tuple(open_node: OpenNode) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    await eu.write("-doc:1 viewer user:a")
    us.clock.pass_s(1)
    revision = (await us.write(DOC)).revision
    await us.take(eu)
    assert us.store.revision > revision
    await us.write(DOC, expected_revision=revision)


# -- merges ---------------------------------------------------------------------------------------


async def test_a_merge_may_be_repeated(open_node: OpenNode) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    await eu.write(*numbered(3))
    await eu.write("-doc:1 viewer user:a")
    assert (await us.take(eu)).transactions == 3
    before = dump(us.valkey)
    merged = await us.take(eu)
    assert (merged.outcome, merged.transactions) == (MergeOutcome.APPLIED, 0)
    assert dump(us.valkey) == before
    assert b"merged_transactions_total 3.0" in us.metrics.render()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("strategy", ["lww", "insert_wins", "delete_wins"])
async def test_the_order_between_origins_does_not_matter(
    strategy: str, seed: int, open_node: OpenNode
) -> None:
    rnd = random.Random(seed)
    rules = Rules.of(ConflictResolutionStrategy(strategy))
    writers = [await open_node(name, rules=rules) for name in ("ap1", "eu1", "us1")]
    for _ in range(12):
        writer = rnd.choice(writers)
        writer.clock.pass_s(rnd.random())
        sign, doc = rnd.choice("++-"), rnd.randrange(3)
        await writer.write(f"{sign}doc:{doc} viewer user:a")
        if rnd.random() < 0.2:
            await writer.take(rnd.choice([w for w in writers if w is not writer]))
    seen = []
    for number in range(3):
        reader = await open_node(f"r{number}", rules=rules)
        feeds = [await writer.own_lines() for writer in writers]
        while not all(is_covered(w.store.vector, reader.store.vector) for w in writers):
            feed = rnd.choice(feeds)
            start = rnd.randrange(len(feed))
            await reader.store.merge(b"\n".join(feed[start : start + rnd.randint(1, 4)]))
        with redis.Redis.from_url(reader.valkey.url, protocol=2) as client:
            digests = client.hgetall(reader.store.keys.meta.replace(":meta", ":digest"))
        sums = {bucket: total for bucket, total in digests.items() if int(total) % 2**40}
        vector = {o: t for o, t in reader.store.vector.items() if o != reader.store.origin}
        seen.append((await reader.listed(), sums, vector))
    assert seen[0] == seen[1] == seen[2], f"seed {seed}"


async def test_a_gap_leaves_everything_as_it_was(open_node: OpenNode) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    await us.write(DOC)
    for text in numbered(3, "+doc:{} editor user:b"):
        await eu.write(text)
    first, *others = await eu.own_lines()
    before = dump(us.valkey)
    merged = await us.store.merge(b"\n".join(others))
    assert (merged.outcome, merged.transactions) == (MergeOutcome.GAP, 0)
    assert eu.store.origin in merged.detail
    assert dump(us.valkey) == before
    # What comes before a gap is taken.
    merged = await us.store.merge(b"\n".join([first, others[0], others[2]]))
    assert (merged.outcome, merged.transactions) == (MergeOutcome.GAP, 2)
    assert merged.vector == us.store.vector
    assert (await us.take(eu)).transactions == 2
    assert len(await us.listed()) == 4


async def test_a_clock_too_far_ahead_is_held_back_until_ours_has_come_there(
    open_node: OpenNode,
) -> None:
    """It holds what follows of its origin, and nothing else of the batch."""
    us, ap = await open_node("us1", max_clock_skew_ms=60_000), await open_node("ap1")
    eu = await open_node("eu1", clock=WallClock(BEGIN_US))
    eu.clock.pass_s(60)
    await eu.write(DOC)
    eu.clock.now_us += 1
    ahead = await eu.write("+doc:2 viewer user:a")
    await eu.write("+doc:3 viewer user:a")
    await ap.write("+doc:4 viewer user:b")
    eu_lines = await eu.own_lines()
    merged = await us.store.merge(b"\n".join([*eu_lines, *(await ap.own_lines())]))
    assert (merged.outcome, merged.transactions) == (MergeOutcome.APPLIED, 4)
    assert list(merged.parked) == [eu.store.origin]
    assert "60000 ms ahead of the clock" in merged.parked[eu.store.origin]
    assert merged.vector[eu.store.origin] < ahead.revision
    assert await us.listed() == [TUPLE, "doc:4 viewer user:b"]
    waits = await us.store.parked()
    assert waits[eu.store.origin]["timestamp"] == str(ahead.revision)
    before = dump(us.valkey)
    again = await us.take(eu)
    assert (again.outcome, again.transactions) == (MergeOutcome.APPLIED, 0)
    assert again.parked == merged.parked
    assert dump(us.valkey) == before
    # What follows is no gap, also when it comes alone.
    alone = await us.store.merge(eu_lines[-1])
    assert (alone.outcome, alone.parked) == (MergeOutcome.APPLIED, merged.parked)
    assert dump(us.valkey) == before
    us.clock.now_us += 1
    assert (await us.store.merge(eu_lines[-2])).parked == {}
    assert await us.store.parked() == {}
    us.clock.now_us += 1
    assert (await us.take(eu)).transactions == 1
    # Having seen the future, this node goes on from there.
    assert (await us.write(DOC)).revision > eu.store.revision


LINE: dict[str, object] = {
    "format": 1,
    "origin": "eu1.mwsgf5bo35gu",
    "timestamp": "1790000000000001",
    "previous": "0",
    "context": {},
    "tenant": "default",
}
ROW: list[object] = ["+", "doc:9", "viewer", "user:a", 5, 77]
WHOLE = {**LINE, "changes": [ROW]}
GOOD = json.dumps(WHOLE)


WRONG_FIELDS: dict[str, list[object]] = {
    "changes": [None, 5, "text", [5], [[]], [None], [{}], [ROW, ROW], [ROW, ["-", *ROW[1:]]]],
    "format": [0, 1.5, "1", None, True],
    "timestamp": [5, "", "-5", "5.5", "0", " 5", "9007199254740992", "9" * 99],
    "previous": [0, None, LINE["timestamp"], "9007199254740991"],
    "origin": [None, 5, "", "eu1", "eu1.", ".a", "EU.a", "a.b.c", "a.b\n", "é.a"],
    "tenant": [None, 5, "", "a/b", "é", "a b", "a\n"],
    "context": [None, 5, "x", ["5"], {"n.1": 5}, {"n.1": ""}, {"n.1": "-1"}, {"n.1": None}],
    "beyond": [None, 5, "x", {"1": 5}, {"1": {"n.1": "x"}}, {"1": None}],
}
WRONG_ROWS: list[list[object]] = [
    *([sign, *ROW[1:]] for sign in ("", "*", "insert", None, 1)),
    *([*ROW[:1], resource, *ROW[2:]] for resource in (None, 5, "", "doc", ["doc:1"])),
    *([*ROW[:2], relation, *ROW[3:]] for relation in (None, 5, ["a"])),
    *([*ROW[:3], subject, *ROW[4:]] for subject in (None, 5, ["a"])),
    *([*ROW[:4], bucket, *ROW[5:]] for bucket in (None, "5", -1, 4096, 5.5)),
    *([*ROW[:5], tuple_hash] for tuple_hash in (None, "7", -1, 2**40, 7.5)),
    *([*ROW, condition] for condition in (5, None, ["a"])),
    *([*ROW, "{}", expires_at] for expires_at in (5, "x", "-5", None)),
    *(ROW[:length] for length in range(6)),
]
BAD_LINES: list[object] = [
    *("null", "5", "[]", "{}", "hello", '{"format":1', "\ufeff{}", "{}" * 3, "[" * 5_000),
    *({k: v for k, v in WHOLE.items() if k != name} for name in WHOLE),
    *({**WHOLE, name: wrong} for name, wrongs in WRONG_FIELDS.items() for wrong in wrongs),
    *({**LINE, "changes": [row]} for row in WRONG_ROWS),
]


def line_of(bad: object) -> bytes:
    return (bad if isinstance(bad, str) else json.dumps(bad)).encode()


async def test_a_line_that_is_none_writes_nothing_not_even_the_lines_before_it(
    open_node: OpenNode,
) -> None:
    us = await open_node("us1")
    await us.write(DOC)
    before, accepted, codes = dump(us.valkey), list[object](), set[str]()
    for bad in BAD_LINES:
        for batch in (line_of(bad), GOOD.encode() + b"\n" + line_of(bad)):
            try:
                await us.store.merge(batch)
            except Refused as refused:
                codes.add(refused.code)
            else:
                accepted.append(bad)
    assert codes == {"bad_batch"}
    assert not [line_of(bad).decode() for bad in accepted]
    assert dump(us.valkey) == before
    assert us.store.is_open
    assert (await us.store.merge(GOOD.encode())).transactions == 1


async def test_changes_are_a_list(open_node: OpenNode) -> None:
    """An object would be stored as an empty transaction that no reader of the feed understands."""
    us = await open_node("us1")
    for wrong in ({"a": 1}, {"1": ROW}):
        with pytest.raises(Refused):
            await us.store.merge(line_of({**LINE, "changes": wrong}))


async def test_an_empty_batch_is_empty(open_node: OpenNode) -> None:
    us = await open_node("us1")
    for batch in (b"", b"\n", b"\n\n"):
        merged = await us.store.merge(batch)
        assert (merged.outcome, merged.transactions) == (MergeOutcome.APPLIED, 0)


async def test_this_nodes_own_writes_are_not_taken_back_from_a_peer(open_node: OpenNode) -> None:
    """A peer that holds more of them than this node proves a loss."""
    us = await open_node("us1")
    await us.write(DOC)
    own = json.loads((await us.own_lines())[-1])
    us.clock.pass_s(1)
    newer = {**own, "timestamp": str(int(own["timestamp"]) + 1), "previous": own["timestamp"]}
    before = dump(us.valkey)
    merged = await us.store.merge(json.dumps(newer).encode())
    assert (merged.outcome, merged.transactions) == (MergeOutcome.LOST, 0)
    assert dump(us.valkey) == before
    assert (await us.store.merge(json.dumps(own).encode())).outcome is MergeOutcome.APPLIED


# -- what watchers are told -----------------------------------------------------------------------


async def test_a_watcher_is_not_told_of_a_change_that_lost(open_node: OpenNode) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    await us.write(DOC, "+doc:2 viewer user:a")
    eu.clock.pass_s(1)
    await eu.write("-doc:1 viewer user:a", "+doc:3 viewer user:a")
    us_lines = await us.own_lines()
    await us.take(eu)
    assert await us.told() == ["-doc:1 viewer user:a", "+doc:3 viewer user:a"]
    await eu.store.merge(b"\n".join(us_lines))
    assert await eu.told() == ["+doc:2 viewer user:a"]
    assert await us.listed() == await eu.listed()
    assert conflicts(us) == (0, 1)
    assert conflicts(eu) == (1, 0)


async def test_a_watcher_is_told_what_a_change_uncovers(open_node: OpenNode) -> None:
    """The insert that arrives has seen the winning delete; an older loser is newer than it."""
    names = ("us1", "eu1", "ap1", "sa1")
    us, eu, ap, sa = [await open_node(name, rules=DELETE_WINS) for name in names]
    await us.write("-doc:1 viewer user:a")
    eu.clock.pass_s(9)
    await eu.write(f'{DOC} if "B" until {10**17}')
    await ap.take(us)
    await ap.write(f'{DOC} if "A"')
    await sa.take(us)
    await sa.take(eu)
    assert (await sa.told(), await sa.listed()) == ([], [])
    await sa.take(ap)
    assert await sa.told() == [f'+{TUPLE} if "B" until {10**17}']
    assert await sa.listed() == [f'{TUPLE} if "B" until {10**17}']


async def test_a_watcher_is_told_of_a_delete_that_a_change_uncovers(open_node: OpenNode) -> None:
    names = ("us1", "eu1", "ap1", "sa1")
    us, eu, ap, sa = [await open_node(name, rules=INSERT_WINS) for name in names]
    await us.write(DOC)
    eu.clock.pass_s(9)
    await eu.write("-doc:1 viewer user:a")
    await ap.take(us)
    await ap.write("-doc:1 viewer user:a")
    await sa.take(us)
    await sa.take(eu)
    assert (await sa.told(), await sa.listed()) == ([], [TUPLE])
    await sa.take(ap)
    assert (await sa.told(), await sa.listed()) == ([f"-{TUPLE}"], [])


async def test_ordered_writes_are_no_conflicts(open_node: OpenNode) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    for turn in range(5):
        here, there = (us, eu) if turn % 2 else (eu, us)
        await here.write(f"{'-' if turn % 2 else '+'}{TUPLE}")
        await there.take(here)
    # Nor are concurrent writes that say the same.
    await asyncio.gather(us.write(DOC), eu.write(DOC))
    lines = await us.own_lines()
    await us.take(eu)
    await eu.store.merge(b"\n".join(lines))
    assert conflicts(us) == conflicts(eu) == (0, 0)


# -- the feed, the vector, the rest ---------------------------------------------------------------


async def test_the_feed_is_read_from_any_place(open_node: OpenNode) -> None:
    us = await open_node("us1")
    first = us.store.revision
    revisions = [first, *[(await us.write(text)).revision for text in numbered(9)]]
    assert await us.store.feed_bounds() == (first, revisions[-1])
    for after in (0, first - 1, first, *revisions, revisions[-1] + 99):
        wanted = [revision for revision in revisions if revision > after]
        for count in (1, 3, 100):
            feed = await us.store.feed_after(after, count)
            assert [entry.revision for entry in feed] == wanted[:count]
        news = await us.store.feed_news(after, 100, 1)
        assert [entry.revision for entry in news] == wanted


async def test_news_are_waited_for(open_node: OpenNode) -> None:
    us = await open_node("us1")
    waiting = asyncio.create_task(us.store.feed_news(us.store.revision, 10, 5_000))
    written = await us.write(DOC)
    (entry,) = await waiting
    assert (entry.revision, entry.changes, entry.origin) == (written.revision, 1, us.store.origin)
    assert await us.store.feed_news(us.store.revision, 10, 1) == []


async def test_coverage_is_waited_for(open_node: OpenNode) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    assert await us.store.wait_covered({}, 0)
    assert await us.store.wait_covered(us.store.vector, 0)
    written = await eu.write(DOC)
    assert not await us.store.wait_covered(written.vector, 0)
    assert not await us.store.wait_covered(written.vector, 0.01)
    waiting = [asyncio.create_task(us.store.wait_covered(written.vector, 5)) for _ in range(3)]
    given_up = asyncio.create_task(us.store.wait_covered({"nobody.1": 1}, 5))
    await asyncio.sleep(0)
    given_up.cancel()
    await us.take(eu)
    assert await asyncio.gather(*waiting) == [True] * 3
    assert given_up.cancelled() or await asyncio.wait([given_up])


async def test_tenants_are_those_that_have_had_a_tuple(open_node: OpenNode) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    assert await us.store.tenants() == []
    await us.write(DOC, tenant="b")
    await us.write("-doc:1 viewer user:a", tenant="a")
    await eu.write(DOC, tenant="c")
    await us.take(eu)
    assert await us.store.tenants() == ["a", "b", "c"]
    assert await eu.store.tenants() == ["c"]
    assert await us.listed("a") == []
    assert await us.listed("b") == await us.listed("c") == [TUPLE]


async def test_cursors_of_targets_are_kept(open_node: OpenNode) -> None:
    us = await open_node("us1")
    assert await us.store.cursors() == {}
    await us.store.store_cursor("eu1", 5)
    await us.store.store_cursor("ap1", 2**53 - 1)
    await us.store.store_cursor("eu1", 7)
    assert await us.store.cursors() == {"eu1": 7, "ap1": 2**53 - 1}


# -- cancellation and the end ---------------------------------------------------------------------


async def test_a_writer_that_gives_up_disturbs_nobody(open_node: OpenNode) -> None:
    """Before its write is sent and while it is: it may be carried out or not, the others are."""
    us = await open_node("us1")
    for steps in range(12):
        writers = [asyncio.create_task(us.write(text)) for text in numbered(5)]
        for _ in range(steps):
            await asyncio.sleep(0)
        writers[2].cancel()
        others = await asyncio.gather(*writers[:2], *writers[3:])
        assert len({answer.revision for answer in others}) == 4
        await asyncio.wait([writers[2]])
        for text, answer in zip(numbered(2), others, strict=False):
            feed = await us.store.feed_after(answer.revision - 1, 1)
            (change,) = feed[0].transaction().changes
            assert f"+{text_of(change.relationship)}" == text


async def test_a_reader_that_gives_up_leaves_no_reply_behind(open_node: OpenNode) -> None:
    us = await open_node("us1")
    await us.write(*numbered(300))
    for steps in (*range(10), *range(10, 200, 10)):
        reader = asyncio.create_task(us.listed())
        for _ in range(steps):
            await asyncio.sleep(0)
        reader.cancel()
        await asyncio.wait([reader])
        assert await us.store.tenants() == ["default"]
    assert len(await us.listed()) == 300


async def until_postponed(valkey: RealValkey, count: int = 1) -> None:
    """Wait until the server holds back that many scripts."""

    def held_back() -> int:
        clients = valkey.call("CLIENT", "LIST").splitlines()
        # Between commands a client holds no arguments.
        return sum(b" cmd=evalsha " in c and b" argv-mem=0 " not in c for c in clients)

    async with asyncio.timeout(10):
        while held_back() < count:
            await asyncio.sleep(0.01)


async def test_writers_that_wait_when_the_node_ends_are_told_so(valkey: RealValkey) -> None:
    """Nobody waits for ever: neither the one whose write is under way, nor those behind it."""
    async with running_node(valkey, "us1") as us:
        await us.store.opened()
        await us.write(DOC)
        valkey.call("CLIENT", "PAUSE", "60000", "WRITE")
        try:
            under_way = asyncio.create_task(us.write(DOC))
            await asyncio.sleep(0.05)
            behind = asyncio.create_task(us.write(DOC))
            await asyncio.sleep(0.05)
            await us.store.__aexit__(None, None, None)
        finally:
            valkey.call("CLIENT", "UNPAUSE")
        done, pending = await asyncio.wait([under_way, behind], timeout=0.5)
        for task in pending:
            task.cancel()
        assert not pending
        codes = []
        for task in (under_way, behind):
            assert task in done
            failure = task.exception()
            assert isinstance(failure, Unavailable)
            codes.append(failure.code)
        assert codes == ["outcome_unknown", "store_unavailable"]
        with pytest.raises(Unavailable):
            await us.write(DOC)


# -- data sets that are not ours ------------------------------------------------------------------


async def refusal(valkey: RealValkey, name: str, rules: Rules = DELETE_WINS) -> Refused:
    before = dump(valkey)
    with pytest.raises(Refused) as refused:
        async with running_node(valkey, name, rules=rules, prefix="shared") as node:
            await node.store.opened()
    await node.store.__aexit__(None, None, None)
    assert dump(valkey) == before
    return refused.value


async def test_data_of_another_node_or_format_is_refused(valkey: RealValkey) -> None:
    async with running_node(valkey, "us1", rules=DELETE_WINS, prefix="shared") as us:
        await us.store.opened()
        await us.write(DOC)
        meta = us.store.keys.meta
    wrong_node = await refusal(valkey, "us2")
    assert wrong_node.code == "wrong_store"
    assert wrong_node.message.startswith("redis.url: ")
    assert "us1" in wrong_node.message
    assert "us2" in wrong_node.message

    for name in ("format", "partitions"):
        with redis.Redis.from_url(valkey.url, protocol=2) as client:
            client.hset(meta, name, "99")
        wrong_format = await refusal(valkey, "us1")
        assert wrong_format.message.startswith("redis.url: ")
        assert "99" in wrong_format.message
        with redis.Redis.from_url(valkey.url, protocol=2) as client:
            client.hset(meta, name, "1")
    async with running_node(valkey, "us1", rules=DELETE_WINS, prefix="shared") as us:
        await us.store.opened()
        assert await us.listed() == [TUPLE]


async def test_a_redis_that_may_evict_is_refused(valkey: RealValkey) -> None:
    valkey.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        evicting = await refusal(valkey, "us1")
    finally:
        valkey.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert evicting.code == "wrong_eviction_policy"
    assert "redis.url" in evicting.message
    assert "allkeys-lru" in evicting.message


async def test_two_nodes_share_a_redis_by_prefix(open_node: OpenNode) -> None:
    us, eu = await open_node("us1"), await open_node("eu1")
    await us.write(DOC)
    assert await eu.listed() == []
    assert all(key.startswith((b"{us1:", b"{eu1:")) for key in dump(us.valkey))


# -- servers that lose data or go away ------------------------------------------------------------


async def test_a_store_that_was_flushed_goes_on_in_a_new_incarnation(valkey: RealValkey) -> None:
    """No version is given out twice, and what it had claimed comes back before it serves."""
    async with running_node(valkey, "us1") as us, running_node(valkey, "eu1") as eu:
        await us.store.opened()
        await eu.store.opened()
        await us.write(DOC)
        own_lines, lines = await us.own_lines(), await eu.own_lines()
        had, origin = us.store.vector, us.store.origin
        valkey.call("FLUSHALL")
        for attempt in (us.write(DOC), us.store.merge(lines[0]), us.listed()):
            with pytest.raises(Unavailable) as lost:
                await attempt
            assert lost.value.code == "store_lost_writes"
        async with asyncio.timeout(10):
            await us.store.opened()
        assert (us.store.phase, us.store.behind) == (Phase.BEHIND, had)
        assert us.store.origin > origin
        assert us.store.vector.keys() == {us.store.origin}
        for attempt in (us.write(DOC), us.listed()):
            with pytest.raises(Unavailable) as behind:
                await attempt
            assert behind.value.code == "catching_up"
        # What it had comes back from those who have it.
        await us.store.merge(b"\n".join(own_lines))
        assert is_covered(had, us.store.vector)
        await us.store.end_phase()
        assert await us.listed() == [TUPLE]
        await us.write("-doc:1 viewer user:a")
        assert await us.listed() == []


class Copy:
    """The keys of a server as they are now, to be put back: a backup, or a replica that lags."""

    def __init__(self, valkey: RealValkey) -> None:
        self._url = valkey.url
        with redis.Redis.from_url(self._url, protocol=2) as client:
            self._values = {key: client.dump(key) for key in client.keys("*")}

    def put_back(self) -> None:
        with redis.Redis.from_url(self._url, protocol=2) as client:
            pipeline = client.pipeline(transaction=True)
            pipeline.flushall()
            for key, value in self._values.items():
                pipeline.restore(key, 0, value)
            pipeline.execute()


async def test_a_store_that_was_put_back_is_not_written_to_as_the_same_incarnation(
    open_node: OpenNode,
) -> None:
    us = await open_node("us1")
    first = await us.write(DOC)
    old, copied = us.store.origin, Copy(us.valkey)
    lost = await us.write("+doc:2 viewer user:a")
    copied.put_back()
    before = dump(us.valkey)
    with pytest.raises(Unavailable) as refused:
        await us.write("+doc:3 viewer user:a")
    assert refused.value.code == "store_lost_writes"
    assert str(lost.revision) in refused.value.message
    assert dump(us.valkey) == before
    async with asyncio.timeout(10):
        await us.store.opened()
    assert us.store.phase is Phase.BEHIND
    assert us.store.behind == {old: lost.revision}
    assert us.store.vector[old] == first.revision
    await us.store.end_phase()
    assert await us.listed() == [TUPLE]
    await us.write("+doc:3 viewer user:a")
    entry = await us.newest()
    assert (entry.origin, entry.origin > old) == (us.store.origin, True)


async def test_what_was_never_durable_was_never_claimed(tmp_path: Path) -> None:
    """Losing it takes a new incarnation, but nothing has to come back before the node serves."""
    valkey = start_valkey(tmp_path, args=("--appendonly", "yes", "--appendfsync", "no"))
    try:
        async with running_node(valkey, "us1") as us:
            await us.store.opened()
            old, begun, copied = us.store.origin, us.store.durable, Copy(valkey)
            written = await us.write(DOC)
            assert us.store.durable == begun
            copied.put_back()
            with pytest.raises(Unavailable):
                await us.write(DOC)
            async with asyncio.timeout(10):
                await us.store.opened()
            assert us.store.phase is Phase.SERVING
            assert await us.listed() == []
            await us.write(DOC)
            assert us.store.origin > old
            assert us.store.vector[old] < written.revision
    finally:
        valkey.kill()


# With `everysec` a server whose disk is slow answers up to two seconds before it has written to its
# file; a kill then loses what was acknowledged.
KEEPING = ("--appendonly", "yes", "--appendfsync", "always")


async def test_a_redis_that_goes_and_comes_back(tmp_path: Path) -> None:
    """Nothing that was acknowledged is lost, and nobody has to be told that it is back."""
    valkey = start_valkey(tmp_path, args=KEEPING)
    try:
        async with running_node(valkey, "us1", timeout_s=2.0) as us:
            await us.store.opened()
            origin = us.store.origin
            written = await us.write(DOC)
            valkey.kill()
            for attempt in (us.write(DOC), us.write(DOC), us.listed(), us.store.tenants()):
                with pytest.raises(Unavailable) as gone:
                    await attempt
                assert gone.value.status == 503
            assert gone.value.code == "store_unavailable"
            assert not us.store.is_open
            valkey = start_valkey(tmp_path, args=KEEPING)
            async with asyncio.timeout(20):
                await us.store.opened()
            assert us.store.origin == origin
            assert await us.listed() == [TUPLE]
            assert (await us.write("-doc:1 viewer user:a")).revision > written.revision
            assert await us.listed() == []
    finally:
        valkey.kill()


async def test_a_server_that_dies_over_a_write_leaves_an_unknown_outcome(tmp_path: Path) -> None:
    """With a key the caller may ask again, and learns what became of it."""
    valkey = start_valkey(tmp_path, args=KEEPING)
    request = {"idempotency_key": "key", "request_hash": "1"}
    try:
        async with running_node(valkey, "us1", timeout_s=30.0) as us:
            await us.store.opened()
            await us.write(DOC)
            valkey.call("CLIENT", "PAUSE", "60000", "WRITE")
            writers = [asyncio.create_task(us.write(DOC, **request)) for _ in range(3)]
            await until_postponed(valkey)
            valkey.kill()
            for answer in await asyncio.gather(*writers, return_exceptions=True):
                assert isinstance(answer, Unavailable)
                assert answer.code == "outcome_unknown", answer.message
            valkey = start_valkey(tmp_path, args=KEEPING)
            async with asyncio.timeout(20):
                await us.store.opened()
            assert not (await us.write(DOC, **request)).replayed
            assert (await us.write(DOC, **request)).replayed
    finally:
        valkey.kill()


async def test_a_node_that_starts_again_goes_on_as_the_same_origin(valkey: RealValkey) -> None:
    async with running_node(valkey, "us1") as us:
        await us.store.opened()
        origin, written = us.store.origin, await us.write(DOC)
    async with running_node(valkey, "us1", clock=WallClock(BEGIN_US - 60_000_000)) as us:
        await us.store.opened()
        assert (us.store.origin, us.store.revision) == (origin, written.revision)
        assert us.store.vector == written.vector
        assert (await us.write(DOC)).revision > written.revision


async def test_a_store_opens_when_the_server_comes(tmp_path: Path) -> None:
    valkey = start_valkey(tmp_path, args=KEEPING)
    valkey.stop()
    async with running_node(valkey, "us1") as us:
        assert not us.store.is_open
        with pytest.raises(Unavailable):
            await us.write(DOC)
        with pytest.raises(Unavailable):
            await us.listed()
        valkey = start_valkey(tmp_path, args=KEEPING)
        try:
            async with asyncio.timeout(20):
                await us.store.opened()
            await us.write(DOC)
        finally:
            valkey.kill()


async def test_a_full_server_refuses_writes_and_serves_reads(open_node: OpenNode) -> None:
    us = await open_node("us1")
    await us.write(DOC)
    us.valkey.call("CONFIG", "SET", "maxmemory", "1")
    try:
        before = dump(us.valkey)
        with pytest.raises(Unavailable, match="maxmemory"):
            await us.write("+doc:2 viewer user:a")
        assert await us.listed() == [TUPLE]
        assert dump(us.valkey) == before
        assert us.store.is_open
    finally:
        us.valkey.call("CONFIG", "SET", "maxmemory", "0")
    async with asyncio.timeout(10):
        while us.store.full_because:
            await asyncio.sleep(0.01)
    await us.write("+doc:2 viewer user:a")


async def test_scripts_that_the_server_has_forgotten_are_loaded_again(open_node: OpenNode) -> None:
    us = await open_node("us1")
    us.valkey.call("SCRIPT", "FLUSH")
    await us.write(DOC)
    us.valkey.call("SCRIPT", "FLUSH")
    assert await us.listed() == [TUPLE]


async def test_writes_of_any_size_wait_their_turn(open_node: OpenNode) -> None:
    """A group takes a mebibyte; what is larger goes alone."""
    us = await open_node("us1")
    large = json.dumps("x" * 30_000)
    requests = [
        WriteRequest(
            "default", [change_of(f"+doc:{w}-{n} viewer user:a if {large}") for n in range(9)]
        )
        for w in range(10)
    ]
    answers = await asyncio.gather(*(us.store.write(request) for request in requests))
    revisions = [answer.revision for answer in answers]
    assert revisions == sorted(set(revisions))
    assert len(await us.listed()) == 90
