"""A node ends also when a library loses a cancellation."""

import asyncio

from sidecar.endings import end


async def test_a_task_that_loses_a_cancellation_ends_all_the_same() -> None:
    lost: list[bool] = []

    async def loses_one() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if lost:
                    raise
                lost.append(True)

    tasks = [asyncio.create_task(loses_one()), asyncio.create_task(asyncio.Event().wait())]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await end(tasks, again_s=0.01)
    assert lost
    assert all(task.cancelled() for task in tasks)


async def test_a_failure_is_left_to_the_holder() -> None:
    async def fails() -> None:
        raise ValueError("broken")

    task = asyncio.create_task(fails())
    await asyncio.sleep(0)
    await end([task])
    assert isinstance(task.exception(), ValueError)
