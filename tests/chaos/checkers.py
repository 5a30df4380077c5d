"""Checkers: what a history of requests allows the nodes to say in the end. Pure, and independent of
the product: nothing of it is imported here.

Checked of every run:

1. *Agreement.* All nodes have the same visible tuples with the same payloads, the same digests and
   the same vectors.
2. *Versions.* No two requests that were answered have the same version (origin, timestamp), and the
   vector of every node covers the version of each, unless its origin has said that it is lost.
3. *Survival.* What is visible of each tuple is explained by its writes: the ones that were answered
   (minus those said to be lost; tuples of which one was set aside and written again are left out)
   and the ones of unknown outcome. A write knew another one of its
   tuple if its vector covers that one's version; a write is maximal if no other one knew it. The
   visible state must be that of the maximal write which ranks highest by the strategy. An insert
   with a mark explains only itself, one without explains any insert without. So a lost write, a
   deleted tuple that comes back, a refused write that is seen and a wrong winner are all found.
4. *Evaluation.* Each node answers `true` exactly for what is visible without a payload.

Of a write of unknown outcome nobody knows whether it was done, its version, or what it knew. All
three are bounded: it was done, if at all, between its begin and a grace after its end (GRACE_US, or
three times as long as it had taken: a node that stalls may go on with it when its answer is no
longer awaited). So it comes after what its node had answered before it and before what its node
began after it, and it knew at least what the one and at most what the other knew. Within these
bounds anything goes, for each pair of writes by itself: the check may accept a state that no single
course of events explains, and never refuses one that some course explains. Bounds are not carried
over a return of the node to an older state, nor over a change of its incarnation. Contexts that
pass through a write of unknown outcome need no care: that write is itself among those that may have
known.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, pairwise
from math import inf
from typing import Any

from tests.chaos.history import Change, Final, Lost, Outcome, Request, Restored, Version
from tests.world import Triple

GRACE_US = 2_000_000
"""A write whose answer was lost may still have been running for so long, or longer: `over_us`."""

MAX_SHOWN = 5
MAX_REQUESTS_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be: which check, what, and the requests that show it, in order."""

    check: str
    message: str
    requests: Sequence[Request] = ()

    def __str__(self) -> str:
        left_out = len(self.requests) - MAX_REQUESTS_SHOWN
        lines = [f"... {left_out} earlier ones"] if left_out > 0 else []
        lines += [str(request) for request in self.requests[-MAX_REQUESTS_SHOWN:]]
        return "\n    ".join([f"{self.check}: {self.message}", *lines])


@dataclass(frozen=True, slots=True)
class Rules:
    """The strategy by its word in the configuration; priorities: node -> that of its region."""

    strategy: str
    priorities: Mapping[str, int]


def check(
    requests: Sequence[Request],
    finals: Sequence[Final],
    rules: Rules,
    *,
    lost: Sequence[Lost] = (),
    restored: Sequence[Restored] = (),
) -> list[Finding]:
    """Everything that the module promises."""
    return [
        *check_agreement(finals),
        *check_versions(requests, finals, lost),
        *check_survival(requests, finals[0].visible, rules, lost=lost, restored=restored),
        *check_evaluation(finals),
    ]


# -- agreement, versions, evaluation ---------------------------------------------------------------


def check_agreement(finals: Sequence[Final]) -> list[Finding]:
    """All nodes say the same."""
    found = []
    for a, b in pairwise(finals):
        said: Iterable[tuple[str, Mapping[Any, object], Mapping[Any, object]]] = (
            ("tuples", a.visible, b.visible),
            ("digests", a.digest, b.digest),
            ("vectors", a.vector, b.vector),
        )
        for what, one, other in said:
            keys = {*one, *other}
            unequal = [k for k in keys if one.get(k, "absent") != other.get(k, "absent")]
            shown = "; ".join(
                f"{key}: {one.get(key, 'absent')} and {other.get(key, 'absent')}"
                for key in sorted(unequal, key=str)[:MAX_SHOWN]
            )
            if unequal:
                message = f"{len(unequal)} {what} of {a.node} and {b.node} differ: {shown}"
                found.append(Finding("agreement", message))
    return found


def check_versions(
    requests: Iterable[Request], finals: Sequence[Final], lost: Sequence[Lost] = ()
) -> list[Finding]:
    """Each version names one request, and every node has come so far."""
    by_version: dict[Version, list[Request]] = defaultdict(list)
    for request in requests:
        if request.version:
            by_version[request.version].append(request)
    found = [
        Finding("versions", f"{version} was given {len(named)} times", named)
        for version, named in by_version.items()
        if len(named) > 1
    ]
    for final in finals:
        missing = [
            named[0]
            for version, named in by_version.items()
            if final.vector.get(version.origin, 0) < version.timestamp
            and not _is_lost(named[0], lost)
        ]
        if missing:
            message = f"the vector of {final.node} does not cover {len(missing)} answered writes"
            found.append(Finding("versions", message, missing[:MAX_SHOWN]))
    return found


