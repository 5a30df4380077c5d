"""What went to a database past its sidecar: `sidecar adopt`, `reapply` and `held` with SpiceDB."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tests.real.databases import Database
from tests.real.proxied import (
    SCHEMA,
    Front,
    fronts,
    stored,
    update_of,
    wait_until_told,
)
from tests.waiting import wait_until
from tests.world import HOST, OPERATOR, ask, sidecar

pytestmark = pytest.mark.usefixtures("spicedb_is_here")

Json = dict[str, Any]


def told(one: Front, *words: str) -> str:
    """What a command says of a node, which must go well."""
    done = sidecar(*words, "--url", f"http://{HOST}:{one.node.admin_port}")
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def adopted(one: Front, query: str = "") -> Json:
    """The last line of the answer."""
    answer = ask(one.node.admin_port, "POST", f"/database/adopt{query}", None, OPERATOR)
    assert answer.status == 200, answer
    lines = answer.body.splitlines() if isinstance(answer.body, str) else [json.dumps(answer.body)]
    last: Json = json.loads(lines[-1])
    assert last["done"], last
    return last


def counts(done: Json) -> tuple[int, int, int]:
    return done["adopted"], done["missing"], done["deleted"]


def past_the_sidecar(database: Database, *changes: str) -> None:
    for first in range(0, len(changes), 1000):
        updates = [update_of(text) for text in changes[first : first + 1000]]
        answer = database.post("/v1/relationships/write", {"updates": updates})
        assert answer.status == 200, answer


def status(one: Front) -> Json:
    return dict(ask(one.node.admin_port, "GET", "/status").body["database"])


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Repeats the work on a thread until the block ends; a failure of it fails the test."""
    is_over = threading.Event()

    def loop() -> None:
        while not is_over.is_set():
            work()

    with ThreadPoolExecutor() as threads:
        done = threads.submit(loop)
        try:
            yield
        finally:
            is_over.set()
        done.result()


@pytest.fixture
def alone() -> Iterator[Front]:
    with fronts(1) as (world, (one,)):
        world.start()
        # A database that is new behind a node is told everything first.
        wait_until(lambda: status(one)["marking"] is False, "that has been seen to")
        yield one


