"""A Redis that is not there: 503, when to try again, and recovery by itself."""

import asyncio
import tempfile
from pathlib import Path

from tests.api.conftest import Answer, Api, running_api, tuple_of
from tests.servers import start_valkey

BODY = {"relationships": [tuple_of("doc:1 viewer user:alice")]}
QUESTION = {
    "subject": {"type": "user", "id": "alice"},
    "action": {"name": "viewer"},
    "resource": {"type": "doc", "id": "1"},
}


async def every_call(api: Api) -> list[Answer]:
    return [
        await api.post("relationships/write", BODY),
        await api.post("relationships/delete", BODY),
        await api.post("relationships/delete", {"filter": {"relation": "viewer"}}),
        await api.post("relationships/list", {}),
        await api.post("evaluation", QUESTION),
        await api.post("watch", {"cursor": "start"}),
        await api.post("watch", {}),
        await api.send("GET", "tenants"),
    ]


async def test_every_call_answers_503_until_redis_is_back() -> None:
    with tempfile.TemporaryDirectory(prefix="sidecar-") as folder:
        valkey = start_valkey(Path(folder), args=("--appendonly", "yes"))
        try:
            async with running_api(valkey) as api:
                await api.write("doc:0 viewer user:alice")
                valkey.kill()
                while (await api.post("evaluation", QUESTION)).status != 503:
                    await asyncio.sleep(0.01)
                for answer in await every_call(api):
                    assert answer.status == 503, answer.body
                    assert answer.error == "store_unavailable"
                    assert int(answer.headers["Retry-After"]) >= 1
                (Path(folder) / "valkey.sock").unlink(missing_ok=True)
                valkey = start_valkey(Path(folder), args=("--appendonly", "yes"))
                while (await api.post("relationships/write", BODY)).status == 503:
                    await asyncio.sleep(0.02)
                assert await api.listed() == [
                    "doc:0 viewer user:alice",
                    "doc:1 viewer user:alice",
                ]
        finally:
            valkey.stop()
