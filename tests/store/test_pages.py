"""Pages of tuples: every filter, limit and size of collection gives what is there, no more."""

import asyncio
import itertools
import json
import random
from collections.abc import Iterable

import pytest

from sidecar.errors import Refused
from sidecar.store.calls import Filter, Page
from tests.store.conftest import Node, OpenNode, text_of

RELATIONS = ["viewer", "editor", "a/b"]
SUBJECTS = ["user:a", "user:b", "user:*", "group:a#member", "group:a#viewer", "user:é"]
RESOURCES = ["doc:1", "doc:2", "doc:é", "doc:*", "doc/x:1", "d:1", "folder:1", "folder:1:2"]
LIMITS = [1, 7, 64, 1000]


async def pages(node: Node, wanted: Filter, limit: int) -> list[Page]:
    found = [await node.store.read_page(wanted, limit)]
    while (cursor := found[-1].cursor) is not None:
        found.append(await node.store.read_page(wanted, limit, cursor))
    return found


async def texts(node: Node, wanted: Filter, limit: int) -> list[str]:
    """All that match, in the order in which they come; no page exceeds its limit."""
    found = await pages(node, wanted, limit)
    assert all(len(page.relationships) <= limit for page in found)
    return [text_of(one) for page in found for one in page.relationships]


def matching(all_texts: Iterable[str], wanted: Filter) -> list[str]:
    """The same by looking at each."""
    found = []
    for text in all_texts:
        resource, relation, subject = text.split(" ")[:3]
        if (
            wanted.resource in {None, resource}
            and wanted.resource_type in {None, resource.partition(":")[0]}
            and wanted.relation in {None, relation}
            and wanted.subject in {None, subject}
        ):
            found.append(text)
    return sorted(found)


def all_filters(rnd: random.Random, tenant: str) -> list[Filter]:
    """Each combination of fields, with values that occur and values that do not."""
    choices: list[list[list[str | None]]] = [
        [[None], [*RESOURCES, "doc:none"]],
        [[None], ["doc", "doc/x", "d", "folder", "none"]],
        [[None], [*RELATIONS, "none"]],
        [[None], [*SUBJECTS, "user:none", "group:a"]],
    ]
    combinations = list(itertools.product(*choices))
    return [
        Filter(tenant, *(rnd.choice(values) for values in combination))
        for combination in combinations
        for _ in range(1 if combination == combinations[0] else 4)
    ]


async def fill(node: Node, rnd: random.Random, tenant: str) -> list[str]:
    """Random inserts, updates, deletes and expirations; returns what is visible at the end."""
    visible: dict[str, str] = {}
    for _ in range(6):
        changes: dict[str, str] = {}
        for _ in range(60):
            parts = (rnd.choice(RESOURCES), rnd.choice(RELATIONS), rnd.choice(SUBJECTS))
            tuple_text = " ".join(parts)
            payload = rnd.choice(["", "", ' if {"a":1}', f" until {node.clock.now_us + 5}"])
            changes[tuple_text] = rnd.choice(["-", f"+{payload}", f"+{payload}"])
        await node.write(*(f"{c[0]}{t}{c[1:]}" for t, c in changes.items()), tenant=tenant)
        for tuple_text, change in changes.items():
            if change[0] == "+" and "until" not in change:
                visible[tuple_text] = tuple_text + change[1:]
            else:
                visible.pop(tuple_text, None)
    node.clock.now_us += 5
    return list(visible.values())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limit", LIMITS)
async def test_every_filter_gives_what_matches(limit: int, seed: int, open_node: OpenNode) -> None:
    """Never tombstones, what has expired, or another tenant's, however alike its name."""
    rnd = random.Random(seed)
    node = await open_node("us1")
    visible = {tenant: await fill(node, rnd, tenant) for tenant in ("acme", "acme2", "a")}
    for wanted in all_filters(rnd, "acme"):
        found = await texts(node, wanted, limit)
        assert sorted(found) == matching(visible["acme"], wanted), f"seed {seed}: {wanted}"
    assert await texts(node, Filter("acm"), limit) == []


