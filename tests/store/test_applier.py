"""The applier against a database that refuses, is away, or answers too late."""

import asyncio
import math
import random
from collections.abc import AsyncIterator

import pytest

from sidecar.errors import Unavailable
from sidecar.proxy import applier, settling
from sidecar.store.proxy_store import ProxyStore
from tests.store.conftest import Node, OpenNode
from tests.store.shelf import Stand, running, until

ONE, TWO = "doc:1 viewer user:a", "doc:2 viewer user:a"
NEW = "folder:1 owner user:a"


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applier, "RETRY_S", (0.01, 0.02))


class Away(ProxyStore):
    """A store that cannot release what is held, as often as a test says."""

    fails = 0
    failed = 0

    async def release(self) -> int:
        if self.fails:
            self.fails, self.failed = self.fails - 1, self.failed + 1
            raise Unavailable("store_unavailable", "Redis is away")
        return await super().release()


@pytest.fixture
async def there(open_node: OpenNode) -> Node:
    """A node of another region."""
    return await open_node("q")


@pytest.fixture
async def stand(open_node: OpenNode) -> AsyncIterator[Stand]:
    async with running(Stand(await open_node("p", kind=Away))) as one:
        yield one


async def arrives(stand: Stand, there: Node, *texts: str) -> None:
    """What is written there is merged here."""
    there.clock.pass_s(0.001)
    await there.write(*texts)
    await stand.node.take(there)


async def test_the_database_is_told_what_is_merged(stand: Stand, there: Node) -> None:
    await arrives(stand, there, f"+{ONE} if 1", f"+{TWO}")
    assert await stand.agrees() == [f"{ONE} if 1", TWO]
    await arrives(stand, there, f"-{ONE}")
    assert await stand.agrees() == [TWO]


async def test_what_it_refuses_is_held_and_the_rest_is_told(stand: Stand, there: Node) -> None:
    stand.shelf.unknown_types = {"folder"}
    await arrives(stand, there, *(f"+doc:{n} viewer user:a" for n in range(20)), f"+{NEW}")
    await stand.quiet()
    assert len(stand.shelf.held) == 20
    (held,) = await stand.store.held()
    assert held.reason == "400 no such type"
    await arrives(stand, there, f"-{NEW}")
    await stand.quiet()
    assert await stand.store.held() == []


async def test_what_is_held_is_tried_again_under_a_new_schema(stand: Stand, there: Node) -> None:
    stand.shelf.unknown_types = {"folder"}
    await arrives(stand, there, f"+{NEW}")
    await until(stand.store.held)
    stand.shelf.unknown_types = set()
    await stand.write_schema("folders")
    assert NEW in await stand.agrees()
    assert await stand.store.held() == []


async def test_a_schema_written_while_the_database_refuses_is_not_missed(
    stand: Stand, there: Node
) -> None:
    stand.shelf.unknown_types = {"folder"}
    stand.shelf.meet("/apply", "held")
    await arrives(stand, there, f"+{NEW}")
    await until(lambda: _asked(stand, "/apply"))
    await stand.store.release()
    stand.shelf.released.set()
    await until(lambda: _asked(stand, "/apply", 2))
    stand.shelf.unknown_types = set()
    await stand.store.release()
    assert NEW in await stand.agrees()


async def _asked(stand: Stand, path: str, times: int = 1) -> bool:
    return sum(ask.path == path for ask in stand.shelf.asked) >= times


