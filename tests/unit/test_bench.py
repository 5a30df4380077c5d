"""The benchmark: its arithmetic, and that it runs and prints every figure."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.children import child, free_port, until_listening
from bench.figure import against_floor, at_most
from bench.pace import p99_us
from bench.texts import PER_RESOURCE, triples

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    *("drain", "bulk", "single", "single_one_target", "single_two_targets"),
    *("lag", "lag_at_rest", "memory", "stored_single", "stored_bulk", "targets", "link"),
    *("proxied", "added_p50", "added_p99"),
]


def test_the_ratio_is_the_median_of_neighbouring_runs() -> None:
    """A machine that is half as fast in one turn changes nothing."""
    figure = against_floor("n", "what", "1/s", [100, 50, 100], [80, 40, 90], bar=0.8)
    assert figure.ratio == pytest.approx(0.8)
    assert (figure.least, figure.most) == pytest.approx((0.8, 0.9))
    assert figure.ok is True


def test_a_ratio_below_its_bar_is_missed_and_without_a_bar_only_reported() -> None:
    assert against_floor("n", "what", "1/s", [100], [79], bar=0.8).ok is False
    assert against_floor("n", "what", "1/s", [100], [79]).ok is None


def test_what_has_no_floor_must_stay_below_its_bar() -> None:
    assert at_most("n", "what", "bytes", [299], bar=300).ok is True
    assert at_most("n", "what", "bytes", [301], bar=300).ok is False


def test_a_ratio_that_should_be_small_must_stay_below_its_bar() -> None:
    assert against_floor("n", "what", "µs", [100], [50], bar=0.5, is_ceiling=True).ok is True
    assert against_floor("n", "what", "µs", [100], [51], bar=0.5, is_ceiling=True).ok is False


def test_one_in_a_hundred_may_lie_above_the_99th_percentile() -> None:
    assert p99_us([0.001] * 99 + [1.0]) == pytest.approx(1_000)
    assert p99_us([0.001] * 98 + [1.0] * 2) == pytest.approx(1_000_000)


async def test_the_slow_link_delays_everything_and_keeps_its_order(tmp_path: Path) -> None:
    """Also what is sent before the far end is connected."""
    delay_s = 0.05
    port = free_port()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while taken := await reader.read(65_536):
            writer.write(taken)
        writer.close()

    far = await asyncio.start_server(echo, "127.0.0.1", 0)
    command = [sys.executable, "-m", "bench.slow_link", "--port", str(port)]
    command += ["--to", str(far.sockets[0].getsockname()[1]), "--delay-ms", str(delay_s * 1000)]
    async with far, child(command, tmp_path / "log"):
        await until_listening(port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sent = b"".join(b"%07d\n" % i for i in range(100_000))
        began = time.perf_counter()
        writer.write(sent)
        first = await reader.readexactly(8)
        # Timers may be early by a millisecond, each way.
        assert time.perf_counter() - began >= 2 * delay_s - 0.004
        assert first + await reader.readexactly(len(sent) - 8) == sent
        writer.close()
        await writer.wait_closed()


def test_tuples_differ_and_come_ten_to_a_resource() -> None:
    found = list(triples("a", 5_000))
    assert len(set(found)) == 5_000
    assert len({resource for resource, _, _ in found}) == 5_000 // PER_RESOURCE
    assert not {subject for *_, subject in found} & {subject for *_, subject in triples("b", 5_000)}


def test_a_quick_run_prints_every_figure_as_json() -> None:
    """Its ratios mean nothing; that they are there does. Nothing is left running."""
    found = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    figures = [json.loads(line) for line in found.stdout.splitlines()]
    assert [figure["name"] for figure in figures] == NAMES
    for figure in figures:
        # What is added to a slow moment may be nothing.
        assert figure["value"] > 0 or figure["name"].startswith("added_")
        assert figure["runs"] == 1
        assert figure["unit"]
        assert figure["machine"]["cores"] >= 1
        assert (figure["ok"] is None) == (figure["bar"] is None)
        assert (figure["ratio"] is None) == (figure["floor"] is None)
