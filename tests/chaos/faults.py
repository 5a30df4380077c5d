"""Faults done to a world: each has a beginning and an end, at its moment of the schedule."""

import contextlib
import heapq
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.history import Restored
from tests.chaos.schedule import Fault, Kind, links_of
from tests.waiting import wait_until
from tests.world import Node, Pace, World

SLOW = Pace(there_s=0.15, back_s=0.15, bytes_per_s=200_000)
APPEND_ONLY_FOLDER = "appendonlydir"
MANIFEST = "appendonly.aof.manifest"
LATE_LIMIT_S = 60.0

Act = Callable[[], bool]
"""Returns whether it is done; if not, it is tried again a little later."""


@dataclass
class Faults:
    """Plays a schedule. Use it on the main thread: a node that it starts ends with its thread.

    may_forget: whether a killed node may lose its last writes. surprises: what happened that no
    fault explains. skipped: faults that met a node not up yet.
    """

    world: World
    may_forget: bool = False
    restored: list[Restored] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    skipped: list[Fault] = field(default_factory=list)
    _is_down: set[str] = field(default_factory=set)
    _copies: dict[str, Path] = field(default_factory=dict)
    _ending: dict[Fault, subprocess.Popen[bytes]] = field(default_factory=dict)

    def play(self, schedule: Sequence[Fault], seconds: float) -> None:
        """Let all of it happen, and return when the time is over and each fault has ended."""
        began = time.monotonic()
        acts: list[tuple[float, int, Act]] = []
        for number, fault in enumerate(schedule):
            acts.append((fault.at_s, 2 * number, lambda f=fault: self._begin(f)))  # type: ignore[misc]
            acts.append((fault.at_s + fault.for_s, 2 * number + 1, lambda f=fault: self._end(f)))  # type: ignore[misc]
        heapq.heapify(acts)
        while acts:
            at_s, number, act = heapq.heappop(acts)
            self._wait_for(began + at_s)
            if not act():
                heapq.heappush(acts, (time.monotonic() - began + 0.1, number, act))
        self._wait_for(began + seconds)

    def end(self) -> None:
        """Heal every link, start every node, and return when all of them serve."""
        self.world.heal()
        for node in self.world.nodes:
            self._start(node)
        for node in self.world.nodes:
            node.wait_until_serving()

    def _wait_for(self, moment: float) -> None:
        def has_come() -> bool:
            self._look_for_surprises()
            return time.monotonic() >= moment

        ahead_s = max(moment - time.monotonic(), 0.0)
        wait_until(has_come, "the next moment of the schedule", ahead_s + LATE_LIMIT_S)

    def _look_for_surprises(self) -> None:
        for node in self.world.nodes:
            if not node.is_running and node.name not in self._is_down:
                assert node.process is not None
                code = node.process.returncode
                self.surprises.append(f"{node.name} has ended by itself with code {code}")
                self._start(node)

    def _start(self, node: Node) -> None:
        # An orderly end may have taken so long that the next fault met it.
        if not node.is_running:
            node.begin()
        self._is_down.discard(node.name)

    def _node(self, name: str) -> Node:
        return next(node for node in self.world.nodes if node.name == name)

    def _names(self) -> list[str]:
        return [node.name for node in self.world.nodes]

    def _begin(self, fault: Fault) -> bool:
        node = self._node(fault.node)
        links = [self.world.link(*ends) for ends in links_of(fault, self._names())]
        match fault.kind:
            case Kind.CUT | Kind.ISOLATE:
                for link in links:
                    link.cut()
            case Kind.SLOW:
                for link in links:
                    link.slow(SLOW)
            case Kind.FREEZE:
                for link in links:
                    link.freeze()
            case Kind.KILL:
                self._is_down.add(node.name)
                node.kill()
                self._note_killed(node)
            case Kind.RESTART:
                self._is_down.add(node.name)
                assert node.process is not None
                self._ending[fault] = node.process
                node.terminate()
            case _ if not node.valkey_pid or not node.is_serving:
                self.skipped.append(fault)
            case Kind.KILL_VALKEY:
                node.kill_valkey()
                self._note_killed(node)
            case Kind.OLD_COPY:
                self._copies[node.name] = copy_of_data(node)
        return True

    def _end(self, fault: Fault) -> bool:
        node = self._node(fault.node)
        for ends in links_of(fault, self._names()):
            self.world.link(*ends).heal()
        match fault.kind:
            case Kind.RESTART if self._ending[fault].poll() is None:
                return False
            case Kind.KILL | Kind.RESTART:
                self._start(node)
            case Kind.OLD_COPY if node.name in self._copies:
                self._is_down.add(node.name)
                node.kill()
                put_back(node, self._copies.pop(node.name))
                self._note_restored(node)
                self._start(node)
        return True

    def _note_killed(self, node: Node) -> None:
        if self.may_forget:
            self._note_restored(node)

    def _note_restored(self, node: Node) -> None:
        self.restored.append(Restored(node.name, time.time_ns() // 1000))


def copy_of_data(node: Node) -> Path:
    """Copy a running node's append-only files; returns the folder of the copy.

    The file that is written at the moment is copied up to some command, like a backup does it.
    """
    source, copy = node.folder / APPEND_ONLY_FOLDER, node.folder / "copy"

    def is_whole() -> bool:
        shutil.rmtree(copy, ignore_errors=True)
        manifest = (source / MANIFEST).read_bytes()
        # A rewrite replaces the files while they are copied: then they are copied anew.
        with contextlib.suppress(shutil.Error, FileNotFoundError):
            shutil.copytree(source, copy)
            return (copy / MANIFEST).read_bytes() == manifest == (source / MANIFEST).read_bytes()
        return False

    wait_until(is_whole, f"the data of {node.name} have been copied")
    return copy


def put_back(node: Node, copy: Path) -> None:
    """Let a node that has ended begin with this copy of its data."""
    assert not node.is_running
    shutil.rmtree(node.folder / APPEND_ONLY_FOLDER)
    copy.rename(node.folder / APPEND_ONLY_FOLDER)
