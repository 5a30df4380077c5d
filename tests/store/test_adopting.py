"""Adopting on a real store, with a database of which a test decides what happens when."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import pytest

from sidecar.core.relationship import Change, Identity, Operation, Relationship
from sidecar.dialects.dialect import (
    Ask,
    Call,
    Found,
    SchemaDialect,
    Verdict,
    Write,
    schema_tuple,
)
from sidecar.dialects.dialect import Request as Asked
from sidecar.errors import Refused, Unavailable
from sidecar.proxy import adopting
from sidecar.proxy.adopting import Adopted, Adopting
from sidecar.proxy.applier import Applier
from sidecar.proxy.database import Answer, Database
from sidecar.proxy.gate import Gate
from sidecar.proxy.looking import Looking
from sidecar.proxy.settling import Settling
from sidecar.proxy.writes import Behind, Writes
from sidecar.store import proxy_store
from sidecar.store.proxy_store import ProxyStore
from tests.store.conftest import (
    Node,
    OpenNode,
    change_of,
    intended,
    text_of,
)

ONE = "doc:1 viewer user:a"
TWO = "doc:2 viewer user:a"
PAGE = 10


class Toy(SchemaDialect):
    """A dialect whose requests are JSON of what it wants."""

    name: ClassVar[str] = "toy"
    proven: ClassVar[str] = "this test"
    health_path: ClassVar[str] = "/"
    most_changes: ClassVar[int] = 500

    def call_of(self, method: str, path: str) -> Call | None:
        return None

    def tenant_of(self, path: str) -> str:
        return "default"

    def write_of(self, call: Call, request: Asked) -> Write | None:
        return None

    def find(self, tenant: str, matching: Mapping[str, object], cursor: str | None) -> Ask:
        return Ask("POST", "/find", json.dumps([matching, cursor]).encode())

    def found(self, tenant: str, body: bytes) -> Found:
        rows, cursor = json.loads(body)
        return Found([Relationship(*row) for row in rows], cursor)

    def look(self, identities: Sequence[Identity]) -> Sequence[Mapping[str, object]]:
        return [{"identity": one} for one in identities]

    def everything(self, tenant: str, schema: str | None) -> Sequence[Mapping[str, object]]:
        return [{"type": kind} for kind in (schema or "").split()]

    def apply(self, tenant: str, changes: Sequence[Change]) -> Ask:
        return Ask("POST", "/write", json.dumps(changes).encode())

    def verdict(self, status: int, body: bytes) -> Verdict:
        return {200: Verdict.DONE, 400: Verdict.REFUSED}.get(status, Verdict.AGAIN)

    def read_schema(self) -> Ask:
        return Ask("POST", "/schema")

    def schema_of(self, status: int, body: bytes) -> str:
        return body.decode()

    def apply_schema(self, text: str) -> Ask:
        return Ask("POST", "/write-schema", text.encode())


class Shelf:
    """A database in memory. Its pages are of the moment of the first one, as SpiceDB's are."""

    def __init__(self) -> None:
        self.rows: dict[Identity, Relationship] = {}
        self.schema = "doc"
        self.meanwhile: Callable[[str], Awaitable[None]] | None = None
        """Called before each answer, with the path."""
        self._snapshots: list[list[Relationship]] = []

    def put(self, *texts: str) -> None:
        """Past the sidecar: `+doc:1 viewer user:a` or `-…`."""
        for text in texts:
            self.take(change_of(text))

    def take(self, change: Change) -> None:
        one = change.relationship
        if change.operation is Operation.INSERT:
            self.rows[one.identity] = one
        else:
            self.rows.pop(one.identity, None)

    def listed(self) -> list[str]:
        return sorted(map(text_of, self.rows.values()))

    async def ask(self, ask: Ask) -> Answer:
        if self.meanwhile is not None:
            await self.meanwhile(ask.path)
        # So that others have their turn.
        await asyncio.sleep(0)
        match ask.path:
            case "/schema":
                return self._answer(self.schema)
            case "/write-schema":
                self.schema = ask.body.decode()
                return self._answer("")
            case "/write":
                for operation, row in json.loads(ask.body):
                    self.take(Change(Operation(operation), Relationship(*row)))
                return self._answer("")
            case _:
                return self._page(*json.loads(ask.body))

    def _page(self, matching: Mapping[str, Any], cursor: str | None) -> Answer:
        if "identity" in matching:
            one = self.rows.get(tuple(matching["identity"]))
            return self._answer(json.dumps([[one] if one else [], None]))
        if cursor is None:
            kind = f"{matching['type']}:"
            rows = [one for one in self.rows.values() if one.resource.startswith(kind)]
            self._snapshots.append(sorted(rows))
            cursor = f"{len(self._snapshots) - 1} 0"
        number, first = map(int, cursor.split())
        rows = self._snapshots[number]
        more = f"{number} {first + PAGE}" if first + PAGE < len(rows) else None
        return self._answer(json.dumps([rows[first : first + PAGE], more]))

    def _answer(self, text: str) -> Answer:
        return Answer(200, None, cast("Any", {}), text.encode())


