"""Two regions write the same tuples while sidecars are killed on their way: nothing drifts apart.

`SEED=n` replays from there, as far as chance is ours.
"""

import http.client
import json
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from sidecar.store.keys import Keys
from tests.real.attempts import Attempt, Outcome, Payload, violations
from tests.real.crashing import MOMENTS, POINTS, Order
from tests.real.proxied import SCHEMA, Front, fronts, update_of
from tests.waiting import wait_until
from tests.world import LIST, Answer, World

pytestmark = pytest.mark.usefixtures("spicedb_is_here")

SEEDS, SEEDS_SOAK = 3, 100
GRACE_S = 1.0
LATE_MS = 500
WRITERS = 2
ROUNDS = 2
ENOUGH = 30
"""So many writes are done after each crash."""

DOCUMENTS, SUBJECTS = 2, 2
WRITE_PATH, DELETE_PATH = "/v1/relationships/write", "/v1/relationships/delete"
READ_PATH, SCHEMA_PATH = "/v1/relationships/read", "/v1/schema/write"
THE_SCHEMA = "the schema"
FAULTS = ("drop_before", "drop_after", "late", "delay", "unavailable")

Pair = tuple[World, list[Front]]


@pytest.fixture(scope="module")
def pair(spicedb_is_here: None) -> Iterator[Pair]:
    with fronts(2) as (world, both):
        for one in both:
            node = one.node
            node.module = "tests.real.crashing"
            node.environ |= {"CRASHING": str(_order_file(one)), "GRACE_S": str(GRACE_S)}
        world.start()
        both[0].write_schema(SCHEMA)
        wait_until(lambda: _schema_of(both[1]), "the schema has arrived")
        yield world, both


def _schema(extra: str) -> str:
    return f"{SCHEMA}\n// This comes and goes.\ndefinition {extra} {{}}\n"


def _order_file(one: Front) -> Any:
    return one.node.config.with_suffix(".crash")


def _schema_of(one: Front) -> str:
    answer = one.database.post("/v1/schema/read")
    return str(answer.body["schemaText"]) if answer.status == 200 else ""


