"""The last fifteen minutes of this node, as the dashboard plots them: kept also while nobody looks.

Owns the ring of samples and how they are taken. A sample is a few additions, taken every few
seconds; the oldest goes when a new one comes.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass

from sidecar.api.answers import compact
from sidecar.metrics import Metrics

PERIOD_S = 3.0
RATES = ("writes", "changes_shipped", "merged", "conflicts", "failures")
KEPT = 300
"""Fifteen minutes of samples; some hundred bytes each, and more with many targets."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment. rates: per second since the sample before, by name. at_ms: since 1970.

    lag_ms: of each target. backlog: of each target, in transactions.
    """

    at_ms: int
    rates: Mapping[str, float]
    lag_ms: Mapping[str, float]
    backlog: Mapping[str, int]

    def to_json(self) -> dict[str, object]:
        """As it stands in events."""
        return {
            "at": self.at_ms,
            **{name: round(rate, 2) for name, rate in self.rates.items()},
            "lag_ms": {target: round(lag, 1) for target, lag in self.lag_ms.items()},
            "backlog": dict(self.backlog),
        }


class History:
    """The samples of one node. `run` takes them; the rest is for any task."""

    def __init__(
        self,
        metrics: Metrics,
        backlog: Callable[[], Awaitable[Mapping[str, int]]],
        *,
        clock_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """backlog: what waits for each target, at no cost worth naming."""
        self._metrics, self._backlog = metrics, backlog
        self._clock_s, self._wall_s = clock_s, wall_s
        self._samples: deque[Sample] = deque(maxlen=KEPT)
        self._before: tuple[float, Mapping[str, int]] | None = None
        self.tell: Callable[[Sample], None] = lambda sample: None

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    async def run(self) -> None:
        """Take samples for ever."""
        while True:
            await self.take()
            await asyncio.sleep(PERIOD_S)

    async def take(self) -> None:
        """Take a sample now; the first call only says from where rates count."""
        now_s, counts = self._clock_s(), self._metrics.counts()
        before, self._before = self._before, (now_s, counts)
        if before is None or now_s <= before[0]:
            return
        then_s, then = before
        rates = {name: (counts[name] - then[name]) / (now_s - then_s) for name in RATES}
        lag_ms, backlog = self._metrics.lags(), await self._backlog()
        sample = Sample(int(self._wall_s() * 1000), rates, lag_ms, backlog)
        self._samples.append(sample)
        self.tell(sample)

    def to_json(self) -> str:
        """All samples, oldest first, in one line."""
        samples = [sample.to_json() for sample in self._samples]
        return compact({"period_s": PERIOD_S, "kept": KEPT, "samples": samples})
