"""What holds of the OpenAPI documents by themselves; whether they are true: tests/e2e."""

import json
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from sidecar.admin.openapi import admin_document
from sidecar.api.answers import Answers
from sidecar.api.openapi import app_document
from sidecar.core.topology import Node, NodeId, RegionId, ZoneId
from sidecar.errors import Broken
from sidecar.openapi import OPENAPI, Documented


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


async def test_a_document_that_does_not_name_just_the_calls_of_its_listener_is_not_served() -> None:
    answers = Answers(Node(NodeId("us1"), RegionId("us-west-1"), ZoneId("a"), "127.0.0.1:1"))
    app = web.Application()
    for path in (OPENAPI, "/new"):
        app.router.add_get(path, Documented(admin_document(), answers).get)
    request = make_mocked_request("GET", OPENAPI, app=app)
    with pytest.raises(Broken, match=r"GET /conflicts, .*GET /new"):
        await Documented(admin_document(), answers).get(request)
