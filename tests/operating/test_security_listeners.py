"""What applications and operators have to show, and what a page in a browser cannot."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.e2e.conftest import MakeWorld
from tests.operating.test_security_tls import relationships, says
from tests.secured import ask_tls
from tests.waiting import wait_until
from tests.world import HOST, LIST, OPERATOR, WRITE, Answer, Node, World, ask, sidecar

SHOP, ALL = "the key of the shop", "the key for everything"
TOKEN = "the token of the operator"
KEYS = f"""
keys:
  - {{name: shop, key: {SHOP.replace(" ", "-")}, tenants: [shop, "shop-*"]}}
  - {{name: all, key: {ALL.replace(" ", "-")}, tenants: ["*"]}}
"""
SHOP, ALL = SHOP.replace(" ", "-"), ALL.replace(" ", "-")
TENANTS = "/access/v1/tenants"


@pytest.fixture(scope="module")
def world(make_shared_world: Callable[..., World]) -> World:
    world = make_shared_world(1)
    (world.folder / "keys.yaml").write_text(KEYS)
    (world.folder / "admin.token").write_text(f"{TOKEN}\n")
    world.nodes[0].environ |= {
        "INFERADB__SECURITY__APP__KEYS_FILE": str(world.folder / "keys.yaml"),
        "INFERADB__SECURITY__ADMIN__TOKEN_FILE": str(world.folder / "admin.token"),
    }
    return world.start()


def write(node: Node, tenant: str, **headers: str) -> tuple[int, str]:
    answer = node.post(WRITE, relationships(1), X_Tenant=tenant, **headers)
    return answer.status, answer.body.get("error", "")


def test_a_key_opens_its_tenants_and_no_other(world: World) -> None:
    node = world.nodes[0]
    assert write(node, "shop") == (401, "unauthenticated")
    assert write(node, "shop", Authorization=f"Bearer {SHOP}") == (200, "")
    assert write(node, "shop-1", X_Sidecar_Key=SHOP) == (200, "")
    assert write(node, "shop-1", Authorization=f"bearer {ALL}") == (200, "")
    assert write(node, "bank", Authorization=f"Bearer {SHOP}") == (403, "tenant_not_allowed")
    assert write(node, "myshop-1", X_Sidecar_Key=SHOP) == (403, "tenant_not_allowed")
    assert write(node, "shop", Authorization="Basic Zm9v") == (401, "unauthenticated")
    assert write(node, "shop", Authorization="Bearer nobody-has-this-key") == (
        401,
        "unauthenticated",
    )
    wrong = node.post(WRITE, relationships(1), X_Tenant="shop")
    assert wrong.headers["WWW-Authenticate"] == "Bearer"
    # Of all tenants only who may see all.
    assert ask(node.app_port, "GET", TENANTS, headers={"X-Sidecar-Key": SHOP}).status == 403
    listed = ask(node.app_port, "GET", TENANTS, headers={"X-Sidecar-Key": ALL})
    assert "shop" in listed.body["tenants"]
    assert node.health().status == 200
    assert says(node, "request refused", "not for tenant 'bank'")()
    for secret in (SHOP, ALL, TOKEN, "nobody-has-this-key"):
        assert secret not in node.log


def test_changed_keys_are_taken_up(world: World) -> None:
    node, file = world.nodes[0], world.folder / "keys.yaml"
    file.write_text(KEYS.replace(SHOP, "another-key-of-the-shop"))
    assert write(node, "shop", X_Sidecar_Key=SHOP) == (401, "unauthenticated")
    assert write(node, "shop", X_Sidecar_Key="another-key-of-the-shop") == (200, "")
    file.write_text("keys: [what, a, mess]")
    assert write(node, "shop", X_Sidecar_Key="another-key-of-the-shop") == (200, "")
    assert says(node, "changed files cannot be used", "keys.0")()
    file.write_text(KEYS)
    assert write(node, "shop", X_Sidecar_Key=SHOP) == (200, "")


def test_the_commands_show_a_key(world: World, tmp_path: Path) -> None:
    node, key = world.nodes[0], tmp_path / "key"
    key.write_text(f"{SHOP}\n")
    assert write(node, "shop", X_Sidecar_Key=SHOP) == (200, "")
    words = ("export", "--url", node.url, "--tenant", "shop")
    refused = sidecar(*words)
    assert refused.returncode == 2
    assert "wants one key" in refused.stderr
    done = sidecar(*words, "--key-file", str(key))
    assert done.returncode == 0, done.stderr
    assert "document:0" in done.stdout


def steer(node: Node, **headers: str) -> tuple[int, str]:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    answer = ask(node.admin_port, "POST", "/accept-loss", b"", named)
    return answer.status, answer.body["error"]


def test_a_page_in_a_browser_changes_nothing(world: World) -> None:
    node = world.nodes[0]
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    assert steer(node, **form) == (403, "header_missing")
    page = {"Origin": "http://evil.example", **form}
    assert steer(node, **page) == (403, "foreign_origin")
    assert steer(node, Origin="null", X_Sidecar_Admin="1") == (403, "foreign_origin")
    assert steer(node, Origin="http://evil.example", X_Sidecar_Admin="1")[1] == "foreign_origin"
    # A name of somebody else's that leads here.
    rebound = {"Host": f"evil.example:{node.admin_port}"}
    assert steer(node, X_Sidecar_Admin="1", **rebound) == (403, "foreign_host")
    same = f"http://evil.example:{node.admin_port}"
    assert steer(node, X_Sidecar_Admin="1", Origin=same, **rebound) == (403, "foreign_host")
    # It would have to ask first, and is never told that it may.
    asked = ask(
        node.admin_port,
        "OPTIONS",
        "/accept-loss",
        headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"},
    )
    assert asked.status == 405
    assert not any(name.lower().startswith("access-control") for name in asked.headers)
    assert says(node, "request refused", "listener=admin", "evil.example")()


def test_a_page_whose_name_leads_here_sees_nothing_of_what_is_stored(world: World) -> None:
    """DNS rebinding: to the browser it is the page's own server, so it may read the answers."""
    node = world.nodes[0]
    rebound = {"Host": f"evil.example:{node.admin_port}"}
    for path in ("/conflicts", "/status", "/deployment", "/events", "/parked", "/"):
        answer = ask(node.admin_port, "GET", path, headers=rebound)
        assert (answer.status, answer.body["error"]) == (403, "foreign_host"), path
    for path in ("/health", "/livez", "/readyz", "/metrics"):
        assert ask(node.admin_port, "GET", path, headers=rebound).status == 200, path
    for host in ("localhost", "127.0.0.1", "[::1]"):
        named = {"Host": f"{host}:{node.admin_port}"}
        assert ask(node.admin_port, "GET", "/conflicts", headers=named).status == 200, host


