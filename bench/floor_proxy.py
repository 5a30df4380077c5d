"""The floor of proxied reads: ten lines of aiohttp that pass a request on and its answer back.

The same listener, loop, parser and client as the product's; it drops what belongs to the link, and
knows nothing of calls, tokens, other nodes or failures. And the stand-in for the database behind
both: a bare handler that gives one answer.

    python -m bench.floor_proxy PORT URL     the proxy in front of the server at URL
    python -m bench.floor_proxy PORT         the server
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable

import aiohttp
import uvloop
from aiohttp import web
from yarl import URL

Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]

LINK = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "te", "upgrade"}
CONNECTIONS = 256

# As SpiceDB answers a check.
ANSWER = (
    b'{"checkedAt":{"token":"GhUKEzE3OTAwMDAwMDAwMDAwMDAwMDA="},'
    b'"permissionship":"PERMISSIONSHIP_HAS_PERMISSION","partialCaveatInfo":null,'
    b'"debugTrace":null,"optionalExpiresAt":null}'
)
HEADERS = {"Content-Type": "application/json", "Grpc-Metadata-Content-Type": "application/grpc"}


async def check(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=ANSWER, headers=HEADERS)


def proxy(session: aiohttp.ClientSession, url: str) -> Serve:
    async def passed_on(request: web.Request) -> web.Response:
        sent = [(n, v) for n, v in request.headers.items() if n.lower() not in LINK]
        async with session.request(
            request.method,
            URL(url + request.raw_path, encoded=True),
            data=await request.read(),
            headers=sent,
        ) as answer:
            back = [(n, v) for n, v in answer.headers.items() if n.lower() not in LINK]
            body = await answer.read()
            return web.Response(status=answer.status, body=body, headers=back)

    return passed_on


async def serve(port: int, handler: Serve) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await stop.wait()
    finally:
        await runner.cleanup()


async def main(port: int, url: str | None) -> None:
    if url is None:
        await serve(port, check)
        return
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        await serve(port, proxy(session, url))


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None))
