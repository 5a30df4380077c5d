"""Writes in front of a database, whatever becomes of them on the way: what is settled, and how."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sidecar.errors import SidecarError, Unavailable
from sidecar.proxy import applier, settling
from sidecar.proxy.database import NotSent
from sidecar.store.calls import Written
from sidecar.store.proxy_store import ProxyStore
from tests.store.conftest import OpenNode, change_of
from tests.store.shelf import Stand, running, until

ONE, TWO, THREE = "doc:1 viewer user:a", "doc:2 viewer user:a", "doc:3 viewer user:a"


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for what a test brings about itself."""
    monkeypatch.setattr(settling, "GRACE_S", 0.2)
    monkeypatch.setattr(settling, "AGAIN_S", 0.01)
    monkeypatch.setattr(settling, "SCAN_S", 0.05)
    monkeypatch.setattr(applier, "RETRY_S", (0.01, 0.02))


class Flaky(ProxyStore):
    """A store whose answers get lost, or that is away, as often as a test says."""

    lost: list[str]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.lost = []

    def _meets(self, fault: str) -> bool:
        if fault not in self.lost:
            return False
        self.lost.remove(fault)
        return True

    async def intend(self, *args: Any, **options: Any) -> None:
        await super().intend(*args, **options)
        if self._meets("intend"):
            raise Unavailable("outcome_unknown", "the answer was lost")

    async def commit(self, *args: Any, **options: Any) -> Written:
        if self._meets("no commit"):
            raise Unavailable("store_unavailable", "Redis is away")
        written = await super().commit(*args, **options)
        if self._meets("commit"):
            raise Unavailable("outcome_unknown", "the answer was lost")
        return written

    async def withdraw(self, intent: str, *, in_doubt: bool = False) -> None:
        if self._meets("no withdraw"):
            raise Unavailable("store_unavailable", "Redis is away")
        await super().withdraw(intent, in_doubt=in_doubt)


@pytest.fixture
async def stand(open_node: OpenNode) -> AsyncIterator[Stand]:
    async with running(Stand(await open_node("p", kind=Flaky))) as one:
        yield one


def lose(stand: Stand, *what: str) -> None:
    assert isinstance(stand.store, Flaky)
    stand.store.lost += what


async def outcome_unknown(stand: Stand, *texts: str) -> None:
    with pytest.raises(Unavailable) as unknown:
        await stand.write(*texts)
    assert unknown.value.code == "outcome_unknown"


# -- what is known ------------------------------------------------------------------------------


async def test_a_write_is_given_its_version(stand: Stand) -> None:
    answer, written = await stand.write(f"+{ONE} if 1", f"-{TWO}")
    assert (answer.status, written and written.written) == (200, 1)
    assert await stand.agrees() == [f"{ONE} if 1"]


async def test_what_the_database_refuses_is_nothing(stand: Stand) -> None:
    stand.shelf.unknown_types = {"doc"}
    answer, written = await stand.write(f"+{ONE}")
    assert (answer.status, written, await stand.store.intents()) == (400, None, [])
    assert await stand.agrees() == []


async def test_what_was_not_sent_is_nothing(stand: Stand) -> None:
    stand.shelf.meet("/write", "unreached")
    with pytest.raises(NotSent):
        await stand.write(f"+{ONE}")
    assert await stand.store.intents() == []
    assert await stand.agrees() == []


async def test_a_withdrawal_that_redis_does_not_hear_is_made_up_for(stand: Stand) -> None:
    lose(stand, "no withdraw")
    stand.shelf.unknown_types = {"doc"}
    assert (await stand.write(f"+{ONE}"))[0].status == 400
    assert await stand.agrees() == []


async def test_what_a_filter_matches_is_deleted_and_nothing_else(stand: Stand) -> None:
    await stand.write(f"+{ONE}", f"+{TWO}")
    _, written = await stand.delete(resource="doc:1")
    assert written is not None
    assert written.deleted == 1
    assert await stand.agrees() == [TWO]
    assert (await stand.delete(resource="doc:1"))[1] is None


