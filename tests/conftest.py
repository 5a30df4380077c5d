"""What every suite may ask for: one real Valkey for the session, emptied for each test."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.servers import RealValkey, running_valkey

# How long a draw takes says more about the machine than about the code.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


@pytest.fixture(scope="session")
def session_valkey() -> Iterator[RealValkey]:
    """The real server that the tests of a session share; take `valkey` to get it empty."""
    with running_valkey() as valkey:
        yield valkey


@pytest.fixture
def valkey(session_valkey: RealValkey) -> RealValkey:
    """The session's real server, without any key. Scripts stay loaded."""
    assert session_valkey.call("FLUSHALL").startswith(b"+OK")
    return session_valkey


@pytest.fixture
def valkey_url(valkey: RealValkey) -> str:
    """`unix://…` of an empty real server."""
    return valkey.url
