"""Any HTTP API, without understanding it: requests are routed and forwarded, nothing is replicated.

For a database of another kind while it is being moved. What a request does is told by its method
alone, and all there is belongs to one tenant, `default`.
"""

from typing import ClassVar

from sidecar.dialects.dialect import Call, Dialect, Kind

TENANT = "default"

READ = Call("read", Kind.READ)
WRITE = Call("write", Kind.WRITE)


class Passthrough(Dialect):
    name: ClassVar[str] = "passthrough"
    proven: ClassVar[str] = "any HTTP server: requests are forwarded, nothing is replicated"
    health_path: ClassVar[str] = "/"

    def call_of(self, method: str, path: str) -> Call:
        return READ if method in ("GET", "HEAD") else WRITE

    def tenant_of(self, path: str) -> str:
        return TENANT