async def test_of_a_limited_deletion_only_what_is_gone_counts(stand: Stand) -> None:
    await stand.write(*(f"+doc:1 viewer user:{n}" for n in range(3)))
    _, written = await stand.delete(limit=2, resource="doc:1")
    assert written is not None
    assert written.deleted == 2
    assert await stand.agrees() == ["doc:1 viewer user:2"]


# -- what is not --------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["lost", "late"])
async def test_a_write_without_an_answer_that_was_carried_out_counts(
    stand: Stand, fault: str
) -> None:
    stand.shelf.meet("/write", fault)
    await outcome_unknown(stand, f"+{ONE}", f"+{TWO} if 1")
    assert await stand.node.listed() == []
    stand.shelf.carry_out_late()
    assert await stand.agrees() == [ONE, f"{TWO} if 1"]


async def test_a_write_without_an_answer_that_never_came_is_nothing(stand: Stand) -> None:
    await stand.write(f"+{TWO}")
    stand.shelf.meet("/write", "late")
    await outcome_unknown(stand, f"+{ONE}", f"-{TWO}")
    assert await stand.agrees() == [TWO]


async def test_a_write_that_its_client_gives_up_is_settled(stand: Stand) -> None:
    stand.shelf.meet("/write", "held")
    writing = asyncio.create_task(stand.write(f"+{ONE}"))
    await until(stand.store.intents)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await stand.agrees() == []


async def test_what_an_earlier_process_left_is_settled(open_node: OpenNode) -> None:
    node = await open_node("p", kind=ProxyStore)
    earlier, later = Stand(node), Stand(node)
    later.shelf = earlier.shelf
    earlier.shelf.meet("/write", "lost")
    await outcome_unknown(earlier, f"+{ONE}")
    async with running(earlier):
        assert await earlier.agrees() == [ONE]


async def test_an_acknowledged_deletion_stands_although_an_older_write_comes_late(
    stand: Stand,
) -> None:
    stand.shelf.meet("/write", "late")
    await outcome_unknown(stand, f"+{ONE}", f"+{TWO}")
    assert (await stand.write(f"-{ONE}"))[0].status == 200
    stand.shelf.carry_out_late()
    assert await stand.agrees() == [TWO]


@pytest.mark.parametrize("is_held_up", [False, True])
@pytest.mark.parametrize("before", [[], ["+doc:1 viewer user:b"]])
async def test_a_deletion_by_filter_that_comes_late_takes_nothing_new_along(
    stand: Stand, before: list[str], is_held_up: bool
) -> None:
    for text in before:
        await stand.write(text)
    stand.shelf.meet("/delete", "late")
    with pytest.raises(Unavailable):
        await stand.delete(resource="doc:1")
    await stand.write(f"+{ONE}")
    if is_held_up:
        await stand.node.write("+doc:1 viewer user:c")
        await until(lambda: _has(stand, "doc:1 viewer user:c"))
    stand.shelf.carry_out_late()
    assert stand.shelf.held == []
    assert await stand.agrees() == [ONE, *["doc:1 viewer user:c"] * is_held_up]


async def _has(stand: Stand, text: str) -> bool:
    return text in stand.shelf.held


async def test_what_another_write_did_is_no_proof(stand: Stand) -> None:
    """Else the second tuple would be inserted as well, or what came in between overwritten."""
    stand.shelf.meet("/write", "late")
    await outcome_unknown(stand, f"+{ONE}", f"+{TWO}")
    await stand.write(f"+{ONE}")
    assert await stand.agrees() == [ONE]


async def test_what_the_database_had_still_to_be_told_is_no_proof(open_node: OpenNode) -> None:
    """The deletion of another region had not arrived when an insert failed: it stands."""
    there, node = await open_node("q"), await open_node("p", kind=ProxyStore)
    stand = Stand(node)
    await stand.write(f"+{ONE}")
    await there.take(node)
    there.clock.pass_s(1)
    await there.write(f"-{ONE}")
    await node.take(there)
    stand.shelf.meet("/write", "late")
    await outcome_unknown(stand, f"+{ONE}")
    async with running(stand):
        assert await stand.agrees() == []


