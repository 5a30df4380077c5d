"""Import and export against a sidecar that misbehaves on purpose: repeats, refusals, resuming."""

import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from sidecar.commands.bulk import (
    Exported,
    Imported,
    Sidecar,
    Source,
    Watching,
    export_file,
    import_file,
)
from sidecar.errors import Refused, Unavailable
from tests.servers import free_ports

Answer = Callable[[web.Request, dict[str, Any]], web.Response]


@dataclass
class Scripted:
    """A stand-in for a sidecar: remembers what it was sent, answers as the test says."""

    answers: list[Answer] = field(default_factory=list)
    received: list[tuple[str, str, str, dict[str, Any]]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        if request.path == "/health":
            return web.json_response({})
        body = await request.json() if request.can_read_body else {}
        sent = (request.path, request.headers.get("X-Tenant", ""))
        self.received.append((*sent, request.headers.get("Idempotency-Key", ""), body))
        if self.answers:
            return self.answers.pop(0)(request, body)
        return web.json_response({"revision": "1"})

    @property
    def keys(self) -> list[str]:
        return [key for _, _, key, _ in self.received]


def says(status: int, code: str, message: str = "as the test says", **headers: str) -> Answer:
    return lambda request, body: web.json_response(
        {"error": code, "message": message}, status=status, headers=headers
    )


def drops(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Take the request and end the connection without an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@contextlib.asynccontextmanager
async def serving(scripted: Scripted) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", scripted.answer)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def run_import(
    url: str,
    file: Path,
    *,
    wait_s: float = 5,
    from_line: int = 1,
    warnings: list[str] | None = None,
) -> Imported:
    watching = Watching(warn=(warnings if warnings is not None else []).append)
    with Source(str(file)) as source:
        async with Sidecar(url, wait_s=wait_s, warn=watching.warn) as sidecar:
            return await import_file(sidecar, source, "default", from_line, watching)


def lines_file(folder: Path, *lines: Any, name: str = "lines.ndjson") -> Path:
    file = folder / name
    text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    file.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return file


def insert(number: int) -> dict[str, Any]:
    return {"insert": [[f"doc:{number}", "viewer", "user:a"]]}


async def test_a_request_without_an_answer_is_repeated_with_its_key(tmp_path: Path) -> None:
    scripted = Scripted(
        [
            says(503, "outcome_unknown"),
            drops,
            says(503, "store_unavailable", **{"Retry-After": "1"}),
        ]
    )
    warnings: list[str] = []
    async with serving(scripted) as url:
        done = await run_import(url, lines_file(tmp_path, insert(1), insert(2)), warnings=warnings)
    assert (done.transactions, done.next_line) == (2, 3)
    assert len(scripted.received) == 5
    assert len(set(scripted.keys[:4])) == 1
    assert scripted.keys[4] != scripted.keys[0]
    assert len(warnings) == 1
    assert "outcome_unknown" in warnings[0]


async def test_another_import_of_the_file_is_no_repeat(tmp_path: Path) -> None:
    scripted = Scripted()
    file = lines_file(tmp_path, insert(1), name="lines.gz")
    async with serving(scripted) as url:
        await run_import(url, file)
        await run_import(url, file)
    first, second = scripted.keys
    assert first
    assert first != second


async def test_patience_ends_with_the_line_to_resume_from(tmp_path: Path) -> None:
    scripted = Scripted([says(200, ""), *[says(503, "store_unavailable")] * 50])
    file = lines_file(tmp_path, insert(1), insert(2))
    async with serving(scripted) as url:
        with Source(str(file)) as source:
            async with Sidecar(url, wait_s=0.5, warn=lambda text: None) as sidecar:
                with pytest.raises(Unavailable, match=r"lines\.ndjson:2: .*store_unavailable"):
                    await import_file(sidecar, source, "default", 1, Watching())
            assert source.next_line == 2
        scripted.answers.clear()
        done = await run_import(url, file, from_line=2)
    assert done.transactions == 1


async def test_a_refusal_names_the_line_of_the_relationship(tmp_path: Path) -> None:
    scripted = Scripted([says(400, "invalid_relationship", "relationships[2].subject: no colon")])
    lines = [{"resource": f"doc:{n}", "relation": "viewer", "subject": "user:a"} for n in range(5)]
    async with serving(scripted) as url:
        with pytest.raises(Refused, match=r"lines\.ndjson:3: .*no colon"):
            await run_import(url, lines_file(tmp_path, *lines))
        scripted.answers.append(says(413, "too_large", "too much"))
        with pytest.raises(Refused, match=r"lines\.ndjson:1-5: .*too much"):
            await run_import(url, lines_file(tmp_path, *lines))


async def test_a_cut_transaction_is_said_and_counts_once(tmp_path: Path) -> None:
    scripted = Scripted()
    warnings: list[str] = []
    line = {"insert": [[f"doc:{n}", "viewer", "user:a"] for n in range(5_001)]}
    async with serving(scripted) as url:
        done = await run_import(url, lines_file(tmp_path, line), warnings=warnings)
    assert (done.transactions, done.inserts, done.requests) == (1, 5_001, 2)
    assert len(set(scripted.keys)) == 2
    assert warnings == [
        f"{tmp_path}/lines.ndjson:1: above the limit of one request, sent as 2 transactions"
    ]


async def test_a_damaged_gzip_file_is_named_after_what_was_whole(tmp_path: Path) -> None:
    file = lines_file(tmp_path, *(insert(n) for n in range(2_000)), name="lines.gz")
    file.write_bytes(file.read_bytes()[:-200])
    scripted = Scripted()
    async with serving(scripted) as url:
        with pytest.raises(Refused, match="damaged or cut off"):
            await run_import(url, file)
    assert scripted.received


async def test_nobody_there_is_said_at_once(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with pytest.raises(Unavailable, match=f"no sidecar answers at http://127.0.0.1:{port}"):
        await run_import(f"http://127.0.0.1:{port}", lines_file(tmp_path, insert(1)), wait_s=60)


def listing(pages: list[list[dict[str, Any]]]) -> list[Answer]:
    def page(number: int) -> Answer:
        cursor = None if number == len(pages) - 1 else f"cursor{number}"
        return lambda request, body: web.json_response(
            {"relationships": pages[number], "cursor": cursor}
        )

    return [page(number) for number in range(len(pages))]


async def run_export(url: str, target: Path, tenant: str | None = "default") -> Exported:
    async with Sidecar(url, wait_s=5, warn=lambda text: None) as sidecar:
        return await export_file(sidecar, str(target), tenant, Watching())


def viewer(resource: str, **payload: Any) -> dict[str, Any]:
    return {"resource": resource, "relation": "viewer", "subject": "user:a", **payload}


async def test_an_export_is_sorted_and_holds_each_relationship_once(tmp_path: Path) -> None:
    pages = [[viewer("doc:b"), viewer("doc:a")], [], [viewer("doc:B"), viewer("doc:a")]]
    scripted = Scripted(listing(pages))
    async with serving(scripted) as url:
        done = await run_export(url, tmp_path / "out.ndjson")
    assert done.relationships == 3
    lines = (tmp_path / "out.ndjson").read_text().splitlines()
    assert [json.loads(line)["resource"] for line in lines] == ["doc:B", "doc:a", "doc:b"]
    assert [body.get("cursor") for *_, body in scripted.received] == [None, "cursor0", "cursor1"]


async def test_all_tenants_are_exported_in_order_and_named(tmp_path: Path) -> None:
    scripted = Scripted(
        [
            lambda request, body: web.json_response({"tenants": ["zeta", "default"]}),
            *listing([[viewer("doc:1")]]),
            *listing([[viewer("doc:2", condition={"a": 1})]]),
        ]
    )
    async with serving(scripted) as url:
        done = await run_export(url, tmp_path / "out.ndjson.gz", tenant=None)
    assert (done.tenants, done.relationships) == (2, 2)
    assert [tenant for _, tenant, *_ in scripted.received] == ["", "default", "zeta"]
    text = gzip.decompress((tmp_path / "out.ndjson.gz").read_bytes()).decode()
    assert [json.loads(line).get("tenant") for line in text.splitlines()] == [None, "zeta"]


async def test_an_export_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out.ndjson"
    target.write_text("as it was")
    scripted = Scripted([*listing([[viewer("doc:1")], []])[:1], says(400, "invalid_cursor")])
    async with serving(scripted) as url:
        with pytest.raises(Refused, match="invalid_cursor"):
            await run_export(url, target)
    assert target.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [target]