class Writer(threading.Thread):
    """An application at one region: writes at random, until it is told to stop."""

    def __init__(self, one: Front, seed: int, number: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._one, self._end, self._seed = one, stop, seed
        self._dice = random.Random(f"{seed}/{number}")
        self._number = number
        self._count = 0
        self.attempts: list[Attempt] = []

    def run(self) -> None:
        while not self._end.is_set():
            kind = self._dice.random()
            if kind < 0.02:
                self._write_schema()
            elif kind < 0.12:
                self._delete_matching()
            else:
                self._write()
            is_away = self.attempts[-1].told.startswith("away")
            self._end.wait(0.05 if is_away else self._dice.uniform(0, 0.02))

    def _document(self) -> str:
        return f"s{self._seed}-{self._dice.randrange(DOCUMENTS)}"

    def _write_schema(self) -> None:
        self._count += 1
        name = f"extra_{self._seed}_{self._number}_{self._count}"
        self._attempt(SCHEMA_PATH, {"schema": _schema(name)}, {THE_SCHEMA: name})

    def _delete_matching(self) -> None:
        document = self._document()
        body: dict[str, Any] = {
            "relationshipFilter": {"resourceType": "document", "optionalResourceId": document}
        }
        if self._dice.random() < 0.5:
            body |= {"optionalLimit": 1, "optionalAllowPartialDeletions": True}
        made: dict[str, Payload] = {
            f"document:{document} viewer user:{n}": None for n in range(SUBJECTS)
        }
        self._attempt(DELETE_PATH, body, made, is_exact=False)

    def _write(self) -> None:
        made: dict[str, Payload] = {}
        updates = []
        for _ in range(self._dice.choice((1, 1, 2))):
            name = f"document:{self._document()} viewer user:{self._dice.randrange(SUBJECTS)}"
            if name not in made:
                update, made[name] = self._change(name)
                updates.append(update)
        self._attempt(WRITE_PATH, {"updates": updates}, made)

    def _change(self, name: str) -> tuple[dict[str, Any], Payload]:
        sign = self._dice.choice("+++--!")
        update = update_of(sign + name)
        if sign == "-":
            return update, None
        # Nobody else writes this payload: the end tells whose write stands.
        self._count += 1
        hour = self._number * 100_000 + self._count
        caveat = {"caveatName": "at_night", "context": {"hour": hour}}
        update["relationship"]["optionalCaveat"] = caveat
        return update, f"at_night {hour}"

    def _attempt(
        self, path: str, body: object, made: dict[str, Payload], *, is_exact: bool = True
    ) -> None:
        began = time.monotonic()
        try:
            answer = self._one.post(path, body)
            outcome, told = _outcome(answer), f"{answer.status} {json.dumps(answer.body)[:150]}"
        except ConnectionRefusedError:
            outcome, told = Outcome.NOTHING, "away"
        except (OSError, http.client.HTTPException) as error:
            outcome, told = Outcome.UNKNOWN, repr(error)
        told += f" by {self._number} at {self._one.node.name}"
        self.attempts.append(Attempt(began, time.monotonic(), outcome, made, told, is_exact))


def _outcome(answer: Answer) -> Outcome:
    if answer.status == 200:
        return Outcome.DONE
    if 400 <= answer.status < 500:
        return Outcome.NOTHING
    code = answer.body.get("error") if isinstance(answer.body, dict) else None
    # With any other word of ours nothing was done; what the database says itself tells nothing.
    is_ours = isinstance(code, str) and code != "outcome_unknown"
    return Outcome.NOTHING if is_ours else Outcome.UNKNOWN


def _order_faults(dice: random.Random, one: Front) -> None:
    for _ in range(dice.randrange(4)):
        path = dice.choice((*[WRITE_PATH] * 4, DELETE_PATH, READ_PATH, SCHEMA_PATH))
        kind = dice.choice(FAULTS)
        if path == READ_PATH and kind == "late":
            kind = "delay"
        one.database.order(kind, path, delay_ms=dice.randrange(LATE_MS))


def _crash(dice: random.Random, one: Front) -> str:
    """Have a sidecar die somewhere, or be killed after a while, or its Redis alone; how."""
    node, file = one.node, _order_file(one)
    if dice.random() < 0.2:
        node.kill_valkey()
        return "kill -9 of Redis alone"
    point = dice.choice([*POINTS, "send", "send", "commit", "tell"])
    order = Order(
        point, dice.choice(MOMENTS), dice.choice((1, 1, 2, 5)), round(dice.uniform(0, 8), 1)
    )
    file.write_text(order.text)
    try:
        wait_until(lambda: not node.is_running, "it dies", dice.uniform(0.2, 0.6))
        how = order.text
    except AssertionError:
        how = f"kill -9 (not {order.text})"
    node.kill()
    file.unlink()
    return how


def _payload_of(one: dict[str, Any]) -> str:
    caveat = one.get("optionalCaveat")
    if not caveat:
        return ""
    return f"{caveat['caveatName']} {caveat['context']['hour']:.0f}"


def _stored(one: Front) -> dict[str, Payload]:
    body = {
        "consistency": {"fullyConsistent": True},
        "relationshipFilter": {"resourceType": "document"},
    }
    found: dict[str, Payload] = {THE_SCHEMA: _extra_in(_schema_of(one))}
    for line in one.database.lines(READ_PATH, body):
        there = line["relationship"]
        name = (
            f"document:{there['resource']['objectId']} {there['relation']} "
            f"user:{there['subject']['object']['objectId']}"
        )
        found[name] = _payload_of(there)
    return found


def _extra_in(schema: str) -> str | None:
    extra = re.search(r"extra_\w+", schema)
    return extra and extra[0]


def _shown(one: Front) -> dict[str, Payload]:
    found: dict[str, Payload] = {THE_SCHEMA: None}
    for there in one.node.relationships():
        if not there["resource"].startswith("document:"):
            found[THE_SCHEMA] = _extra_in(there["condition"])
            continue
        name = f"{there['resource']} {there['relation']} {there['subject']}"
        condition = there.get("condition")
        found[name] = (
            f"{condition['caveat_name']} {condition['context']['hour']:.0f}" if condition else ""
        )
    return found


def _left_over(one: Front) -> dict[str, int]:
    """What is noted in Redis and not worked off, and what the database has not executed yet."""
    keys = Keys("sidecar")
    intended = keys.intents.replace("intents", "intended")
    beside = keys.intents.replace("intents", "beside")
    with one.node.store() as call:
        return {
            "intents": int(call("HLEN", keys.intents)),
            "intended": int(call("HLEN", intended)),
            "dirty": int(call("ZCARD", keys.dirty)),
            "held": int(call("HLEN", keys.held)),
            "again": int(call("ZCARD", keys.again)),
            "beside": int(call("SCARD", beside)),
            "late": one.database.late,
        }


def _settled(world: World, both: list[Front]) -> dict[str, Payload]:
    """What all hold in the end."""
    told: dict[str, Any] = {}

    def is_settled() -> bool:
        # Redis may have been killed just now.
        if not all(one.node.post_here(LIST, {"limit": 1}).status == 200 for one in both):
            return False
        told["vectors"] = [one.node.vector for one in both]
        if not world.is_settled():
            return False
        told["left over"] = [_left_over(one) for one in both]
        is_idle = not any(any(one.values()) for one in told["left over"])
        # Nothing was committed or merged since, so nothing was left over by that: it stays so.
        return is_idle and [one.node.vector for one in both] == told["vectors"]

    wait_until(is_settled, lambda: f"everything is settled: {told}", 30)
    told["stored"] = [_stored(one) for one in both]
    told["shown"] = [_shown(one) for one in both]
    first, *others = told["stored"] + told["shown"]
    assert all(one == first for one in others), _differences(told)
    return dict(first)


def _differences(told: dict[str, Any]) -> str:
    sides = dict(
        zip(
            ("database 1", "database 2", "redis 1", "redis 2"),
            told["stored"] + told["shown"],
            strict=True,
        )
    )
    names = {name for one in sides.values() for name in one}
    lines = []
    for name in sorted(names):
        seen = {side: one.get(name) for side, one in sides.items()}
        if len(set(seen.values())) > 1:
            lines.append(f"{name}: {seen}")
    return "they hold different tuples:\n" + "\n".join(lines)


def run(seed: int, pair: Pair) -> None:
    world, both = pair
    before = _settled(world, both)
    dice = random.Random(seed)
    stop = threading.Event()
    writers = [
        Writer(one, seed, 1 + WRITERS * place + n, stop)
        for place, one in enumerate(both)
        for n in range(WRITERS)
    ]
    story = []
    for writer in writers:
        writer.start()
    try:
        for _ in range(ROUNDS):
            for one in both:
                _order_faults(dice, one)
            one = dice.choice(both)
            story.append(f"{time.monotonic():.4f} {one.node.name}: {_crash(dice, one)}")
            if not one.node.is_running:
                one.node.begin()
            one.node.wait_until_serving()
            enough = _done(writers) + ENOUGH
            wait_until(lambda: _done(writers) >= enough, "the writers go on")  # noqa: B023
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    for one in both:
        one.database.reset()
    print(f"seed {seed}; again with SEED={seed}; crashes: {story}")
    attempts = [attempt for writer in writers for attempt in writer.attempts]
    broken = list(violations(before, attempts, _settled(world, both)))
    assert not broken, "\n".join(broken)
    print(f"{_done(writers)} of {len(attempts)} done")


def _done(writers: list[Writer]) -> int:
    return sum(one.outcome is Outcome.DONE for each in writers for one in tuple(each.attempts))


def _first_seed() -> int:
    return int(os.environ.get("SEED", random.SystemRandom().randrange(10**6)))


@pytest.mark.parametrize("turn", range(SEEDS))
def test_crashes_leave_all_with_the_same_tuples(pair: Pair, turn: int) -> None:
    run(_first_seed() + turn, pair)


@pytest.mark.soak
@pytest.mark.parametrize("turn", range(SEEDS_SOAK))
def test_a_hundred_times(pair: Pair, turn: int) -> None:
    run(_first_seed() + turn, pair)