@dataclass
class Place:
    """A node and the shelf behind it."""

    node: Node
    store: ProxyStore
    shelf: Shelf = field(default_factory=Shelf)
    dialect: Toy = field(default_factory=Toy)

    def __post_init__(self) -> None:
        database = cast("Database", self.shelf)
        looking, self.gate = Looking(self.dialect, database), Gate()
        settling = Settling(self.store, looking)
        self.applier = Applier(self.store, self.dialect, database, self.gate, self.node.metrics)
        self.behind = Behind(self.store, self.gate, looking, settling, self.applier)
        self.adopted = Adopted()

    async def adopt(self, *, dry: bool = False, deletes: bool = False) -> Adopted:
        self.adopted = Adopted()

        async def tell() -> None: ...

        run = Adopting(
            self.behind, self.dialect, ["default"], self.adopted, tell, is_dry=dry, deletes=deletes
        )
        await run.run()
        return self.adopted

    async def write(self, *texts: str) -> None:
        """As an application does: through the sidecar."""
        changes = [change_of(text) for text in texts]

        async def send() -> Answer:
            return await self.shelf.ask(self.dialect.apply("default", changes))

        await Writes().carry_out(self.behind, Write("default", changes), send)

    async def tell_all(self) -> None:
        """The applier's work, until nothing is left."""
        while await self.applier._step():
            pass

    async def listed(self) -> list[str]:
        listed = await self.node.listed()
        return [text for text in listed if not text.startswith("sidecar-schema:")]


@pytest.fixture
async def place(open_node: OpenNode) -> Place:
    node = await open_node("p", kind=ProxyStore)
    return Place(node, cast("ProxyStore", node.store))


def numbered(count: int) -> list[str]:
    return [f"+doc:{number} viewer user:a" for number in range(count)]


async def test_what_the_database_holds_is_taken_over_once(place: Place) -> None:
    place.shelf.put(*numbered(250), f"+{ONE} if 1 until 1900000000000000")
    done = await place.adopt()
    assert done == Adopted(relationships=250, adopted=250, schema="adopted")
    assert await place.listed() == place.shelf.listed()
    assert await place.store.pending(10) == []
    assert await place.store.intents() == []
    before = place.store.revision
    assert await place.adopt() == Adopted(relationships=250, schema="same")
    assert place.store.revision == before


async def test_a_dry_run_counts_and_changes_nothing(place: Place) -> None:
    await place.write(f"+{TWO}", "+doc:3 viewer user:a")
    place.shelf.put(f"+{ONE}", f"-{TWO}")
    before = place.store.revision
    for deletes in (False, True):
        done = await place.adopt(dry=True, deletes=deletes)
        assert (done.adopted, done.missing, done.schema) == (1, 1, "adopted")
    assert place.store.revision == before


async def test_another_payload_is_taken_over(place: Place) -> None:
    await place.write(f"+{ONE}", f"+{TWO} if 1")
    place.shelf.put(f"+{ONE} if 2", f"+{TWO}")
    assert (await place.adopt()).adopted == 2
    assert await place.listed() == [f"{ONE} if 2", TWO]


async def test_what_was_deleted_there_is_counted_and_deleted_when_told_so(place: Place) -> None:
    await place.write(*numbered(30))
    place.shelf.put(*(f"-doc:{n} viewer user:a" for n in (3, 7)), "+doc:99 viewer user:a")
    done = await place.adopt()
    assert (done.adopted, done.missing, done.deleted) == (1, 2, 0)
    assert len(await place.listed()) == 31
    done = await place.adopt(deletes=True)
    assert (done.adopted, done.missing, done.deleted) == (0, 2, 2)
    assert await place.listed() == place.shelf.listed()
    assert await place.store.pending(10) == []
    assert await place.adopt(deletes=True) == Adopted(relationships=29, schema="same")


async def test_an_empty_database_takes_nothing_along(place: Place) -> None:
    await place.write(*numbered(3))
    place.shelf.rows.clear()
    with pytest.raises(Refused, match="reapply") as refused:
        await place.adopt(deletes=True)
    assert refused.value.code == "database_empty"
    assert len(await place.listed()) == 3
    await place.store.remark_all()
    await place.tell_all()
    assert place.shelf.listed() == await place.listed()


