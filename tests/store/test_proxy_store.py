"""Intents, dirty marks and what the database refuses, on Redis."""

import math
import random
from typing import cast

import pytest

from sidecar.core.epoch import Epoch
from sidecar.core.relationship import BUCKETS
from sidecar.errors import Refused, Unavailable
from sidecar.store.calls import Way
from sidecar.store.proxy_store import Intent, Noted, Pending, ProxyStore
from tests.store.bodies import page_of
from tests.store.conftest import Node, OpenNode, change_of, dump, intended, relationship_of, text_of

ONE = "doc:1 viewer user:a"
TWO = "doc:2 viewer user:a"


async def proxied(open_node: OpenNode, name: str = "p") -> tuple[Node, ProxyStore]:
    node = await open_node(name, kind=ProxyStore)
    return node, cast("ProxyStore", node.store)


def shown(pending: list[Pending]) -> list[str]:
    return sorted(
        ("+" if one.shown else "-") + text_of(one.shown or one.identity) for one in pending
    )


async def told(store: ProxyStore) -> list[str]:
    """What the database would be told now."""
    return shown(await store.pending(100))


async def tell(store: ProxyStore, reason: str = "") -> int:
    return await store.note_applied([(one, reason) for one in await store.pending(100)])


async def open_one(store: ProxyStore) -> Intent:
    (name,) = await store.intents()
    intent = await store.intent(name)
    assert intent is not None
    return intent


async def written_through(store: ProxyStore, *texts: str) -> None:
    changes = [change_of(text) for text in texts]
    await store.commit(await intended(store, *texts), "default", changes)


async def test_a_write_through_the_database_leaves_nothing_behind(open_node: OpenNode) -> None:
    node, store = await proxied(open_node)
    changes = [change_of(f"+{ONE} if 1 until 99"), change_of(f"-{TWO}")]
    intent = await intended(store, f"+{ONE} if 1 until 99", f"-{TWO}")
    found = await open_one(store)
    assert (found.id, found.revision, found.schema) == (intent, store.revision, "")
    assert found.noted == tuple(Noted(one, None, True, False) for one in changes)
    written = await store.commit(intent, "default", changes)
    assert (written.written, await store.intents(), await told(store)) == (1, [], [])
    assert {key.split(b":")[-1] for key in dump(node.valkey)} & {b"intended", b"dirty"} == set()


async def test_what_is_merged_is_told_until_the_database_has_it(open_node: OpenNode) -> None:
    there = await open_node("q")
    node, store = await proxied(open_node)
    await there.write(f"+{ONE} if 1")
    await node.take(there)
    assert await told(store) == [f"+{ONE} if 1"]
    stale = await store.pending(100)
    await there.write(f"-{ONE}")
    await node.take(there)
    assert await store.note_applied([(one, "") for one in stale]) == 0
    assert await told(store) == [f"-{ONE}"]
    assert (await tell(store), await told(store)) == (1, [])


async def test_an_open_intent_keeps_its_tuples_from_being_told(open_node: OpenNode) -> None:
    there = await open_node("q")
    node, store = await proxied(open_node)
    await there.write(f"+{ONE}", f"+{TWO}")
    changes = [change_of(f"-{ONE}")]
    intent = await intended(store, f"-{ONE}")
    await node.take(there)
    assert await told(store) == [f"+{TWO}"]
    # It came in between: the database may have it from elsewhere, so it is told the winner.
    await store.commit(intent, "default", changes)
    assert await told(store) == [f"+{TWO}", f"-{ONE}"]


async def test_an_intent_remembers_what_was_shown(open_node: OpenNode) -> None:
    _, store = await proxied(open_node)
    await written_through(store, f"+{ONE} if 1 until 1900000000000000")
    await intended(store, f"-{ONE}")
    (noted,) = (await open_one(store)).noted
    assert noted.was == relationship_of(f"{ONE} if 1 until 1900000000000000")


