"""A stand-in for OpenFGA over HTTP: a process for tests, because no server can be had with them.

    python -m tests.real.openfga_standin --port N

Paths, JSON, errors and headers are those of OpenFGA's public API as far as `openfga_rules` goes;
other calls are answered 404 `undefined_endpoint`. What was written ends with the process. `/-/…`:
see `faults`.
"""

import argparse
import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from tests.real.faults import Faults
from tests.real.openfga_rules import ID, OpenFgaError, Store, invalid, new_store

HOST = "127.0.0.1"
MAX_BODY_BYTES = 512 * 1024  # OpenFGA's own limit for a request
MODEL_HEADER, STORE_HEADER = "Openfga-Authorization-Model-Id", "Openfga-Store-Id"


class Server:
    """The stores, and what each path does with them."""

    def __init__(self) -> None:
        self.stores: dict[str, Store] = {}

    def add_routes(self, app: web.Application) -> None:
        one = "/stores/{store}"
        app.add_routes(
            [
                web.get("/healthz", self.healthy),
                web.post("/stores", self.create_store),
                web.get("/stores", self.list_stores),
                web.get(one, self.get_store),
                web.delete(one, self.delete_store),
                web.post(f"{one}/authorization-models", self.write_model),
                web.get(f"{one}/authorization-models", self.list_models),
                web.get(f"{one}/authorization-models/{{model}}", self.get_model),
                web.post(f"{one}/write", self.write),
                web.post(f"{one}/read", self.read),
                web.get(f"{one}/changes", self.changes),
                web.post(f"{one}/check", self.check),
                web.post(f"{one}/list-objects", self.list_objects),
            ]
        )

    async def healthy(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "SERVING"})

    async def create_store(self, request: web.Request) -> web.Response:
        store = new_store(str((await body_of(request)).get("name", "")))
        self.stores[store.id] = store
        return web.json_response(store.shown(), status=201)

    async def list_stores(self, _: web.Request) -> web.Response:
        shown = [store.shown() for store in self.stores.values()]
        return web.json_response({"stores": shown, "continuation_token": ""})

    async def get_store(self, request: web.Request) -> web.Response:
        return web.json_response(self.known(request).shown())

    async def delete_store(self, request: web.Request) -> web.Response:
        self.stores.pop(self.named(request).id, None)
        return web.Response(status=204)

    async def write_model(self, request: web.Request) -> web.Response:
        added = self.known(request).add_model(await body_of(request))
        return web.json_response({"authorization_model_id": added}, status=201)

    async def list_models(self, request: web.Request) -> web.Response:
        models = [{"id": one.id, **one.text} for one in self.named(request).models.values()]
        newest_first = models[::-1]
        return web.json_response({"authorization_models": newest_first, "continuation_token": ""})

    async def get_model(self, request: web.Request) -> web.Response:
        model = self.named(request).model(request.match_info["model"])
        return web.json_response({"authorization_model": {"id": model.id, **model.text}})

    async def write(self, request: web.Request) -> web.Response:
        store = self.named(request)
        return answered(store, {}, store.write(await body_of(request)))

    async def read(self, request: web.Request) -> web.Response:
        store = self.named(request)
        return answered(store, store.read(await body_of(request)))

    async def changes(self, request: web.Request) -> web.Response:
        store = self.named(request)
        return answered(store, store.read_changes(request.query))

    async def check(self, request: web.Request) -> web.Response:
        store, asked = self.named(request), await body_of(request)
        model = store.model(str(asked.get("authorization_model_id") or ""))
        return answered(store, {"allowed": store.check(asked), "resolution": ""}, model.id)

    async def list_objects(self, request: web.Request) -> web.Response:
        store, asked = self.named(request), await body_of(request)
        model = store.model(str(asked.get("authorization_model_id") or ""))
        return answered(store, {"objects": store.list_objects(asked)}, model.id)

    def named(self, request: web.Request) -> Store:
        """The store of a path. One that does not exist is as empty as a new one, as in OpenFGA."""
        name = request.match_info["store"]
        if not ID.fullmatch(name):
            raise invalid(f'invalid StoreId: value does not match regex pattern "^{ID.pattern}$"')
        return self.stores.get(name) or Store(name, "", "")

    def known(self, request: web.Request) -> Store:
        store = self.named(request)
        if store.id not in self.stores:
            raise OpenFgaError("store_id_not_found", "Store ID not found", status=404)
        return store


def answered(store: Store, body: object, model: str = "") -> web.Response:
    headers = {STORE_HEADER: store.id} | ({MODEL_HEADER: model} if model else {})
    return web.json_response(body, headers=headers)


async def body_of(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read() or b"{}")
    except ValueError as error:
        raise invalid(f"malformed JSON: {error}") from error
    if not isinstance(body, dict):
        raise invalid("malformed JSON: not an object")
    return body


@web.middleware
async def refuse(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Errors as OpenFGA prints them."""
    try:
        return await handler(request)
    except OpenFgaError as refused:
        error = refused
    except web.HTTPNotFound:
        error = OpenFgaError("undefined_endpoint", "Not Found", status=404)
    except web.HTTPMethodNotAllowed:
        error = OpenFgaError("unimplemented", "Method Not Allowed", status=404)
    except web.HTTPRequestEntityTooLarge:
        error = OpenFgaError("validation_error", "http: request body too large")
    body = {"code": error.code, "message": error.message}
    return web.json_response(body, status=error.status)


def openfga_app() -> web.Application:
    faults = Faults()
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[faults.middleware, refuse])
    faults.add_routes(app)
    Server().add_routes(app)
    return app


async def serve(port: int) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    ending = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, ending.set)
    runner = web.AppRunner(openfga_app(), auto_decompress=False, shutdown_timeout=0.1)
    try:
        await runner.setup()
        await web.TCPSite(runner, HOST, port).start()
        print(f"The stand-in for OpenFGA listens on http://{HOST}:{port}", flush=True)
        await ending.wait()
    finally:
        await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description="A stand-in for OpenFGA, for tests")
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
