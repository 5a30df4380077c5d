"""Faults end also when a node took longer for what one of them asked of it."""

from types import SimpleNamespace
from typing import Any

from tests.chaos.faults import Faults
from tests.chaos.schedule import Fault, Kind


class SlowNode:
    """A node whose process ends only some looks after it was asked to."""

    name = "node1"

    def __init__(self, looks: int) -> None:
        self._looks = looks
        self.begun = 0
        self.begin()

    def begin(self) -> None:
        self.begun += 1
        left = [self._looks]
        process = SimpleNamespace(is_asked=False, returncode=None)

        def poll() -> int | None:
            if process.is_asked:
                left[0] -= 1
            return 0 if left[0] < 0 else None

        process.poll = poll
        self.process = process

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def terminate(self) -> None:
        self.process.is_asked = True


def test_a_second_restart_may_come_before_the_first_has_ended() -> None:
    node = SlowNode(looks=8)
    world: Any = SimpleNamespace(nodes=[node], link=None)
    faults = Faults(world)
    schedule = [
        Fault(0.0, Kind.RESTART, "node1", None, 0.05),
        Fault(0.1, Kind.RESTART, "node1", None, 0.1),
    ]
    faults.play(schedule, seconds=0.3)
    assert node.is_running
    assert node.begun == 2
    assert faults.surprises == []
