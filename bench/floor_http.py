"""The floor of single writes: a bare aiohttp handler that reads the body and answers.

The same listener, loop and parser as the product's, and an answer as long as the product's.
"""

import asyncio
import signal
import sys

import uvloop
from aiohttp import web

from bench.nodes import WRITE_PATH

# As `relationships/write` answers, with the token of one region.
ANSWER = (
    b'{"revision":"1790000000000000","relationships_written":1,"token":"'
    b"1bm9kZTF8MTc5MDAwMDAwMDAwMDAwMHxub2RlMS5hYmNkZWZnaDAxMjM6MTc5MDAwMDAwMDAwMDAwMA"
    b'"}'
)


async def answer(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=ANSWER, headers={"Content-Type": "application/json"})


async def serve(port: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    app = web.Application()
    app.router.add_post(WRITE_PATH, answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await stop.wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