async def test_of_two_writes_at_once_the_database_is_told_which_came_last(
    open_node: OpenNode,
) -> None:
    _, store = await proxied(open_node)
    first, second = [change_of(f"+{ONE}")], [change_of(f"-{ONE}")]
    intents = [await intended(store, text) for text in (f"+{ONE}", f"-{ONE}")]
    await store.commit(intents[1], "default", second)
    assert await told(store) == []
    await store.commit(intents[0], "default", first)
    assert await told(store) == [f"+{ONE}"]


async def test_a_mark_set_while_the_database_was_told_stays(open_node: OpenNode) -> None:
    there = await open_node("q")
    node, store = await proxied(open_node)
    await there.write(f"+{ONE}")
    await node.take(there)
    in_flight = await store.pending(100)
    await written_through(store, f"-{ONE}")
    assert await store.note_applied([(one, "") for one in in_flight]) == 0
    assert await told(store) == [f"-{ONE}"]


@pytest.mark.parametrize("in_doubt", [False, True])
async def test_a_withdrawn_intent_is_in_doubt_or_forgotten(
    open_node: OpenNode, in_doubt: bool
) -> None:
    _, store = await proxied(open_node)
    intent = await intended(store, f"+{ONE}")
    await store.withdraw(intent, in_doubt=in_doubt)
    assert await store.intents() == []
    assert await told(store) == ([f"-{ONE}"] if in_doubt else [])
    await store.withdraw(intent)


async def test_a_commit_whose_answer_was_lost_may_be_repeated(open_node: OpenNode) -> None:
    there = await open_node("q")
    node, store = await proxied(open_node)
    changes = [change_of(f"+{ONE}")]
    intent = await intended(store, f"+{ONE}")
    first = await store.commit(intent, "default", changes)
    await there.take(node)
    await there.write(f"-{ONE}")
    await node.take(there)
    again = await store.commit(intent, "default", changes)
    assert (again.revision, again.replayed) == (first.revision, True)
    assert await node.listed() == []


async def test_a_commit_of_an_intent_that_redis_has_lost_is_no_write(open_node: OpenNode) -> None:
    node, store = await proxied(open_node)
    with pytest.raises(Unavailable, match="adopt") as lost:
        await store.commit("unknown", "default", [change_of(f"+{ONE}")])
    assert lost.value.code == "outcome_unknown"
    assert await node.listed() == []


async def test_a_fence_keeps_intents_out_and_lets_their_commits_pass(open_node: OpenNode) -> None:
    node, store = await proxied(open_node)
    changes = [change_of(f"+{ONE}")]
    intent = await intended(store, f"+{ONE}")
    await store.raise_epoch("us-west-1", Epoch(1, "eu-central-1", {}))
    with pytest.raises(Unavailable) as fenced:
        await intended(store, f"+{ONE}")
    assert fenced.value.code == "not_primary"
    await store.commit(intent, "default", changes)
    assert await node.listed() == [ONE]


async def test_what_the_database_refuses_is_held_until_it_is_released(open_node: OpenNode) -> None:
    there = await open_node("q")
    node, store = await proxied(open_node)
    await there.write(f"+{ONE}")
    await node.take(there)
    await tell(store, "no such type")
    (held,) = await store.held()
    assert (held.reason, await store.held_count(), await told(store)) == ("no such type", 1, [])
    assert await store.release() == 1
    assert await told(store) == [f"+{ONE}"]
    await tell(store)
    assert await store.held() == []


async def test_pages_and_other_writes_of_this_node_are_told_too(open_node: OpenNode) -> None:
    there = await open_node("q")
    node, store = await proxied(open_node)
    await there.write(f"+{ONE}")
    page = await page_of(there.store, list(range(BUCKETS)))
    await store.absorb(page, Way.JOIN, "one")
    await node.write(f"+{TWO}")
    assert await told(store) == [f"+{ONE}", f"+{TWO}"]