def test_an_operator_on_the_same_machine_needs_the_header_only(world: World) -> None:
    node = world.nodes[0]
    nothing_missing = (409, "not_behind")
    assert steer(node, X_Sidecar_Admin="1") == nothing_missing
    own = f"http://{HOST}:{node.admin_port}"
    assert steer(node, X_Sidecar_Admin="1", Origin=own) == nothing_missing
    wrong = {"X_Sidecar_Admin": "1", "Authorization": "Bearer something-else"}
    assert steer(node, **wrong) == (401, "unauthenticated")


def everywhere(node: Node) -> None:
    node.environ["INFERADB__LISTEN__ADMIN"] = f"0.0.0.0:{node.admin_port}"


def test_away_from_the_machine_it_takes_the_token(make_world: MakeWorld) -> None:
    world = make_world(1)
    node, file = world.nodes[0], world.folder / "admin.token"
    file.write_text(f"{TOKEN}\n")
    node.environ["INFERADB__SECURITY__ADMIN__TOKEN_FILE"] = str(file)
    everywhere(node)
    node.start()
    assert steer(node, X_Sidecar_Admin="1") == (401, "unauthenticated")
    shown = {"X_Sidecar_Admin": "1", "Authorization": f"Bearer {TOKEN}"}
    assert steer(node, **shown)[0] == 409
    assert steer(node, Authorization=f"Bearer {TOKEN}") == (403, "header_missing")
    words = ("accept-loss", "--url", f"http://{HOST}:{node.admin_port}")
    assert "Authorization" in sidecar(*words).stderr
    for told in (
        sidecar(*words, "--token-file", str(file)),
        sidecar(*words, environ={"INFERADB__SECURITY__ADMIN__TOKEN_FILE": str(file)}),
    ):
        assert "not behind" in told.stderr, told.stderr
    file.write_text("another token of the operator\n")
    assert steer(node, **shown) == (401, "unauthenticated")
    assert ask(node.admin_port, "GET", "/status").status == 200
    assert TOKEN not in node.log
    assert "listener without authentication" not in node.log