def check_evaluation(finals: Iterable[Final]) -> list[Finding]:
    """A permission is there exactly where it is listed, and no payload has to be judged."""
    return [
        Finding("evaluation", f"{final.node} answers {decision} for {triple}")
        for final in finals
        for triple, decision in final.allowed.items()
        if decision is not (triple in final.visible and final.visible[triple] is None)
    ]


def _is_lost(request: Request, lost: Sequence[Lost]) -> bool:
    return request.version is not None and any(
        request.version.origin == one.origin and request.version.timestamp > one.after
        for one in lost
    )


# -- survival --------------------------------------------------------------------------------------


class Knew(IntEnum):
    """Whether a write had seen another one when it was made."""

    NO = 0
    MAYBE = 1
    YES = 2


@dataclass(frozen=True, slots=True, eq=False)
class _Write:
    """One request's part in a tuple.

    before, after: of one whose outcome is unknown, requests that its node is known to have done
    before and after it.
    """

    request: Request
    change: Change
    before: Request | None = None
    after: Request | None = None

    @property
    def version(self) -> Version | None:
        return self.request.version

    @property
    def earliest(self) -> float:
        if self.version:
            return self.version.timestamp
        # A hybrid clock is never behind the wall clock.
        return max(self.request.began_us, _timestamp(self.before, 0) + 1)

    @property
    def latest(self) -> float:
        return self.version.timestamp if self.version else _timestamp(self.after, inf) - 1

    @property
    def over_us(self) -> int:
        """When it was done, if it was."""
        return over_us(self.request)


def check_survival(
    requests: Sequence[Request],
    visible: Mapping[Triple, str | None],
    rules: Rules,
    *,
    lost: Sequence[Lost] = (),
    restored: Sequence[Restored] = (),
) -> list[Finding]:
    """What is visible is what some write of it says that may have won."""
    times = _Times(requests, restored)
    writes: dict[Triple, list[_Write]] = {triple: [] for triple in visible}
    aside = [one for one in lost if one.is_aside]
    # Nobody has said as what, and when, these were written again.
    again = {c.triple for r in requests if _is_lost(r, aside) for c in r.changes}
    for request in requests:
        if request.outcome is Outcome.REFUSED or _is_lost(request, lost):
            continue
        is_unknown = request.outcome is Outcome.UNKNOWN
        around = times.neighbours(request) if is_unknown else (None, None)
        for change in request.changes:
            writes.setdefault(change.triple, []).append(_Write(request, change, *around))
    found = []
    for triple, its in writes.items():
        if triple in again:
            continue
        contest = _Contest(its, rules, times)
        if not contest.can_end_as(visible.get(triple), triple in visible):
            said = f"visible with {visible[triple]}" if triple in visible else "not visible"
            winners = ", ".join(sorted({_content(w.change) for w in contest.winners()})) or "none"
            its.sort(key=lambda write: (write.earliest, write.request.began_us))
            found.append(
                Finding(
                    "survival",
                    f"{triple} is {said}; by its writes it may be: {winners}",
                    [write.request for write in its],
                )
            )
    return found


def _content(change: Change) -> str:
    return f"visible with {change.mark}" if change.is_insert else "not visible"


def over_us(request: Request) -> int:
    """When it had been done, if it was."""
    if request.version:
        return request.ended_us
    return request.ended_us + max(GRACE_US, 3 * (request.ended_us - request.began_us))


class _Times:
    """What the other requests of its node tell about one whose outcome is unknown."""

    def __init__(self, requests: Iterable[Request], restored: Iterable[Restored]) -> None:
        self._restored: dict[str, list[int]] = defaultdict(list)
        for node, at_us in restored:
            self._restored[node].append(at_us)
        self._by_end: dict[str, list[Request]] = defaultdict(list)
        for request in sorted(requests, key=lambda request: request.ended_us):
            if request.version:
                self._by_end[request.node].append(request)
        self._by_begin = {
            node: sorted(done, key=lambda request: request.began_us)
            for node, done in self._by_end.items()
        }
        # The latest version of those that ended first, and the earliest of those that began last.
        self._latest = {node: list(accumulate(done, _later)) for node, done in self._by_end.items()}
        self._earliest = {
            node: list(accumulate(reversed(done), _earlier))
            for node, done in self._by_begin.items()
        }

    def neighbours(self, request: Request) -> tuple[Request | None, Request | None]:
        """The last that was done at its node before it, and the first after it, as far as known."""
        node = request.node
        if node not in self._by_end:
            return None, None
        ended = bisect_right(self._by_end[node], request.began_us, key=lambda one: one.ended_us)
        before = self._latest[node][ended - 1] if ended else None
        begun = bisect_left(self._by_begin[node], over_us(request), key=lambda one: one.began_us)
        left = len(self._by_begin[node]) - begun
        after = self._earliest[node][left - 1] if left else None
        return (
            before if before and self.is_one_life(node, before, request) else None,
            after if after and self.is_one_life(node, request, after) else None,
        )

    def is_one_life(self, node: str, earlier: Request, later: Request) -> bool:
        """Whether the node had the same data all the time from the one to the other."""
        return not any(
            earlier.began_us <= at_us <= over_us(later) for at_us in self._restored[node]
        )


