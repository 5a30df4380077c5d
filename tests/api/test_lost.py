"""Cursors of `watch` over a new incarnation of the node: good up to where the old one ended."""

import pytest

from sidecar.api.cursors import Place, place_of
from tests.api.conftest import Api, numbered


async def test_a_cursor_from_before_the_loss_goes_on_in_the_new_incarnation(api: Api) -> None:
    async with api.watch({"cursor": "start"}) as events:
        await api.write(*numbered(2))
        first, second = await events.changes(2)
        await api.store.begin(None)
        # What it was told may be lost: it ends, and the reader comes again.
        with pytest.raises(EOFError):
            await events.changes(1)
    await api.write("doc:9 viewer user:alice")
    async with api.watch({"cursor": first.cursor}) as events:
        texts = [event.text for event in await events.changes(2)]
    assert texts == [second.text, "+doc:9 viewer user:alice"]
    async with api.watch({"cursor": second.cursor}) as events:
        (next_one,) = await events.changes(1)
    assert next_one.text == "+doc:9 viewer user:alice"
    assert place_of(next_one.cursor).origin == api.store.origin


async def test_a_cursor_from_behind_the_loss_is_gone(api: Api) -> None:
    written = await api.write(*numbered(1))
    dead, last = api.store.origin, int(written["revision"])
    await api.store.begin(None)
    for place in (Place(dead, last + 1), Place("node1.0", last)):
        answer = await api.post("watch", {"cursor": place.encode()})
        assert (answer.status, answer.body["error"]) == (410, "write_lost")
    other = await api.post("watch", {"cursor": Place("node2.0", last).encode()})
    assert (other.status, other.body["error"]) == (410, "cursor_elsewhere")
