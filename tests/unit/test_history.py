"""The last fifteen minutes: rates are differences, and the ring keeps so many samples."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.admin.history import KEPT, PERIOD_S, History, Sample
from sidecar.metrics import Metrics


@dataclass
class Recorded:
    """A history whose clock goes on when it is told to."""

    metrics: Metrics = field(default_factory=Metrics)
    now_s: float = 100.0
    waiting: dict[str, int] = field(default_factory=dict)
    told: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.history = History(
            self.metrics, self._backlog, clock_s=lambda: self.now_s, wall_s=lambda: self.now_s
        )
        self.history.tell = self.told.append

    async def _backlog(self) -> Mapping[str, int]:
        return dict(self.waiting)

    async def pass_s(self, seconds: float) -> None:
        self.now_s += seconds
        await self.history.take()


async def test_rates_are_per_second_whatever_the_time_between() -> None:
    one = Recorded()
    await one.history.take()
    for _ in range(30):
        one.metrics.wrote()
    one.metrics.merged(5, local=1, remote=2)
    await one.pass_s(3.0)
    await one.pass_s(60.0)
    busy, idle = one.history
    assert (busy.rates["writes"], busy.rates["conflicts"]) == (10.0, 1.0)
    assert set(idle.rates.values()) == {0.0}
    assert one.told == [busy, idle]


async def test_lag_and_backlog_are_those_of_each_target() -> None:
    one = Recorded()
    one.metrics.has_targets({"node2": lambda: 12.0, "node3": lambda: 0.0})
    one.waiting = {"node2": 4}
    await one.history.take()
    await one.pass_s(PERIOD_S)
    told = json.loads(one.history.to_json())["samples"]
    assert told[0]["lag_ms"] == {"node2": 12.0, "node3": 0.0}
    assert told[0]["backlog"] == {"node2": 4}


async def test_fifteen_minutes_are_kept_and_the_oldest_goes() -> None:
    one = Recorded()
    await one.history.take()
    for _ in range(KEPT + 10):
        await one.pass_s(PERIOD_S)
    samples = list(one.history)
    assert len(samples) == KEPT
    assert samples[-1].at_ms - samples[0].at_ms == (KEPT - 1) * PERIOD_S * 1000
    assert KEPT * PERIOD_S == 15 * 60
