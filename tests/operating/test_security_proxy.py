"""In front of a database: the keys of both, and what an application cannot say."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.proxied_standin import Front, fronts
from tests.e2e.test_proxy_forwarded import wait_until_served_elsewhere
from tests.e2e.test_proxy_streams import code_of
from tests.raw_http import Message, answer, ask, request
from tests.secured import with_key
from tests.world import World

KEY = "the-key-of-the-application"
CHECK = "/v1/permissions/check"
DATABASES = b"Bearer the preshared key of the database"
INTERNAL = (
    *("X-Sidecar-Signature: node=node2", "X-Sidecar-From-Database: yes"),
    *("X-Sidecar-Admin: 1", "X-Sidecar-Request-Id: of-an-application"),
)


def secure(world: World) -> None:
    with_key(world)
    file = world.folder / "keys.yaml"
    file.write_text(f"keys: [{{name: app, key: {KEY}, tenants: [default]}}]\n")
    for node in world.nodes:
        node.environ["INFERADB__SECURITY__APP__KEYS_FILE"] = str(file)


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Front]]:
    """Two regions in front of SpiceDB; that of the first is gone."""
    with fronts("spicedb", 2, prepared=secure) as both:
        yield both


def said(message: Message, name: str) -> bytes | None:
    return message.one(name)


def assert_nothing_internal(asked: Message) -> None:
    named = [name.lower() for name, _ in asked.headers]
    assert not [name for name in named if name.startswith(b"x-sidecar")], named
    assert not any(KEY.encode() in value for _, value in asked.headers)


def test_each_is_shown_its_own_key(pair: list[Front]) -> None:
    here = pair[0]
    here.database.on(CHECK, answer("200 OK", body=b"fine"))
    assert code_of(here.post(CHECK)) == (401, "unauthenticated")
    assert code_of(here.post(CHECK, f"Authorization: {DATABASES.decode()}"))[0] == 401
    both = (f"X-Sidecar-Key: {KEY}", f"Authorization: {DATABASES.decode()}", *INTERNAL)
    assert here.post(CHECK, *both).body == b"fine"
    asked = here.database.next()
    assert_nothing_internal(asked)
    assert said(asked, "Authorization") == DATABASES
    # A key of the sidecar is none of the database's business.
    assert here.post(CHECK, f"Authorization: Bearer {KEY}").body == b"fine"
    asked = here.database.next()
    assert_nothing_internal(asked)
    assert said(asked, "Authorization") is None
    assert here.database.asked.empty()


def test_what_is_forwarded_carries_no_key_and_nothing_made_up(pair: list[Front]) -> None:
    here, there = pair
    there.database.on(CHECK, answer("200 OK", body=b"there"))
    here.database.go()
    shown = (f"X-Sidecar-Key: {KEY}", f"Authorization: {DATABASES.decode()}", *INTERNAL)
    wait_until_served_elsewhere(here, CHECK, *shown)
    there.database.forget()
    assert here.post(CHECK, *shown).body == b"there"
    asked = there.database.next()
    assert_nothing_internal(asked)
    assert said(asked, "Authorization") == DATABASES
    # The database's own refusal is its own, whatever its body says.
    own = b'{"error":"peer_unauthenticated","message":"mine"}'
    there.database.on(CHECK, answer("401 No", body=own))
    refused = here.post(CHECK, *shown)
    assert (refused.status, refused.body) == (401, own)
    assert_nothing_internal(refused)
    # Nobody but a node may use the way of the nodes.
    raw = request(f"POST /database{CHECK}", "X-Test: 1", *shown, body=b"{}")
    assert code_of(ask(there.node.peer_port, raw)) == (401, "peer_unauthenticated")
    for front in pair:
        assert KEY not in front.node.log


def test_a_file_of_keys_may_stand_beside_the_configuration(tmp_path: Path) -> None:
    from sidecar.config import load

    file = tmp_path / "sidecar.yaml"
    file.write_text("security: {app: {keys_file: secrets/keys.yaml}}\n")
    config = load(file, environ={})
    assert config.security is not None
    assert config.security.app.keys_file == tmp_path / "secrets" / "keys.yaml"