async def test_what_the_database_refuses_to_say_is_not_taken_for_nothing(place: Place) -> None:
    await place.write(*numbered(3))
    usual = place.shelf._page
    place.shelf._page = lambda *asked: usual(*asked)._replace(status=400)  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="refuses to be read"):
        await place.adopt(deletes=True)
    assert len(await place.listed()) == 3


async def test_what_the_database_is_yet_to_be_told_or_refuses_is_left_out(
    place: Place, open_node: OpenNode
) -> None:
    there = await open_node("q")
    place.shelf.put(f"+{ONE}", f"+{TWO}")
    await place.adopt()
    await there.take(place.node)
    await there.write(f"-{ONE}", f"+{TWO} if 1", "+doc:3 viewer user:a")
    await place.node.take(there)
    held = [one for one in await place.store.pending(10) if one.identity.resource == "doc:3"]
    await place.store.note_applied([(held[0], "no")])
    intent = await intended(place.store, "+doc:4 viewer user:a")
    place.shelf.put("+doc:4 viewer user:a")
    done = await place.adopt(deletes=True)
    assert (done.adopted, done.missing, done.waiting) == (0, 0, 3)
    await place.store.withdraw(intent)
    await place.tell_all()
    assert place.shelf.listed() == [f"{TWO} if 1", "doc:4 viewer user:a"]


async def test_what_has_expired_is_neither_missing_nor_taken_over(place: Place) -> None:
    until = place.node.clock.now_us + 1_000_000
    await place.write(f"+{ONE} until {until}", f"+{TWO}")
    place.node.clock.pass_s(1)
    # This database has not noticed yet.
    assert await place.adopt(deletes=True) == Adopted(relationships=1, schema="adopted")
    place.shelf.put(f"-{ONE}")
    assert (await place.adopt(deletes=True)).missing == 0


async def test_a_schema_written_there_releases_what_is_held(
    place: Place, open_node: OpenNode
) -> None:
    there = await open_node("q")
    await there.write("+folder:1 owner user:a")
    await place.node.take(there)
    await place.store.note_applied([(one, "no type") for one in await place.store.pending(10)])
    place.shelf.schema = "doc folder"
    assert (await place.adopt(dry=True)).schema == "adopted"
    assert await place.store.pending(10) == []
    assert (await place.adopt()).schema == "adopted"
    found = await place.store.find("default", *schema_tuple("", "").identity[1:])
    assert found == schema_tuple("default", "doc folder")
    await place.tell_all()
    assert place.shelf.listed() == ["folder:1 owner user:a"]
    place.shelf.schema = "doc folder album"
    assert (await place.adopt()).schema == "adopted"
    assert (await place.adopt()).schema == "same"
    place.shelf.schema = ""
    assert (await place.adopt()).schema == "missing"


async def test_a_merge_while_a_tuple_is_looked_at_wins(place: Place, open_node: OpenNode) -> None:
    """What is merged meanwhile was not seen by whoever deleted it in the database."""
    there = await open_node("q")
    await place.write(f"+{ONE}", f"+{TWO}")
    place.shelf.put(f"-{ONE}")
    looks = 0

    async def meanwhile(path: str) -> None:
        nonlocal looks
        looks += path == "/find"
        # The page, the bucket with a difference, then the look that counts.
        if path == "/find" and looks == 3:
            await there.write(f"+{ONE} if 1")
            await place.node.take(there)

    place.shelf.meanwhile = meanwhile
    done = await place.adopt(deletes=True)
    assert looks >= 3
    assert (done.missing, done.deleted, done.waiting) == (0, 0, 1)
    place.shelf.meanwhile = None
    await place.tell_all()
    assert place.shelf.listed() == await place.listed() == [f"{ONE} if 1", TWO]


LATE = "doc:9 viewer user:a"
"""On the second page."""


def at_the_second_page(place: Place, work: Callable[[], Awaitable[None]]) -> None:
    """The pages are those of the moment when the first one was read."""
    pages = 0

    async def meanwhile(path: str) -> None:
        nonlocal pages
        pages += path == "/find"
        if path == "/find" and pages == 2:
            await work()

    place.shelf.meanwhile = meanwhile


async def test_what_an_application_deletes_after_it_was_read_stays_deleted(place: Place) -> None:
    place.shelf.put(*numbered(2 * PAGE))

    async def delete() -> None:
        await place.write(*(f"-doc:{n} viewer user:a" for n in range(2 * PAGE)))

    at_the_second_page(place, delete)
    assert (await place.adopt()).adopted == PAGE
    assert await place.listed() == place.shelf.listed() == []


