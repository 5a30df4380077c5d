"""Many requests at once, as a busy application sends them."""

import asyncio
import json
from collections.abc import Iterable, Mapping

import aiohttp

from tests.world import UPDATE, Node

CONNECTIONS = 32


def pour(node: Node, bodies: Iterable[Mapping[str, object]], path: str = UPDATE) -> int:
    """Send every body to a node, each once, over a few connections. How many there were.

    Raises AssertionError for any answer but 200.
    """
    return asyncio.run(_pour(f"{node.url}{path}", iter(bodies)))


async def _pour(url: str, bodies: Iterable[Mapping[str, object]]) -> int:
    sent = 0

    async def send(client: aiohttp.ClientSession) -> None:
        nonlocal sent
        for body in bodies:
            sent += 1
            async with client.post(url, data=json.dumps(body)) as answer:
                assert answer.status == 200, f"{answer.status} {await answer.text()}"

    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as client, asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(send(client))
    return sent


def update(operation: str, *numbers: int) -> dict[str, object]:
    """A body: this operation on these documents, one transaction."""
    return {
        "updates": [
            {
                "operation": operation,
                "relationship": {
                    "resource": f"document:{number // 10}",
                    "relation": "viewer",
                    "subject": f"user:{number % 10}",
                },
            }
            for number in numbers
        ]
    }
