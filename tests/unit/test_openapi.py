"""The OpenAPI documents name every call that there is, and no other."""

import json
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.hdrs import METH_ANY, METH_HEAD

from sidecar.admin.openapi import admin_document
from sidecar.api.openapi import app_document
from sidecar.openapi import OPENAPI

Place = tuple[str, str]


def documented(document: dict[str, Any]) -> set[Place]:
    return {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    }


def routes(app: web.Application) -> set[Place]:
    return {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method not in {METH_ANY, METH_HEAD}
    }


@pytest.mark.parametrize("document", [app_document(), admin_document()])
def test_each_reference_leads_somewhere_and_each_name_is_used_once(
    document: dict[str, Any],
) -> None:
    text = json.dumps(document)
    names = document["components"]["schemas"]
    for name in names:
        assert f"#/components/schemas/{name}" in text, name
    assert text.count("#/components/schemas/") == sum(
        text.count(f'#/components/schemas/{name}"') for name in names
    )
    ids = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(ids) == len(set(ids))
    assert cast("dict[str, Any]", document["paths"])[OPENAPI]["get"]["summary"]
