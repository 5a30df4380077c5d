"""What applications tried to write, what they were answered, and what may have come of it.

A write of unknown outcome may be carried out at any later time, or never; one that was acknowledged
was carried out between its beginning and its answer, and what was written before it began is gone.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

Payload = str | None
"""Of a relationship, "" for none; None: it is not there."""


class Outcome(StrEnum):
    """What an answer says."""

    DONE = "done"
    NOTHING = "nothing"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A write. made: what it makes of each tuple.

    is_exact: it changes all these; a deletion by filter only what it finds.
    """

    began: float
    ended: float
    outcome: Outcome
    made: Mapping[str, Payload]
    told: str
    is_exact: bool = True

    def overwrites(self, other: "Attempt", name: str) -> bool:
        """Whether what the other made of a tuple must be gone: it was there when this began."""
        return (
            self.is_exact
            and self.outcome is Outcome.DONE
            and other.outcome is Outcome.DONE
            and name in self.made
            and other.ended < self.began
        )


def violations(
    before: Mapping[str, Payload], attempts: Sequence[Attempt], found: Mapping[str, Payload]
) -> Iterator[str]:
    """What cannot have come of these attempts, in words."""
    effective = [one for one in attempts if one.outcome is not Outcome.NOTHING]
    names = {name for one in effective for name in one.made} | found.keys() | before.keys()
    there = {name: before.get(name) for name in names}
    effective.append(Attempt(-math.inf, -math.inf, Outcome.DONE, there, "before"))
    for name in sorted(names):
        of_it = [one for one in effective if name in one.made]
        payload = found.get(name)
        wrote = [one for one in of_it if one.made[name] == payload]
        if not wrote:
            yield f"{name} is {_spelled(payload)}, which nobody made of it:{_story(of_it, name)}"
        elif all(any(later.overwrites(one, name) for later in of_it) for one in wrote):
            yield f"{name} is {_spelled(payload)}, which was overwritten:{_story(of_it, name)}"


def _spelled(payload: Payload) -> str:
    return "absent" if payload is None else f"there ({payload})"


def _story(attempts: Iterable[Attempt], name: str) -> str:
    return "".join(
        f"\n  {one.began:.4f}-{one.ended:.4f} {_spelled(one.made[name])} "
        f"{one.outcome}{'' if one.is_exact else ' where found'}: {one.told}"
        for one in sorted(attempts, key=lambda one: one.began)
    )
