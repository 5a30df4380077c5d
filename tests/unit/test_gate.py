"""The gate: many side by side, or one alone."""

import asyncio

from sidecar.proxy.gate import Gate


class Visitor:
    """Passes a gate, and stays inside until it is let go."""

    def __init__(self, gate: Gate, *, alone: bool = False) -> None:
        self._pass = gate.alone if alone else gate.shared
        self.leave = asyncio.Event()
        self.is_inside = False
        self.task = asyncio.create_task(self._visit())

    async def _visit(self) -> None:
        async with self._pass():
            self.is_inside = True
            await self.leave.wait()
        self.is_inside = False

    async def go(self) -> None:
        self.leave.set()
        await self.task


async def turn_to_others() -> None:
    """Whoever can go on has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_many_are_inside_together() -> None:
    gate = Gate()
    visitors = [Visitor(gate) for _ in range(3)]
    await turn_to_others()
    assert all(one.is_inside for one in visitors)
    for one in visitors:
        await one.go()


async def test_one_alone_waits_for_those_inside_and_goes_before_those_who_come_later() -> None:
    gate = Gate()
    first, alone, later = Visitor(gate), Visitor(gate, alone=True), Visitor(gate)
    await turn_to_others()
    assert (first.is_inside, alone.is_inside, later.is_inside) == (True, False, False)
    await first.go()
    await turn_to_others()
    assert (alone.is_inside, later.is_inside) == (True, False)
    await alone.go()
    await turn_to_others()
    assert later.is_inside
    await later.go()


async def test_two_that_pass_alone_are_never_inside_together() -> None:
    gate = Gate()
    first, second = Visitor(gate, alone=True), Visitor(gate, alone=True)
    await turn_to_others()
    assert (first.is_inside, second.is_inside) == (True, False)
    await first.go()
    await turn_to_others()
    assert second.is_inside
    await second.go()


async def test_who_gives_up_waiting_keeps_nobody_out() -> None:
    for give_up in (_outside_alone, _outside_shared, _inside):
        gate = Gate()
        await give_up(gate)
        alone = Visitor(gate, alone=True)
        await turn_to_others()
        assert alone.is_inside, give_up
        await alone.go()


async def _cancel(one: Visitor) -> None:
    one.task.cancel()
    await asyncio.gather(one.task, return_exceptions=True)


async def _outside_alone(gate: Gate) -> None:
    first, waiting = Visitor(gate), Visitor(gate, alone=True)
    await turn_to_others()
    await _cancel(waiting)
    await first.go()


async def _outside_shared(gate: Gate) -> None:
    first, waiting = Visitor(gate, alone=True), Visitor(gate)
    await turn_to_others()
    await _cancel(waiting)
    await first.go()


async def _inside(gate: Gate) -> None:
    visitor = Visitor(gate)
    await turn_to_others()
    await _cancel(visitor)