def _later(a: Request, b: Request) -> Request:
    return a if _timestamp(a, 0) > _timestamp(b, 0) else b


def _earlier(a: Request, b: Request) -> Request:
    return a if _timestamp(a, 0) < _timestamp(b, 0) else b


def _timestamp(request: Request | None, otherwise: float) -> float:
    return request.version.timestamp if request and request.version else otherwise


class _Contest:
    """The writes of one tuple, and which of them may have won."""

    def __init__(self, writes: Sequence[_Write], rules: Rules, times: _Times) -> None:
        self._rules, self._times = rules, times
        self._done = [write for write in writes if write.version]
        self._unknown = [write for write in writes if not write.version]
        self._maximal = _maximal(self._done)

    def can_end_as(self, mark: str | None, is_visible: bool) -> bool:
        if not is_visible and not self._done:
            return True  # all that is unknown may not have been done
        return any(
            write.change.is_insert == is_visible and (not is_visible or write.change.mark == mark)
            for write in self.winners()
        )

    def winners(self) -> list[_Write]:
        """Every write that some course of events makes the winner."""
        return [write for write in (*self._maximal, *self._unknown) if self._can_win(write)]

    def _can_win(self, write: _Write) -> bool:
        """Of the unknown ones, only those that help have been done."""
        if not write.version and any(self._knew(x, write) is Knew.YES for x in self._done):
            return False
        return all(
            self._can_stand_below(other, write, other.earliest, frozenset())
            for other in self._maximal
            if other is not write
        )

    def _can_stand_below(
        self, other: _Write, winner: _Write, earliest: float, used: frozenset[_Write]
    ) -> bool:
        """Whether `other`, made at `earliest` or later, may rank below, or be overwritten."""
        if not self._is_above(other, winner, earliest):
            return True
        if self._knew(winner, other) and winner.latest > earliest:
            return True
        return any(
            self._knew(x, other)
            and self._knew(x, winner) is not Knew.YES
            and x.latest > earliest
            and self._can_stand_below(x, winner, max(x.earliest, earliest + 1), used | {x})
            for x in self._unknown
            if x is not winner and x is not other and x not in used
        )

    def _is_above(self, a: _Write, b: _Write, earliest: float) -> bool:
        """Whether `a`, made at `earliest` or later, ranks above `b` for certain."""
        one, other = self._class(a), self._class(b)
        if one != other:
            return one > other
        if a.version and b.version:
            return _order(a.version) > _order(b.version)
        return earliest > b.latest

    def _class(self, write: _Write) -> int:
        match self._rules.strategy:
            case "lww":
                return 0
            case "insert_wins":
                return int(write.change.is_insert)
            case "delete_wins":
                return int(not write.change.is_insert)
            case "source_priority":
                return self._rules.priorities.get(write.request.node, 0)
            case other:
                raise ValueError(f"no rule for {other!r}")

    def _knew(self, x: _Write, y: _Write) -> Knew:
        """Whether x had seen y."""
        if x is y or x.over_us < y.request.began_us:
            return Knew.NO
        if y.version:
            return _knew_version(x, y.version)
        node = y.request.node
        if x.request.node == node and x.request.began_us >= y.over_us:
            is_same = self._times.is_one_life(node, y.request, x.request)
            return Knew.YES if is_same else Knew.MAYBE
        return _knew_unknown(x, y) if x.version else Knew.MAYBE


def _knew_version(x: _Write, version: Version) -> Knew:
    origin, timestamp = version.origin, version.timestamp
    if x.version:
        return Knew.YES if x.request.vector.get(origin, 0) >= timestamp else Knew.NO
    if x.before and x.before.vector.get(origin, 0) >= timestamp:
        return Knew.YES
    if x.after and x.after.vector.get(origin, 0) < timestamp:
        return Knew.NO
    return Knew.MAYBE


def _knew_unknown(x: _Write, y: _Write) -> Knew:
    """x was answered, y was not, and no clock tells."""
    vector, node = x.request.vector, y.request.node
    if max((t for o, t in vector.items() if _node_of(o) == node), default=0) < y.earliest:
        return Knew.NO
    before, after = y.before and y.before.version, y.after and y.after.version
    is_between = before and after and before.origin == after.origin
    if after and is_between and vector.get(after.origin, 0) >= after.timestamp:
        return Knew.YES
    return Knew.MAYBE


def _maximal(done: Iterable[_Write]) -> list[_Write]:
    """Those that no other one knew."""
    # Per origin the two highest places that vectors name: a write names its own place itself, so
    # it was known to another one when the second is as high.
    highest: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    writes = [(write, write.version) for write in done if write.version]
    for write, _ in writes:
        for origin, timestamp in write.request.vector.items():
            first, second = highest[origin]
            if timestamp > second:
                highest[origin] = (max(first, timestamp), min(first, timestamp))
    return [write for write, at in writes if highest[at.origin][1] < at.timestamp]


def _order(version: Version) -> tuple[int, bytes, bytes]:
    node, _, incarnation = version.origin.partition(".")
    return version.timestamp, node.encode(), incarnation.encode()


def _node_of(origin: str) -> str:
    return origin.partition(".")[0]
