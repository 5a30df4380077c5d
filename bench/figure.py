"""What a figure is: runs of a floor and of the product in turns, and the ratio that they make.

Pure arithmetic; knows nothing of how the runs were made.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report.

    value, floor: medians in `unit`. ratio: the median of value / floor of neighbouring runs, so
    that a machine that slows down for both changes nothing; least, most: its extremes.
    bar: what the ratio, or without a floor `value`, should reach (None: reported only).
    is_ceiling: the bar is the most that it should be, not the least.
    """

    name: str
    what: str
    unit: str
    value: float
    floor: float | None
    ratio: float | None
    least: float
    most: float
    bar: float | None
    runs: int
    is_ceiling: bool = False

    @property
    def ok(self) -> bool | None:
        """Whether the bar is reached; None without a bar."""
        if self.bar is None:
            return None
        held = self.value if self.ratio is None else self.ratio
        return held <= self.bar if self.is_ceiling else held >= self.bar

    def to_json(self) -> dict[str, object]:
        """The figure as a line of `--json`."""
        return {**asdict(self), "ok": self.ok}


def against_floor(
    name: str,
    what: str,
    unit: str,
    floors: Sequence[float],
    values: Sequence[float],
    *,
    bar: float | None = None,
    is_ceiling: bool = False,
) -> Figure:
    """The figure of runs in turns: floors[i] was measured beside values[i]."""
    ratios = [value / floor for value, floor in zip(values, floors, strict=True)]
    return Figure(
        name,
        what,
        unit,
        value=median(values),
        floor=median(floors),
        ratio=median(ratios),
        least=min(ratios),
        most=max(ratios),
        bar=bar,
        runs=len(values),
        is_ceiling=is_ceiling,
    )


def reported(name: str, what: str, unit: str, values: Sequence[float]) -> Figure:
    """The figure of something that has neither floor nor bar."""
    return Figure(
        name,
        what,
        unit,
        value=median(values),
        floor=None,
        ratio=None,
        least=min(values),
        most=max(values),
        bar=None,
        runs=len(values),
    )


def at_most(name: str, what: str, unit: str, values: Sequence[float], *, bar: float) -> Figure:
    """The figure of something that should be small and has no floor."""
    return Figure(
        name,
        what,
        unit,
        value=median(values),
        floor=None,
        ratio=None,
        least=min(values),
        most=max(values),
        bar=bar,
        runs=len(values),
        is_ceiling=True,
    )