async def test_a_page_tells_what_it_was_read_at(open_node: OpenNode) -> None:
    node = await open_node("us1")
    written = await node.write("+doc:1 viewer user:a")
    page = await node.store.read_page(Filter("default"), 10)
    assert (page.revision, page.vector) == (written.revision, written.vector)


async def load(node: Node, changes: list[str]) -> None:
    for start in range(0, len(changes), 1_000):
        await node.write(*changes[start : start + 1_000])


async def test_large_collections_come_whole(open_node: OpenNode) -> None:
    """A resource, a subject and a type too large to be sorted in one call, deletes among them."""
    node = await open_node("us1")
    of_resource = [f"doc:large viewer user:{n}" for n in range(3_000)]
    of_subject = [f"file:{n} viewer user:large" for n in range(3_000)]
    await load(node, [f"+{text}" for text in of_resource + of_subject])
    await load(node, [f"-{text}" for text in of_resource[::10] + of_subject[::10]])
    there = [t for n, t in enumerate(of_resource) if n % 10]
    there += [t for n, t in enumerate(of_subject) if n % 10]
    wanted = [
        Filter("default", resource="doc:large"),
        Filter("default", resource="doc:large", relation="viewer"),
        Filter("default", resource="doc:large", relation="editor"),
        Filter("default", subject="user:large"),
        Filter("default", subject="user:large", resource_type="file", relation="viewer"),
        Filter("default", subject="user:large", resource_type="doc"),
        Filter("default", resource_type="file"),
        Filter("default", resource_type="doc"),
        Filter("default"),
        Filter("default", relation="viewer"),
    ]
    for one in wanted:
        for limit in (64, 1000):
            found = await texts(node, one, limit)
            # Nothing is written meanwhile: also a scan gives each once.
            assert sorted(found) == matching(there, one), f"{one} at {limit}"
    for one in (wanted[0], wanted[3], wanted[6]):
        assert sorted(await texts(node, one, 50)) == matching(there, one), f"{one} at 50"


@pytest.mark.parametrize("limit", [7, 200])
@pytest.mark.parametrize("large", [False, True], ids=["ordered", "scanned"])
async def test_what_was_there_all_along_is_found_while_others_write(
    limit: int, large: bool, open_node: OpenNode
) -> None:
    """Exactly once where tuples come in order, at least once where Redis scans."""
    rnd = random.Random(limit)
    node = await open_node("us1")
    count = 2_500 if large else 300
    if large and limit < 64:
        limit = 64
    stays = [f"doc:1 viewer user:{n}" for n in range(count)]
    comes = [f"doc:1 viewer user:{n}x" for n in range(count)]
    stays += [f"file:{n} viewer user:a" for n in range(100)]
    comes += [f"file:{n}x viewer user:a" for n in range(100)]
    await load(node, [f"+{text}" for text in stays + comes[::2]])
    writing = asyncio.create_task(keep_writing(node, rnd, comes))
    try:
        for wanted in (
            Filter("default", resource="doc:1"),
            Filter("default", subject="user:a"),
            Filter("default", resource_type="file"),
            Filter("default"),
        ):
            found = await texts(node, wanted, limit)
            kept = [text for text in found if text in set(stays)]
            assert set(kept) == set(matching(stays, wanted)), wanted
            if not large:
                assert len(kept) == len(set(kept)), wanted
    finally:
        writing.cancel()
        await asyncio.wait([writing])


async def keep_writing(node: Node, rnd: random.Random, comes: list[str]) -> None:
    while True:
        chosen = rnd.sample(comes, 20)
        await node.write(*(rnd.choice("+-") + text for text in chosen))


async def test_deletions_between_pages_hide_nothing_else(open_node: OpenNode) -> None:
    """As whoever deletes by filter does: read a page, delete it, read on."""
    node = await open_node("us1")
    everything = [f"doc:{n % 7} viewer user:{n}" for n in range(200)]
    await node.write(*(f"+{text}" for text in everything))
    found: list[str] = []
    cursor = None
    while True:
        page = await node.store.read_page(Filter("default"), 7, cursor)
        texts_now = [text_of(one) for one in page.relationships]
        if texts_now:
            await node.write(*(f"-{text}" for text in texts_now))
        found += texts_now
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(found) == sorted(everything)
    assert await node.listed() == []


