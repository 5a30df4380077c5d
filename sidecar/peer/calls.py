"""Calls to the peer listener of a node that are no session: one request, one answer in JSON."""

import json
from typing import Any

import aiohttp
from yarl import URL

from sidecar.errors import Refused, Unavailable
from sidecar.peer.connections import Connections, why_not
from sidecar.security.links import Links

MAX_QUOTED = 200


class PeerCalls(Connections):
    """Asks nodes at `host:port`. One for all of them; use as an async context manager."""

    def __init__(self, timeout_s: float, links: Links | None = None) -> None:
        super().__init__(links, timeout=aiohttp.ClientTimeout(total=timeout_s))
        self._timeout_s = timeout_s

    async def get(self, endpoint: str, path: str) -> dict[str, Any]:
        """The answer to a GET. Raises Refused for 4xx, Unavailable for anything else but 2xx."""
        return await self._ask("GET", endpoint, path, None)

    async def post(
        self, endpoint: str, path: str, body: object, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """The answer to a POST of JSON; raises the same. timeout_s: instead of the usual one."""
        return await self._ask("POST", endpoint, path, json.dumps(body).encode(), timeout_s)

    async def _ask(
        self,
        method: str,
        endpoint: str,
        path: str,
        body: bytes | None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        limit_s = timeout_s or self._timeout_s
        url = URL(f"{self._links.scheme}://{endpoint}{path}")
        headers = {
            "Content-Type": "application/json",
            **self._links.signed(endpoint, method, url.raw_path_qs, body),
        }
        try:
            async with self._session.request(
                method,
                url,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=limit_s),
                **self._links.options(endpoint),
            ) as response:
                status, text = response.status, await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            reason = why_not(error) or f"no answer within {limit_s:.0f} s"
            raise Unavailable("unreachable", f"{endpoint} cannot be asked: {reason}") from error
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if isinstance(answer, dict) and status == 200:
            return answer
        said = answer if isinstance(answer, dict) else {}
        code = str(said.get("error", f"http_{status}"))
        quoted = text[:MAX_QUOTED].decode(errors="replace")
        message = str(said.get("message", f"{endpoint}{path} answers {status}: {quoted}"))
        if status == 401:
            # The caller asked for nothing wrong: the two nodes do not know each other.
            raise Unavailable(code, f"{endpoint} does not answer this node: {message}")
        if 400 <= status < 500:
            raise Refused(code, message, status)
        raise Unavailable(code, message)