async def test_what_has_expired_is_not_there_for_the_database(open_node: OpenNode) -> None:
    node, store = await proxied(open_node)
    await node.write(f"+{ONE} until {node.clock.now_us + 1_000_000}")
    assert await told(store) == [f"+{ONE} until {node.clock.now_us + 1_000_000}"]
    node.clock.pass_s(1)
    assert await told(store) == [f"-{ONE}"]


async def test_a_database_put_behind_a_store_that_has_data_is_told_all_of_it(
    open_node: OpenNode,
) -> None:
    plain = await open_node("p")
    await plain.write(f"+{ONE}", f"+{TWO}")
    assert not any(key.endswith(b":dirty") for key in dump(plain.valkey))
    _, store = await proxied(open_node)
    assert await store.go_on_remarking()
    assert await told(store) == [f"+{ONE}", f"+{TWO}"]
    assert not await store.go_on_remarking()


async def test_marks_tell_up_to_where_the_database_is(open_node: OpenNode) -> None:
    there = await open_node("q")
    node, store = await proxied(open_node)
    before = store.revision
    await there.write(f"+{ONE}")
    await node.take(there)
    assert not await store.dirty_before(before)
    assert await store.dirty_before(store.revision)
    await tell(store)
    assert not await store.dirty_before(store.revision)


async def test_what_was_still_to_be_told_is_no_proof_of_a_write(open_node: OpenNode) -> None:
    there = await open_node("q")
    node, store = await proxied(open_node)
    await there.write(f"+{ONE}", f"+{TWO}")
    await node.take(there)
    first, _ = sorted(await store.pending(100))
    await store.note_applied([(first, "no such type")])
    await intended(store, f"-{ONE}", f"-{TWO}", "-doc:3 viewer user:a")
    assert [one.is_sure for one in (await open_one(store)).noted] == [False, False, True]


async def test_an_intent_tells_which_tuples_have_changed_since(open_node: OpenNode) -> None:
    there = await open_node("q")
    node, store = await proxied(open_node)
    await written_through(store, f"+{ONE}", f"+{TWO}")
    await intended(store, f"-{ONE}", f"-{TWO}")
    await there.write(f"+{TWO} if 1")
    await node.take(there)
    assert [one.has_moved for one in (await open_one(store)).noted] == [False, True]


async def test_what_has_expired_since_was_not_there(open_node: OpenNode) -> None:
    node, store = await proxied(open_node)
    await written_through(store, f"+{ONE} until {node.clock.now_us + 1_000_000}")
    await intended(store, f"-{ONE}")
    node.clock.pass_s(1)
    assert [one.was for one in (await open_one(store)).noted] == [None]


async def test_what_was_found_out_late_overwrites_nothing(open_node: OpenNode) -> None:
    """Somebody has deleted it since and was told so: it must not come back."""
    node, store = await proxied(open_node)
    changes = [change_of(f"+{ONE}"), change_of(f"+{TWO}")]
    intent = await intended(store, f"+{ONE}", f"+{TWO}")
    await written_through(store, f"-{ONE}")
    revision = (await open_one(store)).revision
    with pytest.raises(Refused) as refused:
        await store.commit(intent, "default", changes, expected_revision=revision, is_late=True)
    assert refused.value.code == "revision_mismatch"
    assert await store.intents() == [intent]
    await store.commit(intent, "default", changes[1:], expected_revision=revision, is_late=True)
    assert await node.listed() == [TWO]
    assert await told(store) == [f"+{TWO}", f"-{ONE}"]


async def test_an_older_mark_stays_when_the_tuple_changes_again(open_node: OpenNode) -> None:
    """Whoever waits for the first revision must not read what was there before it."""
    there = await open_node("q")
    node, store = await proxied(open_node)
    await there.write(f"-{ONE}")
    await node.take(there)
    first = store.revision
    node.clock.pass_s(1)
    there.clock.pass_s(1)
    await there.write(f"+{ONE} if 1")
    await node.take(there)
    assert await store.dirty_before(first)


