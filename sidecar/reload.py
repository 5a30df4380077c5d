"""Another topology while the node runs: regions and nodes come and go without a restart.

Owns what may differ between the settings a node runs by and those it is to go on with, and that one
change comes after the other. What follows for a partition is the business of `partition`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sidecar.config import Config
from sidecar.core.topology import Node, Topology
from sidecar.errors import Refused, SidecarError
from sidecar.rules import custom_script, rules_of

log = logging.getLogger(__name__)

MAX_WAITING = 8
"""So many reloads are asked for at once; a further one is refused."""

RELOADED = ("regions", "replication_targets")
"""Under `replication`: what a reload takes up."""

Adapt = Callable[[Config], Awaitable[None]]


class Reading(NamedTuple):
    """read: gives the settings as they are now. hangup: set (SIGHUP) when the topology is to be
    reloaded and nobody waits for what comes of it.
    """

    read: Callable[[], Config]
    hangup: asyncio.Event


@dataclass(frozen=True, slots=True)
class Change:
    """Nodes that come, go, or stay with another place or endpoint; is_new: anything differs."""

    is_new: bool
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {
            "reloaded": self.is_new,
            "added": list(self.added),
            "removed": list(self.removed),
            "moved": list(self.moved),
        }


def change_between(before: Config, after: Config) -> Change:
    """What a reload would change. Raises Refused("needs_restart") where it cannot."""
    # The local region follows from the place of the node.
    _refuse_other_place(before, after)
    _refuse_other_settings(before, after)
    rules, others = (rules_of(one, custom_script(one)).fingerprint for one in (before, after))
    if rules != others:
        raise _needs_restart(
            f"the nodes and their regions are a part of the conflict rules here ({rules} would "
            f"become {others})"
        )
    old, new = _by_id(before.topology), _by_id(after.topology)
    return Change(
        before.topology != after.topology,
        tuple(sorted(new.keys() - old.keys())),
        tuple(sorted(old.keys() - new.keys())),
        tuple(sorted(node for node in new.keys() & old.keys() if new[node] != old[node])),
    )


def _refuse_other_settings(before: Config, after: Config) -> None:
    settings = []
    for one in (before, after):
        written = one.model_dump()
        for name in RELOADED:
            del written["replication"][name]
        settings.append(written)
    differing = list(_differing("", *settings))
    if differing:
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise _needs_restart(f"{differing[0]}{more} is another one in the file")


def _differing(place: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """The settings that are not the same, by their names; never by what they say."""
    for name in dict.fromkeys([*before, *after]):
        one, other = before.get(name), after.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differing(f"{place}{name}.", one, other)
        elif one != other:
            yield f"{place}{name}"


def _refuse_other_place(before: Config, after: Config) -> None:
    here, there = before.this_node, after.this_node
    for name in ("id", "region", "zone", "endpoint"):
        if getattr(here, name) != getattr(there, name):
            raise _needs_restart(f"the {name} of this node, {here.id}, is another one in the file")


def primary_moved() -> Refused:
    """The refusal of another `is_primary` that would move writes."""
    return _needs_restart(
        "replication.regions: is_primary is another region's, and no promotion says so; move the "
        "primary by `sidecar promote`, or by a restart of all nodes"
    )


def _needs_restart(what: str) -> Refused:
    return Refused(
        "needs_restart",
        f"{what}: that needs a restart; a reload takes up replication.regions and "
        "replication.replication_targets alone; nothing was changed",
        409,
    )


def _by_id(topology: Topology) -> dict[str, Node]:
    return {str(node.id): node for node in topology.nodes()}


def _tell_refused(failure: SidecarError) -> None:
    log.error("topology not reloaded, the present one stays", extra={"reason": failure.message})


class Reloads:
    """The reloads of one node, one after the other. `run` is to run as long as the node does.

    config: the settings that the node goes by now.
    """

    def __init__(self, config: Config, reading: Reading, adapt: Adapt) -> None:
        """config: the settings at the start. adapt: takes up those of another topology; it may
        refuse them before it has changed anything.
        """
        self.config, self._adapt = config, adapt
        self._read, self._hangup = reading
        self._asked: asyncio.Queue[asyncio.Future[Change]] = asyncio.Queue(MAX_WAITING)

    async def reload(self) -> Change:
        """Read the settings again and go on with their topology.

        Raises Refused where they are wrong or need a restart; then nothing has changed.
        """
        done: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
        try:
            self._asked.put_nowait(done)
        except asyncio.QueueFull:
            text = f"{MAX_WAITING} reloads wait already; nothing was changed"
            raise Refused("overloaded", text, 503) from None
        return await done

    async def run(self) -> None:
        """For ever; whoever asks may go away, what has begun is brought to its end."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._on_hangup())
            while True:
                done = await self._asked.get()
                try:
                    change = await self._take_up()
                except SidecarError as failure:
                    _tell_refused(failure)
                    if not done.cancelled():
                        done.set_exception(failure)
                else:
                    if not done.cancelled():
                        done.set_result(change)

    async def _on_hangup(self) -> None:
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            try:
                await self.reload()
            except SidecarError:
                continue  # logged where it was refused

    async def _take_up(self) -> Change:
        after = await asyncio.to_thread(self._read)
        change = change_between(self.config, after)
        if change.is_new:
            await self._adapt(after)
        if not change.is_new:
            log.info("topology reloaded: nothing has changed")
            return change
        self.config = after
        fields = {name: ", ".join(getattr(change, name)) for name in ("added", "removed", "moved")}
        log.info("topology reloaded", extra={name: text or "none" for name, text in fields.items()})
        return change