def test_without_a_token_nothing_can_be_changed_from_elsewhere(make_world: MakeWorld) -> None:
    world = make_world(1)
    node = world.nodes[0]
    everywhere(node)
    node.start()
    assert says(node, "listener without authentication", "security.admin")()
    assert steer(node, X_Sidecar_Admin="1") == (401, "unauthenticated")


def test_applications_and_operators_speak_tls(make_world: MakeWorld) -> None:
    world = make_world(1)
    authority, node = Authority(), world.nodes[0]
    files = authority.issue(world.folder / "tls", ["sidecar.example"])
    trusted = authority.write(world.folder / "ca.crt")
    for listener in ("APP", "ADMIN"):
        name = f"INFERADB__SECURITY__{listener}__TLS__"
        node.environ[f"{name}CERTIFICATE"] = str(files.certificate)
        node.environ[f"{name}KEY"] = str(files.key)

    def asked(port: int, method: str, path: str, body: object = None) -> Answer:
        return ask_tls(port, method, path, body, files=None, trusted=trusted)

    def is_ready() -> bool:
        try:
            return ask(node.peer_port, "GET", "/readyz").status == 200
        except OSError:
            return False

    node.begin()
    wait_until(is_ready, "it is ready")
    assert asked(node.app_port, "POST", LIST, {}).status == 200
    assert asked(node.admin_port, "GET", "/status").status == 200


@pytest.mark.parametrize(
    ("setting", "content", "why"),
    [
        ("ADMIN__TOKEN_FILE", None, "cannot be read"),
        ("ADMIN__TOKEN_FILE", "short", "fewer than 16 characters"),
        ("PEER__SHARED_KEY_FILE", " \n", "is empty"),
        ("PEER__SHARED_KEY_FILE", "what-is-sécret-here", "printable ASCII"),
        ("APP__KEYS_FILE", "keys: {a: b", "is not YAML"),
        ("APP__KEYS_FILE", "keys: [{name: a, key: short-secret, tenants: [a]}]", "keys.0.key"),
        ("APP__KEYS_FILE", "keys: [{name: a, key: a-long-secret-here}]", "keys.0.tenants"),
    ],
)
def test_a_secret_that_is_none_ends_the_start(
    setting: str, content: str | None, why: str, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_text(content)
    config = tmp_path / "sidecar.yaml"
    config.write_text("{}\n")
    environ = {f"INFERADB__SECURITY__{setting}": str(file)}
    for words in (("run", "--config", str(config)), ("check-config", str(config))):
        done = sidecar(*words, environ=environ)
        assert done.returncode == 2
        said = done.stderr.replace("\n", " ")
        assert f"security.{setting.lower().replace('__', '.')}: {file}" in said, said
        assert why in said
        assert "secret-here" not in said
        assert "short-secret" not in said


def test_what_is_set_is_shown_and_no_secret(world: World) -> None:
    node = world.nodes[0]
    done = sidecar("check-config", str(node.config), environ=node.settings())
    assert "security             peer nothing, app keys, admin a token" in done.stdout
    assert SHOP not in done.stdout + done.stderr
    status = ask(node.admin_port, "GET", "/status", headers=OPERATOR)
    assert TOKEN not in str(status.body)
