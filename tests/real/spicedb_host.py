"""SpiceDB's engine behind HTTP, as SpiceDB's own gateway serves it: a process for tests.

    python -m tests.real.spicedb_host --port N [--token SECRET]

The engine is SpiceDB itself, loaded from a shared library, with its memory datastore: what was
written ends with the process. Calls that the library does not offer (bulk import and export,
reflection, everything experimental) are answered with its own 501. `/-/…`: see `faults`.
"""

import argparse
import asyncio
import ctypes
import hmac
import signal
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from aiohttp import web
from spicedb_embedded import EmbeddedSpiceDB, SpiceDBError, ffi

from tests.real.faults import Faults
from tests.real.gateway import GatewayError, Method, encode, methods, parse, to_json

HOST = "127.0.0.1"
MAX_BODY_BYTES = 4 * 1024 * 1024  # what SpiceDB's gRPC listener takes; more is refused
MAX_CALLS_AT_ONCE = 32  # further unary calls wait for a thread
JSON = "application/json"
HEADERS = {"Grpc-Metadata-Content-Type": "application/grpc"}


class Engine:
    """One SpiceDB: unary calls in threads through the library, streams over its gRPC proxy."""

    def __init__(self) -> None:
        # The package frees an error's text by its address, which ctypes refuses for `c_char_p`.
        ffi._get_lib().spicedb_free.argtypes = [ctypes.c_void_p]
        self._engine = EmbeddedSpiceDB.start()
        self._threads = ThreadPoolExecutor(MAX_CALLS_AT_ONCE)
        address = self._engine.streaming_address()
        is_path = self._engine.streaming_transport() == "unix"
        self._channel = grpc.aio.insecure_channel(f"unix://{address}" if is_path else address)

    async def ask(self, method: Method, message: Any) -> Any:
        function = getattr(ffi, method.function, None)
        if function is None:
            raise unimplemented(method)
        loop = asyncio.get_running_loop()
        handle, packed = self._engine._handle, message.SerializeToString()
        try:
            raw = await loop.run_in_executor(self._threads, function, handle, packed)
        except SpiceDBError as error:
            raise GatewayError.from_text(str(error)) from error
        return method.answered.FromString(raw)

    def stream(self, method: Method, message: Any) -> Any:
        """The call, to iterate over and to cancel."""
        call = self._channel.unary_stream(
            method.grpc_name,
            request_serializer=method.asked.SerializeToString,
            response_deserializer=method.answered.FromString,
        )
        return call(message)

    async def close(self) -> None:
        await self._channel.close()
        self._threads.shutdown()
        self._engine.close()


def unimplemented(method: Method) -> GatewayError:
    name = method.grpc_name.rpartition("/")[2]
    return GatewayError(grpc.StatusCode.UNIMPLEMENTED, f"method {name} not implemented")


def unary(engine: Engine, method: Method) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        message = parse(method, await request.read())
        found = await engine.ask(method, message)
        return web.Response(body=encode(to_json(found)), content_type=JSON, headers=HEADERS)

    return answer


def streamed(
    engine: Engine, method: Method
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Lines of `{"result": …}`; the head leaves with the first of them, as in the gateway."""

    async def answer(request: web.Request) -> web.StreamResponse:
        call = engine.stream(method, parse(method, await request.read()))
        response = web.StreamResponse(headers={"Content-Type": JSON, **HEADERS})
        response.enable_chunked_encoding()
        try:
            async for message in call:
                if not response.prepared:
                    await response.prepare(request)
                await response.write(encode({"result": to_json(message)}) + b"\n")
        except grpc.aio.AioRpcError as error:
            refused = GatewayError.from_call(error)
            if not response.prepared:
                response.set_status(refused.status)
                await response.prepare(request)
            await response.write(encode({"error": refused.body}) + b"\n")
        finally:
            call.cancel()
        if not response.prepared:
            await response.prepare(request)
        return response

    return answer


def refusing(token: str | None) -> Any:
    """Errors as the gateway prints them, and the preshared key where one is asked for."""
    expected = f"Bearer {token}".encode()

    def require_key(request: web.Request) -> None:
        if token is None or request.path == "/healthz" or request.path.startswith("/-/"):
            return
        shown = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(shown, expected):
            wrong = "invalid preshared key" if shown else "missing preshared key"
            raise GatewayError(grpc.StatusCode.UNAUTHENTICATED, wrong)

    @web.middleware
    async def refuse(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            require_key(request)
            return await handler(request)
        except GatewayError as refused:
            error = refused
        except web.HTTPNotFound:
            error = GatewayError(grpc.StatusCode.NOT_FOUND, "Not Found")
        except web.HTTPMethodNotAllowed:
            error = GatewayError(grpc.StatusCode.UNIMPLEMENTED, "Method Not Allowed")
        except web.HTTPRequestEntityTooLarge as large:
            error = GatewayError(grpc.StatusCode.RESOURCE_EXHAUSTED, large.text or "too large")
        return web.Response(body=encode(error.body), status=error.status, content_type=JSON)

    return refuse


async def healthy(_: web.Request) -> web.Response:
    return web.Response(body=encode({"status": "SERVING"}), content_type=JSON)


def spicedb_app(engine: Engine, token: str | None = None) -> web.Application:
    faults = Faults()
    app = web.Application(
        client_max_size=MAX_BODY_BYTES, middlewares=[faults.middleware, refusing(token)]
    )
    faults.add_routes(app)
    app.router.add_get("/healthz", healthy)
    for method in methods():
        kind = streamed if method.is_answered_as_stream else unary
        app.router.add_post(method.path, kind(engine, method))
    return app


async def serve(port: int, token: str | None) -> None:
    """Serve until SIGTERM or Ctrl-C; bodies are read as they came, compressed ones too."""
    ending = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, ending.set)
    engine = Engine()
    app = spicedb_app(engine, token)
    runner = web.AppRunner(
        app, auto_decompress=False, handler_cancellation=True, shutdown_timeout=0.1
    )
    try:
        await runner.setup()
        await web.TCPSite(runner, HOST, port).start()
        print(f"SpiceDB listens on http://{HOST}:{port}", flush=True)
        await ending.wait()
    finally:
        await runner.cleanup()
        await engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="SpiceDB's engine behind HTTP, for tests")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--token", help="the preshared key that callers must show")
    asked = parser.parse_args()
    asyncio.run(serve(asked.port, asked.token))


if __name__ == "__main__":
    main()
