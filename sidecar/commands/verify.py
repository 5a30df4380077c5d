"""`sidecar verify`: whether all nodes of a deployment store the same, and repair where they do not.

Owns what is asked of the nodes' peer listeners, the comparison of single tuples, and what a repair
will do before it does it. One node is compared with all others; `--from` names it, and its word
then counts.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from sidecar.core.relationship import BUCKETS
from sidecar.core.residency import GLOBAL, Residency
from sidecar.core.topology import Node, Topology
from sidecar.errors import Refused, Unavailable
from sidecar.peer.calls import PeerCalls
from sidecar.peer.inspection import COMPARE, DIGESTS, REPAIR, STATES, STRAYS
from sidecar.security.links import Links

TIMEOUT_S = 60.0
AGAIN_S = 0.3
ROUNDS = 3
"""So often a repair looks again: what was written meanwhile is taken in the next round."""

Name = tuple[str, str, str, str]
"""Tenant, resource, relation, subject."""

Told = Mapping[str, Any]
"""What a node shows of a tuple: timestamp, origin, condition, expires_at; or what is damaged."""


@dataclass(frozen=True, slots=True)
class Part:
    """A partition and its nodes. regions: those it is bound to, none for that of everywhere."""

    partition: str
    nodes: Sequence[Node]
    regions: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """A tuple that nodes show differently. shown: node -> what it shows, None for nothing."""

    bucket: int
    name: Name
    shown: Mapping[str, Told | None]


@dataclass(slots=True)
class Findings:
    """What a comparison has found.

    part: what was compared. unequal, undecided: node -> buckets that differ from those of `base`,
    or could not be told. damaged: node -> buckets that do not fit its own digests or lists.
    unreachable: node -> why.
    """

    base: str
    part: Part
    unequal: dict[str, set[int]] = field(default_factory=dict)
    undecided: dict[str, set[int]] = field(default_factory=dict)
    damaged: dict[str, set[int]] = field(default_factory=dict)
    unreachable: dict[str, str] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        """Whether every node was compared, in every bucket, and none differs."""
        found = (self.unequal, self.undecided, self.damaged)
        return not self.unreachable and not any(any(by_node.values()) for by_node in found)

    def buckets_to_mend(self, node: str) -> set[int]:
        """Of a node, by the word of `base`; without those in which that word is damaged too."""
        wrong = self.unequal.get(node, set()) | self.damaged.get(node, set())
        return wrong - self.damaged.get(self.base, set())


@dataclass(frozen=True, slots=True)
class Effect:
    """What a repair does to a tuple of a node: `appears`, `changes` or `disappears`."""

    node: str
    word: str
    difference: Difference


@dataclass(frozen=True, slots=True)
class Watching:
    """How a verification tells a person what it does."""

    advance: Callable[[int], None] = field(default=lambda buckets: None)
    planned: Callable[[Findings, Sequence[Effect]], None] = field(default=lambda found, plan: None)


def parts_of(topology: Topology, residency: Residency) -> list[Part]:
    """What there is to compare in a deployment, that of everywhere first."""
    sets = residency.sets.items()
    bound = (Part(name, topology.within(regions).nodes(), regions) for name, regions in sets)
    return [Part(GLOBAL, topology.nodes()), *bound]


async def verify(
    parts: Sequence[Part],
    *,
    wait_s: float,
    source: str | None = None,
    repair: bool = False,
    dry_run: bool = False,
    watching: Watching | None = None,
    links: Links | None = None,
) -> list[Findings]:
    """Compare all nodes; with `repair` mend them by the word of `source`, and compare again.

    Parts of which `source` has nothing are compared, and not mended. wait_s: how long buckets that
    are written at the moment are asked about again. links: how the nodes know who asks. Raises
    Refused for what cannot be asked, Unavailable when `source`, or every node of a part, cannot be
    reached.
    """
    known = {str(node.id) for part in parts for node in part.nodes}
    if source is not None and source not in known:
        listed = ", ".join(sorted(known))
        raise Refused("unknown_node", f"--from {source} is none of the nodes {listed}")
    telling = watching or Watching()
    found = []
    async with PeerCalls(TIMEOUT_S, links) as calls:
        for part in parts:
            endpoints = {str(node.id): str(node.endpoint) for node in part.nodes}
            deployment = _Deployment(calls, part, endpoints, wait_s, telling)
            if source is None or source in endpoints:
                found.append(await _verify(deployment, source, repair, dry_run))
            else:
                found.append(await deployment.compare(None))
    return found


async def _verify(
    deployment: "_Deployment", source: str | None, repair: bool, dry_run: bool
) -> Findings:
    found = await deployment.compare(source)
    for _ in range(ROUNDS if repair else 0):
        plan = effects(found)
        deployment.watching.planned(found, plan)
        if dry_run or not any(map(found.buckets_to_mend, deployment.endpoints)):
            break
        await deployment.mend(found)
        found = await deployment.compare(source)
    return found


def effects(found: Findings) -> list[Effect]:
    """What a repair by the word of `found.base` does to the tuples that differ."""
    plan = []
    for difference in found.differences:
        right = difference.shown.get(found.base)
        for node, told in difference.shown.items():
            is_mended = difference.bucket in found.buckets_to_mend(node)
            if node == found.base or told == right or not is_mended:
                continue
            word = "appears" if told is None else "disappears" if right is None else "changes"
            plan.append(Effect(node, word, difference))
    return plan


class _Deployment:
    """The nodes of a part, as far as they can be reached. endpoints: node -> where it is."""

    def __init__(
        self,
        calls: PeerCalls,
        part: Part,
        endpoints: Mapping[str, str],
        wait_s: float,
        watching: Watching,
    ) -> None:
        self._calls, self._part, self._wait_s = calls, part, wait_s
        self.endpoints, self.watching = endpoints, watching

    async def compare(self, source: str | None) -> Findings:
        strays = await asyncio.gather(*(self._strays(node) for node in self.endpoints))
        looked = dict(zip(self.endpoints, strays, strict=True))
        reached = {node: one for node, one in looked.items() if not isinstance(one, Unavailable)}
        away = {node: one for node, one in looked.items() if isinstance(one, Unavailable)}
        if not reached or source in away:
            wanted = source if source in away else next(iter(away))
            raise away[wanted]
        found = Findings(source or next(iter(reached)), self._part)
        found.unreachable = {node: one.message for node, one in away.items()}
        found.damaged = {node: set(one) for node, one in reached.items()}
        others = [node for node in reached if node != found.base]
        found.unequal = {node: set() for node in others}
        found.undecided = {node: set() for node in others}
        await self._walk(found, others)
        await self._walk_again(found, others)
        # Each knows of its own damage only; the digests of the others are asked for that alone.
        await asyncio.gather(*(self._find_damage(found, node) for node in others))
        await self._find_differences(found, list(reached))
        return found

    def _asked(self, **named: object) -> dict[str, object]:
        """What a call says: which partition it is about, and this."""
        return {"partition": self._part.partition, **named}

    async def _strays(self, node: str) -> set[int] | Unavailable:
        try:
            answer = await self._calls.post(self.endpoints[node], STRAYS, self._asked())
        except Unavailable as away:
            return away
        if answer.get("node") != node:
            raise Refused(
                "wrong_node",
                f"expected {node} at {self.endpoints[node]}, {str(answer.get('node'))[:80]!r} "
                "answers; check its endpoint",
            )
        return {int(bucket) for bucket, _ in answer["strays"]}

    # -- buckets ----------------------------------------------------------------------------------

    async def _walk(self, found: Findings, others: Sequence[str]) -> None:
        first = 0
        while first < BUCKETS:
            following = await self._compare_piece(found, others, first, range(BUCKETS))
            self.watching.advance(following)
            first = following

    async def _walk_again(self, found: Findings, others: Sequence[str]) -> None:
        """Ask about what was in motion, until it could be told or `wait_s` are over."""
        until = time.monotonic() + self._wait_s
        while any(found.undecided.values()) and time.monotonic() < until:
            await asyncio.sleep(AGAIN_S)
            left = set().union(*found.undecided.values())
            first = min(left)
            while left and time.monotonic() < until:
                following = await self._compare_piece(found, others, first, left)
                left = {number for number in left if number >= following}
                first = min(left, default=BUCKETS)

    async def _compare_piece(
        self, found: Findings, others: Sequence[str], first: int, wanted: Iterable[int]
    ) -> int:
        """Compare some buckets from `first` on with all others; where to go on."""
        digests = self._asked(first=first)
        asked = await self._calls.post(self.endpoints[found.base], DIGESTS, digests)
        following = int(asked["following"])
        piece = set(wanted) & set(range(first, following))
        found.damaged[found.base] |= set(asked["damaged"])
        answers = await asyncio.gather(*(self._ask(node, asked) for node in others))
        for node, answer in zip(others, answers, strict=True):
            if answer is None:
                found.undecided[node] |= piece
                continue
            undecided = set(answer["undecided"])
            found.undecided[node] = found.undecided[node] - piece | undecided & piece
            found.unequal[node] |= set(answer["unequal"]) & piece
        return following

    async def _ask(self, node: str, asked: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            return await self._calls.post(self.endpoints[node], COMPARE, asked)
        except Unavailable:
            return None  # it was there a moment ago; what it says stays undecided

    async def _find_damage(self, found: Findings, node: str) -> None:
        first = 0
        while first < BUCKETS:
            try:
                digests = self._asked(first=first)
                answer = await self._calls.post(self.endpoints[node], DIGESTS, digests)
            except Unavailable as away:
                found.unreachable[node] = away.message
                return
            found.damaged[node] |= set(answer["damaged"])
            first = int(answer["following"])

    # -- tuples -----------------------------------------------------------------------------------

    async def _find_differences(self, found: Findings, nodes: Sequence[str]) -> None:
        buckets = set().union(*found.unequal.values(), *found.damaged.values())
        for bucket in sorted(buckets):
            found.differences += await self._differences(bucket, nodes)

    async def _differences(self, bucket: int, nodes: Sequence[str]) -> list[Difference]:
        """The tuples of a bucket that are not only on their way: they differ twice alike."""
        first, is_exact = await self._look(bucket, nodes)
        if is_exact:
            return [Difference(bucket, name, shown) for name, shown in sorted(first.items())]
        await asyncio.sleep(AGAIN_S)
        second, is_exact = await self._look(bucket, nodes)
        return [
            Difference(bucket, name, shown)
            for name, shown in sorted(second.items())
            if is_exact or first.get(name) == shown
        ]

    async def _look(
        self, bucket: int, nodes: Sequence[str]
    ) -> tuple[dict[Name, dict[str, Told | None]], bool]:
        """Name -> what each node shows, where that is not the same; and whether at one moment."""
        path = f"{STATES}/{bucket}?{urlencode(self._asked())}"
        answers = await asyncio.gather(
            *(self._calls.get(self.endpoints[node], path) for node in nodes)
        )
        tables = [_shown(answer["tuples"]) for answer in answers]
        names = set().union(*tables)
        shown = {
            name: dict(zip(nodes, (table.get(name) for table in tables), strict=True))
            for name in names
        }
        differing = {
            n: told for n, told in shown.items() if any(t != told[nodes[0]] for t in told.values())
        }
        return differing, all(a["vector"] == answers[0]["vector"] for a in answers)

    # -- repair -----------------------------------------------------------------------------------

    async def mend(self, found: Findings) -> None:
        """Hand the pages of `found.base` to every node whose buckets differ from it."""
        todo = {n: sorted(found.buckets_to_mend(n)) for n in self.endpoints if n != found.base}
        for bucket in sorted(set().union(*todo.values())):
            path = f"{STATES}/{bucket}?{urlencode(self._asked(page=1))}"
            page = (await self._calls.get(self.endpoints[found.base], path))["page"]
            for node, buckets in todo.items():
                if bucket in buckets:
                    body = self._asked(**{"to": node, "from": found.base, "pages": [page]})
                    await self._calls.post(self.endpoints[node], REPAIR, body)


def _shown(tuples: Iterable[Told]) -> dict[Name, Told]:
    """What readers see, or would if they could; what is deleted is not there."""
    table: dict[Name, Told] = {}
    for one in tuples:
        name = (one["tenant"], one["resource"], one["relation"], one["subject"])
        told = {key: one[key] for key in _TOLD if key in one}
        if one.get("visible") or "damaged" in one:
            table[name] = told
    return table


_TOLD = ("timestamp", "origin", "condition", "expires_at", "damaged")


# --- what a person reads --------------------------------------------------------------------------


def lines_of(found: Findings) -> list[str]:
    """What was found, in words: nothing when all nodes are equal."""
    lines = _lines_of(found)
    return [*_heading(found.part), *lines] if lines else []


def _heading(part: Part) -> list[str]:
    return [f"tenants of {', '.join(part.regions)}:"] if part.regions else []


def _lines_of(found: Findings) -> list[str]:
    lines = [f"{node} cannot be reached: {why}" for node, why in found.unreachable.items()]
    for node, buckets in found.unequal.items():
        if buckets:
            lines.append(f"{node} differs from {found.base} in {_buckets(buckets)}")
    for node, buckets in found.damaged.items():
        if buckets:
            lines.append(f"{node} was changed behind its back in {_buckets(buckets)}")
    for difference in found.differences:
        lines.append(f"bucket {difference.bucket}: {_named(difference.name)}")
        width = max(map(len, difference.shown))
        lines += [f"  {node:{width}}  {_told(told)}" for node, told in difference.shown.items()]
    for node, buckets in found.undecided.items():
        if buckets:
            lines.append(
                f"{node} could not be compared in {_buckets(buckets)}: they are written too often "
                "or the node is behind; try a longer --wait"
            )
    return lines


def plan_lines(found: Findings, plan: Sequence[Effect]) -> list[str]:
    """What a repair does, before it does it."""
    lines = [f"{one.word} on {one.node}: {_named(one.difference.name)}" for one in plan]
    for node in found.damaged:
        buckets = found.buckets_to_mend(node)
        if buckets and node != found.base:
            lines.append(f"{node} takes {_buckets(buckets)} from {found.base}, indexes included")
    if left := found.damaged.get(found.base):
        lines.append(
            f"{_buckets(left)} of {found.base} are damaged themselves and are not handed on; "
            "repair them --from another node"
        )
    return [*_heading(found.part), *lines] if lines else []


def json_of(
    found: Sequence[Findings], plans: Mapping[str, Sequence[Effect]] | None = None
) -> dict[str, Any]:
    """The same for programs. plans: partition -> what was planned there.

    At the top that of everywhere, under `partitions` the others; `equal` at the top is for all.
    """
    told = [_json_of(one, (plans or {}).get(one.part.partition, ())) for one in found]
    first, *others = told
    return {
        **first,
        "equal": all(one.is_equal for one in found),
        "partitions": {
            one.part.partition: {"regions": list(one.part.regions), **shown}
            for one, shown in zip(found[1:], others, strict=True)
        },
    }


def _json_of(found: Findings, plan: Sequence[Effect]) -> dict[str, Any]:
    return {
        "equal": found.is_equal,
        "base": found.base,
        "unreachable": found.unreachable,
        "unequal": {node: sorted(buckets) for node, buckets in found.unequal.items()},
        "undecided": {node: sorted(buckets) for node, buckets in found.undecided.items()},
        "damaged": {node: sorted(buckets) for node, buckets in found.damaged.items()},
        "differences": [_difference_json(one) for one in found.differences],
        "plan": [
            {"node": one.node, "does": one.word, **_name_json(one.difference.name)} for one in plan
        ],
    }


def _difference_json(one: Difference) -> dict[str, Any]:
    # What a node does not show is left out.
    shown = {node: told for node, told in one.shown.items() if told is not None}
    return {"bucket": one.bucket, **_name_json(one.name), "shown": shown}


def _name_json(name: Name) -> dict[str, str]:
    return dict(zip(("tenant", "resource", "relation", "subject"), name, strict=True))


def _named(name: Name) -> str:
    tenant, *rest = name
    return " ".join(rest) if tenant == "default" else f"{' '.join(rest)} of tenant {tenant}"


def _told(told: Told | None) -> str:
    if told is None:
        return "nothing"
    if "damaged" in told:
        return f"unreadable: {told['damaged'][:60]!r}"
    text = f"{told['timestamp']} {told['origin']}"
    text += f" if {told['condition']}" if "condition" in told else ""
    return text + (f" until {told['expires_at']}" if "expires_at" in told else "")


def _buckets(buckets: Iterable[int]) -> str:
    numbers = sorted(buckets)
    shown = ", ".join(map(str, numbers[:10])) + (" …" if len(numbers) > 10 else "")
    return f"{len(numbers)} bucket{'' if len(numbers) == 1 else 's'} ({shown})"
