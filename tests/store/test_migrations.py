"""Stored data of another release: taken over by scripts, step by step, or refused with a reason.

There has been one format so far, so the earlier ones here are made up; the way is the real one.
"""

from collections.abc import AsyncIterator, Mapping
from hashlib import sha1

import pytest

from sidecar.errors import Broken, Refused, Unavailable
from sidecar.store.keys import Keys
from sidecar.store.link import Link, pool_of
from sidecar.store.migrations import MIGRATIONS, STORE_FORMAT, migrate
from sidecar.store.scripts import Script, names
from sidecar.store.server import check_release
from tests.servers import RealValkey
from tests.unit.test_health import store_at

KEYS = Keys("sidecar")
WORDS = KEYS.meta.replace("meta", "words")

# Format 1 kept each word in small letters, two of them a call; format 2 keeps them in capitals.
TO_CAPITALS = """
local words, place = string.sub(KEYS[1], 1, -5) .. 'words', tonumber(ARGV[1]) or 0
local last = redis.call('LLEN', words) - 1
for i = place, math.min(place + 1, last) do
  redis.call('LSET', words, i, string.upper(redis.call('LINDEX', words, i)))
end
if place + 2 <= last then return { 'more', tostring(place + 2) } end
redis.call('HSET', KEYS[1], 'format', '2')
return { 'done', '' }
"""

# Format 3 counts them.
COUNTED = """
local words = string.sub(KEYS[1], 1, -5) .. 'words'
redis.call('HSET', KEYS[1], 'format', '3', 'count', redis.call('LLEN', words))
return { 'done', '' }
"""

TEXTS = {
    "capitals": TO_CAPITALS,
    "counted": COUNTED,
    "forgetful": "return { 'done', '' }",
    "wordless": "return { 'perhaps', '' }",
}
STEPS = {1: "capitals", 2: "counted"}


def made_up(name: str) -> Script:
    text = TEXTS[name]
    return Script(name, text, sha1(text.encode()).hexdigest(), ((1, f"{name}.lua"),))


class Killed(Link):
    """A link of a node that is killed after so many calls of a script."""

    calls_left = 2

    async def run(self, script: Script, key: str, *args: object) -> object:
        if self.calls_left == 0:
            raise Unavailable("store_unavailable", "killed")
        self.calls_left -= 1
        return await super().run(script, key, *args)


@pytest.fixture
async def link(valkey: RealValkey) -> AsyncIterator[Link]:
    """To a store of format 1 of node us1 with five words."""
    link = Link(pool_of(valkey.url, 5.0), 5.0)
    await link.call("HSET", KEYS.meta, "node", "us1", "format", "1")
    await link.call("RPUSH", WORDS, "a", "b", "c", "d", "e")
    yield link
    await link.close()


async def words(link: Link) -> str:
    return b"".join(await link.call("LRANGE", WORDS, 0, -1)).decode()


async def meta(link: Link) -> dict[str, str]:
    flat = [one.decode() for one in await link.call("HGETALL", KEYS.meta)]
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def up(link: Link, wanted: int, migrations: Mapping[int, str] = STEPS) -> None:
    await migrate(link, KEYS, "us1", made_up, migrations=migrations, wanted=wanted)


async def test_one_format_after_the_other(link: Link) -> None:
    await up(link, 3)
    assert await words(link) == "ABCDE"
    assert await meta(link) == {"node": "us1", "format": "3", "count": "5"}
    await up(link, 3)
    assert await words(link) == "ABCDE"


async def test_a_node_that_is_killed_in_between_begins_anew(valkey: RealValkey, link: Link) -> None:
    """Until the last call the store has the old number, and no reader takes it for the new one."""
    killed = Killed(pool_of(valkey.url, 5.0), 5.0)
    with pytest.raises(Unavailable):
        await up(killed, 2)
    await killed.close()
    assert await words(link) == "ABCDe"
    assert (await meta(link))["format"] == "1"
    await up(link, 2)
    assert await words(link) == "ABCDE"
    assert (await meta(link))["format"] == "2"


async def test_what_a_later_release_stored_is_refused_and_left_alone(link: Link) -> None:
    await up(link, 3)
    with pytest.raises(Refused, match=r"has format 3 of a later release.*format 2") as refused:
        await up(link, 2)
    assert refused.value.code == "wrong_store"
    assert (await meta(link))["format"] == "3"


async def test_what_nothing_leads_from_is_refused_before_anything_is_done(link: Link) -> None:
    with pytest.raises(Refused, match="has format 1, and this release takes over none before 2"):
        await up(link, 3, {2: "counted"})
    assert await words(link) == "abcde"


async def test_the_data_of_another_node_are_left_alone(link: Link) -> None:
    await migrate(link, KEYS, "eu1", made_up, migrations=STEPS, wanted=3)
    assert (await meta(link))["format"] == "1"
    assert await words(link) == "abcde"


async def test_an_empty_store_has_nothing_to_take_over(valkey: RealValkey) -> None:
    link = Link(pool_of(valkey.url, 5.0), 5.0)
    await up(link, 3)
    assert await link.call("DBSIZE") == 0
    await link.close()


@pytest.mark.parametrize("name", ["forgetful", "wordless"])
async def test_a_script_that_breaks_the_rules_ends_the_node(link: Link, name: str) -> None:
    with pytest.raises(Broken, match=name):
        await up(link, 2, {1: name})


@pytest.mark.parametrize("stored", [str(STORE_FORMAT + 1), "0", "x"])
async def test_a_store_refuses_another_format_when_it_opens(
    valkey: RealValkey, stored: str
) -> None:
    async with store_at(valkey.url) as store:
        await store.opened()
    link = Link(pool_of(valkey.url, 5.0), 5.0)
    await link.call("HSET", KEYS.meta, "format", stored)
    with pytest.raises(ExceptionGroup) as failed:
        async with store_at(valkey.url) as store:
            await store.opened()
    (refused,) = failed.value.exceptions
    assert isinstance(refused, Refused)
    assert refused.code == "wrong_store"
    assert (await meta(link))["format"] == stored
    await link.close()


def test_every_format_before_the_present_one_has_its_script() -> None:
    assert all(0 < number < STORE_FORMAT for number in MIGRATIONS)
    assert set(MIGRATIONS.values()) <= set(names())


@pytest.mark.parametrize("version", ["", "7.0.15", "7.2.4", "8.2.1", "10.0.0", "unknown"])
def test_a_server_that_is_new_enough(version: str) -> None:
    check_release(version)


@pytest.mark.parametrize("version", ["6.2.14", "5.0", "2.8.17"])
def test_a_server_that_is_too_old_is_named(version: str) -> None:
    with pytest.raises(Refused, match=f"this is Redis {version}.*need Redis 7.0") as refused:
        check_release(version)
    assert refused.value.code == "wrong_redis"