async def test_what_the_database_may_do_late_is_told_again_afterwards(open_node: OpenNode) -> None:
    there = await open_node("q")
    node, store = await proxied(open_node)
    await there.write(f"+{ONE}")
    await node.take(there)
    assert await told(store) == [f"+{ONE}"]
    await store.doubt(5.0)
    await there.write(f"-{ONE}")
    await node.take(there)
    # It is told what is right at once, and this is believed; but not for ever.
    assert await tell(store) == 1
    assert (await told(store), await store.again_in_s()) == ([], 5.0)
    node.clock.pass_s(5)
    assert await store.again_in_s() == 0
    assert await told(store) == [f"-{ONE}"]
    await tell(store)
    assert (await store.dirty_count(), await store.again_in_s()) == (0, math.inf)


async def test_an_outcome_that_is_known_is_in_no_doubt(open_node: OpenNode) -> None:
    there = await open_node("q")
    node, store = await proxied(open_node)
    await there.write(f"+{ONE}")
    await node.take(there)
    await tell(store)
    assert await told(store) == []
    await store.doubt(5.0)
    assert await store.again_in_s() == math.inf


async def test_a_doubt_that_comes_while_the_database_is_told_is_not_forgotten(
    open_node: OpenNode,
) -> None:
    _, store = await proxied(open_node)
    await store.withdraw(await intended(store, f"+{ONE}"), in_doubt=True)
    in_flight = await store.pending(100)
    await store.withdraw(await intended(store, f"+{ONE}"), in_doubt=True)
    assert await store.note_applied([(one, "") for one in in_flight]) == 1
    assert await told(store) == [f"-{ONE}"]


@pytest.mark.parametrize("seed", range(8))
async def test_after_any_history_the_database_ends_as_redis_shows(
    open_node: OpenNode, seed: int
) -> None:
    """A twin of a database: each step may be in flight while others happen."""
    dice = random.Random(seed)
    there = await open_node("q")
    node, store = await proxied(open_node)
    database: dict[str, bool] = {}
    writes: list[tuple[str, list[str]]] = []
    flights: list[list[Pending]] = []

    def apply(texts: list[str]) -> None:
        for text in texts:
            database[text[1:]] = text[0] == "+"

    for _ in range(150):
        texts = [dice.choice("+-") + name for name in dice.sample((ONE, TWO, "doc:3 a user:b"), 2)]
        match dice.randrange(7):
            case 0:
                await there.write(*texts)
            case 1:
                await node.take(there)
                await there.take(node)
            case 2:
                writes.append((await intended(store, *texts), texts))
            case 3 if writes:
                intent, texts = writes.pop(dice.randrange(len(writes)))
                apply(texts)
                if dice.random() < 0.8:
                    await store.commit(intent, "default", [*map(change_of, texts)])
                else:
                    await store.withdraw(intent, in_doubt=True)
            case 4 if writes:
                await store.withdraw(writes.pop()[0])
            case 5:
                flights.append(await store.pending(100))
            case 6 if flights:
                flight = flights.pop(0)
                apply(shown(flight))
                await store.note_applied([(one, "") for one in flight])
    for intent, _ in writes:
        await store.withdraw(intent)
    await node.take(there)
    while pending := await store.pending(100):
        apply(shown(pending))
        await store.note_applied([(one, "") for one in pending])
    assert sorted(text for text, is_there in database.items() if is_there) == await node.listed()


async def test_a_loss_is_remembered_until_the_database_was_read(open_node: OpenNode) -> None:
    _, store = await proxied(open_node)
    assert not await store.may_lack()
    await store.begin({"q.aaaaaaaa0001": 1})
    assert await store.may_lack()
    await store.lacks_nothing()
    assert not await store.may_lack()
