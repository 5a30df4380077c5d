"""How large a benchmark is, where it keeps its files, and how it starts the product."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.nodes import Launch


@dataclass(frozen=True, slots=True)
class Sizes:
    """runs: of the floor and of the product each, in turns: many short ones, because a machine that
    others use as well is now fast and now slow. The *_bodies are different requests of one run; a
    load generator that has sent all of them begins again. lag_s: seconds of steady writing, and
    before it of round trips alone. backlog, long_backlog: transactions. The others are tuples.
    """

    runs: int
    warm_up_s: float
    measured_s: float
    backlog: int
    single_bodies: int
    bulk_bodies: int
    memory_tuples: int
    lag_s: float
    stored_little: int
    stored_much: int
    long_backlog: int


FULL = Sizes(
    runs=9,
    warm_up_s=0.2,
    measured_s=0.8,
    backlog=25_000,
    single_bodies=12_000,
    bulk_bodies=600,
    memory_tuples=100_000,
    lag_s=2.0,
    stored_little=10_000,
    stored_much=1_000_000,
    long_backlog=40_000,
)
# Whether it runs at all; the ratios mean nothing.
QUICK = Sizes(
    runs=1,
    warm_up_s=0.1,
    measured_s=0.3,
    backlog=2_000,
    single_bodies=2_000,
    bulk_bodies=200,
    memory_tuples=5_000,
    lag_s=0.5,
    stored_little=5_000,
    stored_much=10_000,
    long_backlog=5_000,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a figure needs to be measured. `say` shows a person how far it has come."""

    folder: Path
    sizes: Sizes
    launch: Launch
    say: Callable[[str], None]

    @property
    def log(self) -> Path:
        """Where what is not a node writes."""
        return self.folder / "bench.log"

    def place(self, name: str) -> Path:
        """A new folder."""
        folder = self.folder / name
        folder.mkdir()
        return folder
