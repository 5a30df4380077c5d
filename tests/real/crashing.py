"""`python -m tests.real.crashing run …`: a sidecar that kills itself where a test has ordered it.

The order, `Order.text`, lies in the file that $CRASHING names, and may come, change and go while
the sidecar runs. The process is killed as by kill -9, at the n-th time that it comes to the point:
before it, after it, or some milliseconds after it was begun. How long a request may still be
carried out that the database has not answered is made short ($GRACE_S).
"""

import asyncio
import functools
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sidecar import cli
from sidecar.proxy import applier, settling
from sidecar.proxy.applier import Applier
from sidecar.proxy.looking import Looking
from sidecar.proxy.settling import Settling
from sidecar.proxy.writes import Writes
from sidecar.store.proxy_store import ProxyStore

POINTS: dict[str, tuple[type, str]] = {
    "intend": (ProxyStore, "intend"),
    "commit": (ProxyStore, "commit"),
    "withdraw": (ProxyStore, "withdraw"),
    "merge": (ProxyStore, "merge"),
    "pending": (ProxyStore, "pending"),
    "tell": (Applier, "_ask"),
    "note": (ProxyStore, "note_applied"),
    "settle": (Settling, "_try"),
    "look": (Looking, "present"),
    "match": (Looking, "matching"),
}
"""Name of a point -> what runs there. `send` is another: a write, as the database is sent it."""

T = TypeVar("T")
MOMENTS = ("before", "during", "after")


class Order(NamedTuple):
    """passage: which one it is. during_ms: how long after it was begun, if `during`."""

    point: str
    moment: str
    passage: int
    during_ms: float = 0.0

    @property
    def text(self) -> str:
        return " ".join(map(str, self))

    @classmethod
    def of(cls, text: str) -> "Order":
        point, moment, passage, during_ms = text.split()
        return cls(point, moment, int(passage), float(during_ms))


class Crashing:
    """Counts how often each point of an order is passed, and ends the process."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._text, self._passed = "", 0

    def _ordered(self, point: str) -> Order | None:
        """The order when this is the passage of it."""
        try:
            text = self._file.read_text()
        except FileNotFoundError:
            return None
        if text != self._text:
            self._text, self._passed = text, 0
        order = Order.of(text)
        if order.point != point:
            return None
        self._passed += 1
        return order if self._passed == order.passage else None

    async def passing(self, point: str, work: Callable[[], Awaitable[T]]) -> T:
        order = self._ordered(point)
        if order is None:
            return await work()
        match order.moment:
            case "before":
                _die()
            case "during":
                asyncio.get_running_loop().call_later(order.during_ms / 1000, _die)
        done = await work()
        if order.moment == "after":
            _die()
        return done


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _wrapped(crashing: Crashing, point: str, method: Any) -> Any:
    @functools.wraps(method)
    async def wrapper(*args: Any, **options: Any) -> Any:
        return await crashing.passing(point, lambda: method(*args, **options))

    return wrapper


def main() -> None:
    crashing = Crashing(Path(os.environ["CRASHING"]))
    for point, (owner, name) in POINTS.items():
        setattr(owner, name, _wrapped(crashing, point, getattr(owner, name)))
    carry_out = Writes.carry_out

    async def carrying_out(self: Writes, behind: Any, write: Any, send: Any) -> Any:
        return await carry_out(self, behind, write, _wrapped(crashing, "send", send))

    Writes.carry_out = carrying_out  # type: ignore[method-assign]
    settling.GRACE_S = applier.GRACE_S = float(os.environ["GRACE_S"])
    cli.main()


if __name__ == "__main__":
    main()