async def test_what_the_database_was_told_to_delete_after_it_was_read_stays_deleted(
    place: Place, open_node: OpenNode
) -> None:
    there = await open_node("q")
    await place.write(*numbered(2 * PAGE))
    await place.adopt()
    await there.take(place.node)
    await there.write(f"-{LATE}")
    await place.node.take(there)
    at_the_second_page(place, place.tell_all)
    assert (await place.adopt()).adopted == 0
    assert LATE not in await place.listed() + place.shelf.listed()


async def test_a_delete_of_unknown_outcome_that_comes_out_stays_deleted(place: Place) -> None:
    await place.write(*numbered(2 * PAGE))
    await place.adopt()
    changes = [change_of(f"-{LATE}")]
    intent = await intended(place.store, f"-{LATE}")

    async def come_out() -> None:
        place.shelf.put(f"-{LATE}")
        await place.store.commit(intent, "default", changes)

    at_the_second_page(place, come_out)
    assert (await place.adopt()).adopted == 0
    assert LATE not in await place.listed()


async def test_beyond_a_limit_everything_is_read_once_more(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_store, "MAX_TOUCHED", 1)
    place.shelf.put(*numbered(2 * PAGE))

    async def delete() -> None:
        await place.write(f"-{LATE}", "-doc:8 viewer user:a")

    at_the_second_page(place, delete)
    assert (await place.adopt()).adopted == 2 * PAGE - 2
    assert await place.listed() == place.shelf.listed()
    with place.store.touching() as touched:
        assert change_of(f"+{ONE}").relationship.identity not in touched


async def test_a_failure_on_the_way_leaves_what_is_done_and_no_harm(place: Place) -> None:
    place.shelf.put(*numbered(3 * PAGE))

    async def fail() -> None:
        raise Unavailable("database_unavailable", "gone")

    at_the_second_page(place, fail)
    with pytest.raises(Unavailable):
        await place.adopt()
    assert place.adopted.adopted == PAGE
    place.shelf.meanwhile = None
    assert (await place.adopt()).adopted == 2 * PAGE
    assert await place.listed() == place.shelf.listed()


async def test_a_crash_between_intent_and_commit_is_made_up_for(place: Place) -> None:
    """An intent whose write the database has carried out before it was noted."""
    place.shelf.put(f"+{ONE}")
    intent = await intended(place.store, f"+{ONE}")
    assert await place.behind.settling._try(intent, is_late=False)
    assert await place.listed() == [ONE]


async def test_a_tuple_that_merges_keep_changing_is_left_out(
    place: Place, open_node: OpenNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopting, "TRIES", 2)
    there = await open_node("q")
    await place.write(f"+{ONE}", f"+{TWO}")
    place.shelf.put(f"-{ONE}")
    count = 0

    async def meanwhile(path: str) -> None:
        nonlocal count
        count += 1
        await there.write(f"+{ONE} if {count}")
        await place.node.take(there)
        await place.store.note_applied([(one, "") for one in await place.store.pending(10)])

    place.shelf.meanwhile = meanwhile
    done = await place.adopt(deletes=True)
    assert (done.missing, done.waiting) == (0, 1)


@pytest.mark.parametrize("seed", range(6))
async def test_writers_of_all_kinds_meanwhile_lose_nothing(
    place: Place, open_node: OpenNode, seed: int
) -> None:
    """Applications here and elsewhere write while it runs, again and again; all end the same."""
    dice = random.Random(seed)
    there = await open_node("q")
    names = [f"doc:{number} viewer user:a" for number in range(3 * PAGE)]
    place.shelf.put(*("+" + name for name in names[::2]))
    expected: dict[str, tuple[int, bool]] = {}
    is_over = asyncio.Event()

    async def application() -> None:
        """Its own tuples, of which nobody else writes: the last word counts."""
        while not is_over.is_set():
            name = dice.choice(names[: 2 * PAGE])
            sign = dice.choice("+-")
            await place.write(sign + name)
            expected[name] = (len(expected), sign == "+")

    async def elsewhere() -> None:
        while not is_over.is_set():
            # Not what went past the sidecar: nobody can say which of the two came first.
            name = dice.choice(names[2 * PAGE + 1 :: 2])
            sign = dice.choice("+-")
            await there.write(sign + name)
            await place.node.take(there)
            expected[name] = (len(expected), sign == "+")
            await asyncio.sleep(0)

    async def applier() -> None:
        while not is_over.is_set():
            await place.applier._step()
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        for loop in (application(), elsewhere(), applier()):
            tasks.create_task(loop)
        for _ in range(6):
            await place.adopt(deletes=True)
        is_over.set()
    await place.tell_all()
    await place.adopt()
    listed = await place.listed()
    assert listed == place.shelf.listed()
    for name, (_, is_there) in expected.items():
        assert (name in listed) is is_there, f"{name}, seed {seed}"