async def test_a_write_that_came_to_nothing_new_proves_nothing(stand: Stand) -> None:
    await stand.write(f"+{ONE}")
    stand.shelf.meet("/write", "lost")
    await outcome_unknown(stand, f"+{ONE}", f"-{TWO}")
    assert await stand.agrees() == [ONE]


async def test_a_schema_that_reads_back_otherwise_is_recognized(stand: Stand) -> None:
    await stand.write_schema("one")
    stand.shelf.meet("/schema", "", "lost")
    with pytest.raises(Unavailable):
        await stand.write_schema("two")
    await stand.quiet()
    assert stand.shelf.schema == "TWO"
    found = await stand.node.listed(resource="sidecar-schema:current")
    assert found == ['sidecar-schema:current is sidecar-schema:text if "TWO"']


async def test_a_schema_that_never_came_is_undone_nowhere(stand: Stand) -> None:
    await stand.write_schema("one")
    stand.shelf.meet("/schema", "", "late")
    with pytest.raises(Unavailable):
        await stand.write_schema("two")
    await stand.quiet()
    found = await stand.node.listed(resource="sidecar-schema:current")
    assert (stand.shelf.schema, found[0][-5:]) == ("ONE", '"one"')


# -- Redis away ---------------------------------------------------------------------------------


async def test_an_intent_whose_answer_was_lost_holds_nothing_up(stand: Stand) -> None:
    lose(stand, "intend")
    await outcome_unknown(stand, f"+{ONE}")
    assert stand.shelf.held == []
    assert await stand.store.intents() == []
    lose(stand, "intend", "no withdraw")
    await outcome_unknown(stand, f"+{ONE}")
    assert await stand.agrees() == []


async def test_an_intent_that_redis_notes_late_is_found(stand: Stand) -> None:
    """The connection was gone by then, and with it whoever would close it."""
    await stand.store.intend("late", "default", [change_of(f"+{ONE}")])
    assert await stand.agrees() == []


async def test_what_was_done_while_redis_was_away_is_made_up_for(stand: Stand) -> None:
    """Also where looking proves nothing: the database has said so."""
    await stand.write(f"+{ONE}")
    lose(stand, "no commit", "no commit")
    await outcome_unknown(stand, f"+{ONE}")
    await stand.quiet()
    revision = (await stand.node.newest()).revision
    lose(stand, "no commit")
    await outcome_unknown(stand, f"+{ONE}")
    await stand.quiet()
    assert (await stand.node.newest()).revision > revision
    assert await stand.agrees() == [ONE]


async def test_a_commit_whose_answer_was_lost_counts_once(stand: Stand) -> None:
    lose(stand, "commit")
    await outcome_unknown(stand, f"+{ONE}")
    assert await stand.agrees() == [ONE]
    assert len([one for one in await stand.node.own_lines() if b"doc:1" in one]) == 1


async def test_what_was_committed_long_ago_is_no_longer_looked_at(stand: Stand) -> None:
    """Redis has forgotten the commit itself: there is no intent, and so it is over."""
    stand.shelf.meet("/write", "lost")
    lose(stand, "commit")
    await outcome_unknown(stand, f"+{ONE}")
    await until(stand.node.listed)
    for key in await stand.store._read("KEYS", "*:i:*"):
        await stand.store._read("DEL", key)
    assert await stand.agrees() == [ONE]


# -- a database that says odd things ------------------------------------------------------------


async def test_rubbish_instead_of_an_answer_is_waited_out(stand: Stand) -> None:
    stand.shelf.meet("/write", "lost")
    stand.shelf.meet("/find", "rubbish", "unreached", "lost")
    await outcome_unknown(stand, f"+{ONE}")
    assert await stand.agrees() == [ONE]
    stand.shelf.meet("/find", "rubbish")
    with pytest.raises(SidecarError):
        await stand.delete(resource="doc:1")
    assert await stand.agrees() == [ONE]
