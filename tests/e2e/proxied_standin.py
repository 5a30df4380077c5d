"""Nodes in front of stand-ins, for the tests of what passes through."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from tests.raw_http import Client, Message, ask, connected, request
from tests.standin import Standin, standing_in
from tests.world import Node, World


@dataclass(frozen=True)
class Front:
    """A node and the stand-in behind it."""

    node: Node
    database: Standin

    @property
    def port(self) -> int:
        return self.node.app_port

    def ask(self, raw: bytes) -> Message:
        """Through the node, on a connection of its own."""
        return ask(self.port, raw)

    def get(self, path: str, *fields: str) -> Message:
        return self.ask(request(f"GET {path}", "X-Test: 1", *fields))

    def post(self, path: str, *fields: str, body: bytes = b"{}") -> Message:
        return self.ask(request(f"POST {path}", "X-Test: 1", *fields, body=body))

    def connected(self) -> Any:
        return connected(self.port)


@contextmanager
def fronts(
    dialect: str,
    regions: int = 1,
    *,
    patience_s: int = 10,
    prepared: Callable[[World], None] = lambda world: None,
    **database: object,
) -> Iterator[list[Front]]:
    """Regions with a stand-in each, serving. prepared: does something before they start.

    database: further settings.
    """
    with ExitStack() as stack:
        world = World(regions, replication={"agent": {"request_timeout_secs": patience_s}})
        stack.callback(world.close)
        found = []
        for node in world.nodes:
            standin = stack.enter_context(standing_in())
            node.environ |= {
                "INFERADB__DATABASE__DIALECT": dialect,
                "INFERADB__DATABASE__URL": standin.url,
                **{f"INFERADB__DATABASE__{name.upper()}": str(v) for name, v in database.items()},
            }
            found.append(Front(node, standin))
        prepared(world)
        world.start()
        yield found


__all__ = ["Client", "Front", "fronts"]