async def outcome(node: Node, wanted: Filter, cursor: str) -> str:
    """`page`, or the code of the refusal."""
    try:
        page = await node.store.read_page(wanted, 10, cursor)
    except Refused as refused:
        return refused.code
    assert len(page.relationships) <= 10
    return "page"


FILTERS = [
    Filter("default", resource="doc:1"),
    Filter("default", subject="user:a"),
    Filter("default", resource_type="doc"),
    Filter("default"),
]


@pytest.mark.parametrize(
    "cursor",
    [
        *("x", "null", "5", '"text"', "{}", "[]", '["a"]', '["a","b"]', "[1,2,3]", "[" * 5_000),
        *('["","",null]', '["","",["x"]]', '["","","@"]', '["","","@x"]', '["","","@-1"]'),
        *('["","","@ 1"]', '["","","@1 "]', '["","","@0x1"]', "\x00", '["","","@1\\u0000"]'),
    ],
)
async def test_a_cursor_that_is_none_is_refused(cursor: str, open_node: OpenNode) -> None:
    node = await open_node("us1")
    for wanted in FILTERS:
        assert await outcome(node, wanted, cursor) == "invalid_cursor"


async def test_a_place_that_no_scan_can_have_is_refused(open_node: OpenNode) -> None:
    node = await open_node("us1")
    for wanted in FILTERS[:2]:
        assert await outcome(node, wanted, f'["","","@{"9" * 30}"]') == "invalid_cursor"


async def test_any_text_is_a_cursor_or_refused(open_node: OpenNode) -> None:
    rnd = random.Random(7)
    node = await open_node("us1")
    await node.write(*(f"+doc:{n % 5} viewer user:{n}" for n in range(40)), "+doc:1 viewer user:a")
    real = [page.cursor for f in FILTERS for page in await pages(node, f, 5) if page.cursor]
    parts = ["", "type", "0", "4095", "4096", "-1", "1e3", "nan", "inf", "-1e300", "0.5", "doc:1"]
    parts += [">viewer#user:7", ">", "@0", "@17", "@7777777", "z", "é", "\x00", "doc:9"]
    seen = set()
    for _ in range(600):
        cursor = rnd.choice(real)
        match rnd.randrange(3):
            case 0:
                at = rnd.randrange(len(cursor))
                cursor = cursor[:at] + chr(rnd.randrange(1, 300)) + cursor[at + rnd.randrange(3) :]
            case 1:
                cursor = json.dumps(rnd.choices(parts, k=rnd.choice([2, 3, 3, 3, 4])))
            case _:
                cursor = "".join(rnd.choices('[]{}",:@>0x', k=rnd.randrange(1, 12)))
        seen.add(await outcome(node, rnd.choice(FILTERS), cursor))
    assert seen == {"page", "invalid_cursor"}
    assert node.store.is_open


async def test_a_smaller_limit_on_the_way_loses_nothing(open_node: OpenNode) -> None:
    """A scan cannot stop within a step: such a page may be a few tuples longer than asked for."""
    node = await open_node("us1")
    there = [f"doc:1 viewer user:{n}" for n in range(2_500)]
    await load(node, [f"+{text}" for text in there])
    wanted = Filter("default", resource="doc:1")
    page = await node.store.read_page(wanted, 1_000)
    found = [text_of(one) for one in page.relationships]
    longest = 0
    while page.cursor is not None:
        page = await node.store.read_page(wanted, 1, page.cursor)
        found += [text_of(one) for one in page.relationships]
        longest = max(longest, len(page.relationships))
    assert sorted(found) == sorted(there)
    assert longest <= 64


async def test_a_page_may_be_read_before_the_answer_to_its_last_write(open_node: OpenNode) -> None:
    """What was read and is not known to be stored yet is durable once the answer has come."""
    us = await open_node("us1")
    await us.write("+doc:1 viewer user:a")
    ahead = {us.store.origin: us.store.vector[us.store.origin] + 1_000}
    waiting = asyncio.create_task(us.store.wait_durable(ahead))
    us.clock.pass_s(1)
    await us.write("+doc:2 viewer user:a")
    await asyncio.wait_for(waiting, 5)
