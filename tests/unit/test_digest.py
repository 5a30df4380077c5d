"""What the sum of a bucket notices."""

import random

from sidecar.core.digest import MODULUS, mix


def total(*tuples: tuple[int, int, str]) -> int:
    return sum(mix(*one) for one in tuples) % MODULUS


def test_swaps_change_the_sum() -> None:
    """Two tuples that exchange a timestamp, an origin, a version or their hashes are noticed."""
    rnd = random.Random(7)
    for _ in range(5_000):
        a, b = rnd.getrandbits(40), rnd.getrandbits(40)
        t, u = 1_790_000_000_000_000 + rnd.randrange(10**6), 1_790_000_000_000_000
        m, n = "node1.mwsgf5bo35gt", "node2.mwsgf5bo35gu"
        before = total((a, t, m), (b, u, n))
        assert total((b, t, m), (a, u, n)) != before
        if t != u:
            assert total((a, u, m), (b, t, n)) != before
        assert total((a, t, n), (b, u, m)) != before


def test_numbers_spread_over_forty_bits() -> None:
    seen = {mix(h, 1_790_000_000_000_000 + h, "node1.mwsgf5bo35gt") for h in range(20_000)}
    assert len(seen) > 19_990
    assert max(seen) > MODULUS * 0.999
    assert all(0 <= one < MODULUS for one in seen)
    ones = [sum(one >> bit & 1 for one in seen) / len(seen) for bit in range(40)]
    assert all(0.45 < share < 0.55 for share in ones), ones


def test_neighbours_do_not_cancel() -> None:
    """Timestamps one apart, as one batch of writes has them."""
    base = 1_790_000_000_000_000
    pairs = {
        total((1, base + i, "n.1"), (2, base + j, "n.1")) for i in range(80) for j in range(80)
    }
    assert len(pairs) == 80 * 80
