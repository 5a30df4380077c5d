"""How full a Redis is: what its own words come to."""

import pytest

from sidecar.store.memory import MAX_RESERVE_BYTES, Memory, memory_of

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("used", "limit", "is_full"),
    [
        (10**12, 0, False),
        (89, 100, False),
        (90, 100, False),
        (91, 100, True),
        (200, 100, True),
        (2, 1, True),
        (64 * 1024 * MIB - MAX_RESERVE_BYTES, 64 * 1024 * MIB, False),
        (64 * 1024 * MIB - MAX_RESERVE_BYTES + 1, 64 * 1024 * MIB, True),
    ],
)
def test_full_is_when_only_the_reserve_is_left(used: int, limit: int, is_full: bool) -> None:
    assert Memory(used, limit).is_full is is_full


def test_what_the_server_does_not_count_is_not_counted() -> None:
    info = (
        b"# Memory\r\nused_memory:1000\r\nused_memory_human:1000B\r\nmaxmemory:900\r\n"
        b"maxmemory_policy:noeviction\r\nmem_not_counted_for_evict:200\r\n"
    )
    assert memory_of(info) == Memory(800, 900, "noeviction")


def test_a_server_that_says_nothing_has_no_limit() -> None:
    assert memory_of(b"") == Memory(0, 0, "")
    assert not memory_of(b"# Memory\r\nused_memory:5\r\n").is_full
