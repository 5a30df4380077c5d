"""The application: create, read, write, share and revoke, each behind a check.

| | who may |
|---|---|
| POST /documents | everybody; the body is the text, the answer the id |
| GET /documents/{id} | its owner and viewers |
| PUT /documents/{id} | its owner |
| PUT /documents/{id}/viewers/{user} | its owner |
| DELETE /documents/{id}/viewers/{user} | its owner; `?everywhere=yes` waits for all regions |
| DELETE /documents/{id}/viewers | its owner, also after permissions were lost |
"""

import contextlib
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler

from examples.documents.permissions import (
    Denied,
    NotChanged,
    NotChecked,
    Permissions,
    PermissionsLost,
)
from examples.documents.shelf import Document, Shelf

MAX_TEXT_BYTES = 64 * 1024  # more is answered with 413
READERS, OWNER = ("viewer", "owner"), ("owner",)
USER = re.compile(r"[a-z0-9-]{1,64}")
SHELF = web.AppKey("shelf", Shelf)
PERMISSIONS = web.AppKey("permissions", Permissions)
routes = web.RouteTableDef()


@routes.post("/documents")
async def create(request: web.Request) -> web.Response:
    user, text = user_of(request), await request.text()
    # Chosen by chance, never by the user: what an interrupted request leaves belongs to no other.
    name = secrets.token_hex(8)
    change = await request.app[PERMISSIONS].grant(user, "owner", name)
    request.app[SHELF].put(name, text, change.token)
    return web.Response(text=f"{name}\n", status=201)


@routes.get("/documents/{id}")
async def read(request: web.Request) -> web.Response:
    name, document = document_of(request)
    user = user_of(request)
    await request.app[PERMISSIONS].check(user, READERS, name, document.tokens)
    return web.Response(text=f"{document.text}\n")


@routes.put("/documents/{id}")
async def write(request: web.Request) -> web.Response:
    name, document = document_of(request)
    user, text = user_of(request), await request.text()
    await request.app[PERMISSIONS].check(user, OWNER, name, document.tokens)
    request.app[SHELF].rewrite(name, text)
    return web.Response(status=204)


@routes.put("/documents/{id}/viewers/{user}")
async def share(request: web.Request) -> web.Response:
    name, document = document_of(request)
    permissions, viewer = request.app[PERMISSIONS], known_user(request.match_info["user"])
    nodes = await permissions.check(user_of(request), OWNER, name, document.tokens)
    change = await permissions.grant(viewer, "viewer", name)
    request.app[SHELF].note(name, change.token, change.covered(document.tokens, nodes))
    return web.Response(status=204)


@routes.delete("/documents/{id}/viewers/{user}")
async def revoke(request: web.Request) -> web.Response:
    name, document = document_of(request)
    permissions, viewer = request.app[PERMISSIONS], known_user(request.match_info["user"])
    everywhere = request.query.get("everywhere") == "yes"
    nodes = await permissions.check(user_of(request), OWNER, name, document.tokens)
    change = await permissions.revoke(viewer, "viewer", name, everywhere=everywhere)
    # Before the answer: once the owner hears of it, no region lets the viewer in.
    request.app[SHELF].note(name, change.token, change.covered(document.tokens, nodes))
    # 202: revoked, but not every region has acknowledged it in time.
    return web.Response(status=202 if everywhere and not change.is_everywhere else 204)


@routes.delete("/documents/{id}/viewers")
async def start_afresh(request: web.Request) -> web.Response:
    """Take everybody off. It is the way out after a loss: then the owner shares anew."""
    name, document = document_of(request)
    permissions, user = request.app[PERMISSIONS], user_of(request)
    nodes = await permissions.check(user, OWNER, name, document.tokens, despite_loss=True)
    change = await permissions.revoke_all("viewer", name)
    request.app[SHELF].note(name, change.token, change.covered(document.tokens, nodes))
    return web.Response(status=204)


def user_of(request: web.Request) -> str:
    """Who asks. THIS IS AN EXAMPLE: put your login here, this believes what it is told."""
    name = request.headers.get("X-User")
    if name is None:
        raise web.HTTPUnauthorized(text="who are you? this example takes the header X-User\n")
    return known_user(name)


def known_user(name: str) -> str:
    if not USER.fullmatch(name):
        raise web.HTTPBadRequest(text=f"a user is spelled {USER.pattern}\n")
    return name


def document_of(request: web.Request) -> tuple[str, Document]:
    name = request.match_info["id"]
    document = request.app[SHELF].get(name)
    if document is None:
        raise Denied("no such document")
    return name, document


@web.middleware
async def say_why_not(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What the permissions say, in HTTP. Only a plain no is final.

    The details go to the log: what a sidecar says is not for users, and whether a document exists
    is not for those who may not read it.
    """
    try:
        return await handler(request)
    except NotChecked as failure:
        status, text = 503, "your permission cannot be checked just now; try again"
        reason: Exception = failure
    except PermissionsLost as failure:
        status, text = 403, "permissions were lost; its owner has to share it anew"
        reason = failure
    except NotChanged as failure:
        status, text = 503, "nobody has confirmed the change; make it again"
        reason = failure
    except Denied as failure:
        status, text = 403, "there is no such document, or it is not for you"
        reason = failure
    request.app.logger.info("%s %s: %s, %s", request.method, request.path, status, reason)
    headers = {"Retry-After": "1"} if status == 503 else {}
    return web.Response(status=status, text=f"{text}\n", headers=headers)


def application(sidecar: str, shelf: Path) -> web.Application:
    """One instance: the sidecar of its region, and the shelf that all instances share."""

    async def parts(app: web.Application) -> AsyncIterator[None]:
        with contextlib.closing(Shelf(shelf)) as documents:
            async with aiohttp.ClientSession() as session:
                app[SHELF], app[PERMISSIONS] = documents, Permissions(session, sidecar)
                yield

    app = web.Application(middlewares=[say_why_not], client_max_size=MAX_TEXT_BYTES)
    app.add_routes(routes)
    app.cleanup_ctx.append(parts)
    return app
