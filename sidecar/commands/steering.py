"""`sidecar pause`, `resume`, `resync`, `topology reload`: what is asked of an admin listener."""

import json
from collections.abc import Iterator
from typing import Any

from sidecar.commands.asking import admin_of

JsonObject = dict[str, Any]

RELOAD_LIMIT_S = 60.0
"""A reload waits for what is being merged, and for checks that another one has begun."""


async def pause(url: str, target: str | None) -> JsonObject:
    """Stop the replication to a target, to all when None. Raises Refused, Unavailable."""
    return await _post(url, "/pause", target)


async def resume(url: str, target: str | None) -> JsonObject:
    """Go on with it. Raises Refused, Unavailable."""
    return await _post(url, "/resume", target)


async def resync(url: str, target: str) -> JsonObject:
    """Have a target given a state transfer. Raises Refused, Unavailable."""
    return await _post(url, "/resync", target)


async def reload_topology(url: str) -> JsonObject:
    """Have the node take up the regions of its configuration. Raises Refused, Unavailable."""
    async with admin_of(url, "topology to reload") as client:
        return await client.post("/topology/reload", "default", b"{}", limit_s=RELOAD_LIMIT_S)


async def _post(url: str, path: str, target: str | None) -> JsonObject:
    body = {} if target is None else {"target": target}
    async with admin_of(url, "replication to steer") as client:
        return await client.post(path, "default", json.dumps(body).encode())


# --- what a person reads --------------------------------------------------------------------------


def paused_in_words(done: JsonObject) -> str:
    """What is paused after a pause or a resume."""
    if not done["paused"]:
        return f"{done['node']} ships to all its targets"
    return (
        f"{done['node']} does not ship to {', '.join(done['paused'])}, until resumed or restarted"
    )


def reloaded_in_words(done: JsonObject) -> Iterator[str]:
    """What a reload came to, a line each."""
    if not done["reloaded"]:
        yield f"{done['node']}: nothing has changed"
        return
    yield f"{done['node']} has taken up the topology of its configuration"
    for what in ("added", "removed", "moved"):
        if done[what]:
            yield f"{what}: {', '.join(done[what])}"