async def test_what_is_held_is_tried_again_now_and_then_also_under_load(
    stand: Stand, there: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.shelf.unknown_types = {"folder"}
    await arrives(stand, there, f"+{NEW}")
    await until(stand.store.held)
    stand.shelf.unknown_types = set()
    monkeypatch.setattr(stand.behind.applier, "_release_at", 0.0)
    await arrives(stand, there, f"+{ONE}")
    assert await stand.agrees() == [ONE, NEW]


@pytest.mark.parametrize("fault", ["unreached", "lost", "late"])
async def test_a_failure_is_repeated_until_the_database_has_it(
    stand: Stand, there: Node, fault: str
) -> None:
    stand.shelf.meet("/apply", fault, fault)
    await arrives(stand, there, f"+{ONE}")
    assert await stand.agrees() == [ONE]
    assert stand.behind.applier.failing_because == ""


async def test_what_it_carries_out_late_does_not_stay(stand: Stand, there: Node) -> None:
    stand.shelf.meet("/apply", "late")
    await arrives(stand, there, f"+{ONE}")
    await until(lambda: _asked(stand, "/apply"))
    await arrives(stand, there, f"-{ONE}")
    assert await stand.agrees() == []
    stand.shelf.carry_out_late()
    assert stand.shelf.held == [ONE]
    stand.node.clock.pass_s(applier.GRACE_S)
    stand.store.changed.set()
    await until(lambda: _holds_nothing(stand))
    assert await stand.agrees() == []


async def _holds_nothing(stand: Stand) -> bool:
    return not stand.shelf.held


async def test_what_an_earlier_process_asked_for_is_told_again(
    open_node: OpenNode, there: Node
) -> None:
    stand = Stand(await open_node("p", kind=ProxyStore))
    stand.shelf.meet("/apply", "late")
    async with running(stand):
        await arrives(stand, there, f"+{ONE}")
        await until(lambda: _asked(stand, "/apply"))
    async with running(stand):
        await arrives(stand, there, f"-{ONE}")
        assert await stand.agrees() == []
        stand.shelf.carry_out_late()
        stand.node.clock.pass_s(applier.GRACE_S)
        stand.store.changed.set()
        await until(lambda: _holds_nothing(stand))


async def test_redis_may_be_away_when_what_is_held_is_released(stand: Stand, there: Node) -> None:
    store = stand.store
    assert isinstance(store, Away)
    store.fails = 2
    stand.behind.applier._release_at = 0.0
    store.changed.set()
    await until(lambda: _has_failed(store))
    await arrives(stand, there, f"+{ONE}")
    assert await stand.agrees() == [ONE]


async def _has_failed(store: Away) -> bool:
    return store.failed == 2


async def test_a_read_waits_until_the_database_has_it(stand: Stand, there: Node) -> None:
    stand.shelf.meet("/apply", "held")
    await arrives(stand, there, f"+{ONE}")
    revision = stand.store.revision
    waiting = asyncio.create_task(stand.behind.applier.wait_applied(revision, 5))
    await until(lambda: _asked(stand, "/apply"))
    assert not await stand.behind.applier.wait_applied(revision, 0.01)
    assert not waiting.done()
    stand.shelf.released.set()
    assert await waiting
    assert stand.shelf.held == [ONE]


async def test_a_write_of_an_application_at_the_same_time_wins(stand: Stand, there: Node) -> None:
    stand.shelf.meet("/apply", "held")
    await arrives(stand, there, f"+{ONE} if 1")
    await until(lambda: _asked(stand, "/apply"))
    await stand.write(f"-{ONE}")
    stand.shelf.released.set()
    assert await stand.agrees() == []


@pytest.mark.parametrize("seed", range(10))
async def test_whatever_is_lost_on_the_way_all_agree_in_the_end(
    open_node: OpenNode, there: Node, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers, merges, answers lost, requests carried out late, and loops that end and begin."""
    monkeypatch.setattr(settling, "GRACE_S", math.inf)
    monkeypatch.setattr(settling, "AGAIN_S", 0.01)
    dice = random.Random(seed)
    stand = Stand(await open_node("p", kind=ProxyStore))

    async def write() -> None:
        names = dice.sample((ONE, TWO, "doc:3 viewer user:a"), 2)
        texts = [dice.choice((f"+{name} if {dice.randrange(99)}", f"-{name}")) for name in names]
        try:
            await stand.write(*texts)
        except Unavailable:
            return

    async def step(tasks: asyncio.TaskGroup) -> None:
        match dice.randrange(5):
            case 0 | 1:
                tasks.create_task(write())
            case 2:
                await arrives(stand, there, dice.choice((f"+{ONE} if 100", f"-{TWO}")))
            case 3:
                path = dice.choice(("/apply", "/write", "/find"))
                stand.shelf.meet(path, dice.choice(("lost", "late", "unreached", "")))
            case 4:
                stand.shelf.carry_out_late()
        for _ in range(dice.randrange(30)):
            await asyncio.sleep(0)

    for _ in range(3):
        async with running(stand), asyncio.TaskGroup() as tasks:
            for _ in range(40):
                await step(tasks)
    stand.shelf.faults.clear()
    stand.shelf.carry_out_late()
    monkeypatch.setattr(settling, "GRACE_S", 0.0)
    async with running(stand):
        stand.node.clock.pass_s(applier.GRACE_S)
        stand.store.changed.set()
        await until(lambda: _is_told(stand))
        await stand.agrees()


async def _is_told(stand: Stand) -> bool:
    return await stand.is_quiet() and await stand.store.again_in_s() > 1e9