def test_a_database_with_data_and_a_second_region_that_joins_empty(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with fronts(2) as (_, (here, there)):
        assert here.database.post("/v1/schema/write", {"schema": SCHEMA}).status == 200
        dice = random.Random(5)
        names = sorted(
            {
                f"+document:{dice.randrange(3000)} {dice.choice(['viewer', 'editor'])} "
                f"user:{dice.randrange(500)}"
                for _ in range(11_000)
            }
        )[:10_000]
        assert len(names) == 10_000
        past_the_sidecar(here.database, *names)
        begun = time.monotonic()
        here.node.start()
        said = told(here, "adopt")
        adopting_s = time.monotonic() - begun
        assert "10,000 relationships are in the database, 10,000 adopted" in said
        assert "its schema differs from the one here, and was adopted" in said
        assert status(here)["pending"] == 0
        begun = time.monotonic()
        there.node.start()
        wait_until(lambda: len(there.shown()) == 10_000, "all has arrived", 60)
        wait_until_told(here, there)
        joining_s = time.monotonic() - begun
        schemas = [one.database.post("/v1/schema/read").body["schemaText"] for one in (here, there)]
        assert schemas[0] == schemas[1]
        assert here.stored() == sorted(name[1:] for name in names)
        begun = time.monotonic()
        again = adopted(here)
        with capsys.disabled():
            print(
                f"\n10,000 relationships: adopted in {adopting_s:.1f} s, in the second region "
                f"{joining_s:.1f} s after its start, read again in {time.monotonic() - begun:.1f} s"
            )
        assert (counts(again), again["schema"]) == ((0, 0, 0), "same")
        assert counts(adopted(there)) == (0, 0, 0)


def test_what_bypassed_the_sidecar_is_found_and_a_dry_run_changes_nothing(alone: Front) -> None:
    alone.write_schema(SCHEMA)
    alone.write(*(f"+document:{n} viewer user:a" for n in range(30)))
    wait_until_told(alone)
    past_the_sidecar(alone.database, "+document:90 viewer user:a", "-document:3 viewer user:a")
    caveated = update_of("+document:4 viewer user:a")
    caveated["relationship"]["optionalCaveat"] = {
        "caveatName": "at_night",
        "context": {"hour": 23},
    }
    answer = alone.database.post("/v1/relationships/write", {"updates": [caveated]})
    assert answer.status == 200, answer
    before = alone.node.vector
    said = told(alone, "adopt", "--dry-run")
    assert "2 would be adopted" in said
    assert "1 relationships are shown here and are not in the database" in said
    assert "1 relationships were not in the database and would be deleted here" in told(
        alone, "adopt", "--dry-run", "--with-deletions"
    )
    assert alone.node.vector == before
    assert counts(adopted(alone)) == (2, 1, 0)
    assert "document:3 viewer user:a" in alone.shown()
    (found,) = [one for one in alone.node.export() if one["resource"] == "document:4"]
    assert found["condition"] == {"caveat_name": "at_night", "context": {"hour": 23}}
    assert counts(adopted(alone, "?deletions=1")) == (0, 1, 1)
    assert alone.shown() == alone.stored()
    assert counts(adopted(alone, "?deletions=1")) == (0, 0, 0)


def test_what_the_database_has_lost_is_written_again(alone: Front) -> None:
    alone.write_schema(SCHEMA)
    alone.write(*(f"+document:{n} viewer user:a" for n in range(30)))
    wait_until_told(alone)
    before = alone.shown()
    past_the_sidecar(alone.database, *(f"-{one}" for one in alone.shown()))
    done = sidecar("adopt", "--with-deletions", "--url", f"http://{HOST}:{alone.node.admin_port}")
    assert done.returncode == 1, done
    assert "sidecar reapply" in done.stderr
    assert alone.shown() == before
    assert "30 relationships are shown here" in told(alone, "adopt")
    assert "31 tuples" in told(alone, "reapply")
    wait_until_told(alone)
    assert alone.stored() == before
    assert counts(adopted(alone, "?deletions=1")) == (0, 0, 0)


def test_a_schema_as_the_database_gives_it_back_is_no_news(alone: Front) -> None:
    text = """// who may what
    definition user {}
    caveat at_night(hour int, day string) { hour > 22 && day != "sun // day" }
    definition document { // a comment
      relation viewer : user|user:* | user with at_night
      permission view = viewer
    }
    definition album {}
    """
    alone.write_schema(text)
    wait_until(lambda: status(alone)["pending"] == 0, "the database has it")
    assert adopted(alone)["schema"] == "same"
    changed = text.replace("definition album {}", "definition album {\n relation owner: user\n}")
    assert alone.database.post("/v1/schema/write", {"schema": changed}).status == 200
    assert "its schema differs" in told(alone, "adopt")
    assert adopted(alone)["schema"] == "same"


def test_applications_write_meanwhile(alone: Front) -> None:
    """Neither comes back what they deleted, nor goes what they wrote."""
    alone.write_schema(SCHEMA)
    past_the_sidecar(alone.database, *(f"+document:{n} viewer user:a" for n in range(1500)))
    dice = random.Random(11)
    last: dict[str, str] = {}

    def write() -> None:
        named = dice.sample(range(1500), 3)
        signs = {f"document:{n} viewer user:a": dice.choice("+-") for n in named}
        answer = alone.write(*(sign + name for name, sign in signs.items()))
        assert answer.status == 200, answer
        last.update(signs)

    with meanwhile(write):
        runs = 0
        while runs < 3 or len(last) <= 20:
            assert adopted(alone, "?deletions=1")["waiting"] == 0
            runs += 1
    wait_until_told(alone)
    here = set(alone.shown())
    for name, sign in last.items():
        assert (name in here) is (sign == "+"), name
    assert counts(adopted(alone, "?deletions=1")) == (0, 0, 0)


def test_what_the_database_refuses_is_listed_and_tried_again() -> None:
    with fronts(2) as (world, (here, there)):
        world.start()
        here.write_schema(SCHEMA)
        here.write("+document:2 viewer user:ann")
        wait_until(lambda: there.database.post("/v1/schema/read").status == 200, "it has a schema")
        wait_until_told(here, there)
        # The other region's schema goes a way of its own, which makes room for nothing.
        narrow = SCHEMA.replace("relation editor: user", "relation editor: document")
        assert there.database.post("/v1/schema/write", {"schema": narrow}).status == 200
        here.write("+document:1 editor user:ann", "+document:1 viewer user:ann")
        wait_until(lambda: status(there)["held"] == 1, "it is held")
        (row,) = [json.loads(line) for line in told(there, "held", "--json").splitlines()]
        named = (row["tenant"], row["resource"], row["relation"], row["subject"])
        assert named == ("default", "document:1", "editor", "user:ann")
        assert "editor" in row["reason"]
        assert "document:1 editor user:ann" in told(there, "held")
        assert "sidecar held" in told(there, "status", "--node-only")
        # It is missing there for a reason.
        done = adopted(there, "?dry_run=1&deletions=1")
        assert counts(done) == (0, 0, 0)
        assert there.database.post("/v1/schema/write", {"schema": SCHEMA}).status == 200
        assert "1 tuples" in told(there, "held", "--release")
        wait_until_told(here, there)
        wait_until(lambda: status(there)["held"] == 0, "nothing is held")
        assert told(there, "held") == "nothing is held\n"


def test_a_data_set_without_a_database_gets_one_put_behind_it() -> None:
    with fronts(1) as (_, (one,)):
        database = dict(one.node.environ)
        for name in database:
            one.node.environ.pop(name)
        one.node.start()
        one.node.insert(*(("document:1", "viewer", f"user:u{n}") for n in range(40)))
        refused = sidecar("adopt", "--url", f"http://{HOST}:{one.node.admin_port}")
        assert refused.returncode == 2
        assert "no database stands behind this node" in refused.stderr
        assert ask(one.node.admin_port, "GET", "/status").body["database"] is None
        one.node.stop()
        one.node.environ.update(database)
        one.node.start()
        # The database has no schema yet, so all of it is held.
        wait_until(lambda: status(one)["held"] == 40, "it is held")
        one.write_schema(SCHEMA)
        wait_until_told(one)
        assert len(stored(one.database)) == 40
        assert counts(adopted(one)) == (0, 0, 0)


def test_the_status_says_why_the_database_is_away(alone: Front) -> None:
    alone.write_schema(SCHEMA)
    wait_until(lambda: status(alone)["away_because"] is None, "it is up")
    assert "spicedb, up" in told(alone, "status", "--node-only")
    alone.database.kill()
    wait_until(lambda: status(alone)["away_because"] is not None, "it is away")
    assert "spicedb, away" in told(alone, "status", "--node-only")
    done = sidecar("adopt", "--url", f"http://{HOST}:{alone.node.admin_port}")
    assert done.returncode == 1, done


def test_one_at_a_time(alone: Front) -> None:
    alone.write_schema(SCHEMA)
    alone.write("+document:1 viewer user:a")
    alone.database.order("hold_before", "/v1/relationships/read")
    with ThreadPoolExecutor() as threads:
        first = threads.submit(adopted, alone)
        alone.database.wait_until_held()
        answer = ask(alone.node.admin_port, "POST", "/database/adopt", None, OPERATOR)
        assert (answer.status, answer.body["error"]) == (409, "adopting_already")
        assert status(alone)["adopting"]
        alone.database.release()
        assert first.result()["relationships"] == 1


def test_calls_that_are_not_understood_are_refused(alone: Front) -> None:
    for method, path, code in (
        ("GET", "/database/adopt", (405, "method_not_allowed")),
        ("POST", "/database/held", (405, "method_not_allowed")),
        ("POST", "/database/adopt?dry_run=yes", (400, "invalid_request")),
        ("GET", "/database/held?limit=0", (400, "invalid_request")),
    ):
        answer = ask(alone.node.admin_port, method, path, None, OPERATOR)
        assert (answer.status, answer.body["error"]) == code, answer
