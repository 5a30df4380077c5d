"""Names of headers that both ends know."""

from typing import Final

ADMIN_HEADER: Final = "X-Sidecar-Admin"
"""On each request that changes the state of a node: no page in a browser can send it."""

KEY_HEADER: Final = "X-Sidecar-Key"
"""The key of an application, where `Authorization` is the database's."""

SIGNATURE: Final = "X-Sidecar-Signature"
"""Between nodes that share a key: who asks."""
