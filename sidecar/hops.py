"""What an HTTP proxy does with messages that pass through it: headers of the link, and bodies."""

from collections.abc import Mapping
from typing import Final

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict

HOP_BY_HOP: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te"),
        *("trailer", "transfer-encoding", "upgrade", "proxy-connection"),
    }
)
"""About the link alone (RFC 9110, 7.6.1)."""


def end_to_end(headers: Mapping[str, str], *without: str) -> CIMultiDict[str]:
    """The headers that pass a proxy, with every repetition; `Content-Length` is made anew."""
    dropped = HOP_BY_HOP.union({"content-length"}, without)
    named = {name.strip().lower() for name in headers.get(hdrs.CONNECTION, "").split(",")}
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if name.lower() not in dropped and name.lower() not in named
    )


async def relay(
    request: web.Request,
    answer: aiohttp.ClientResponse,
    headers: CIMultiDict[str],
    *,
    whose: str,
) -> web.StreamResponse:
    """Pass an answer on as it comes. Raises ConnectionResetError where it breaks off."""
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
    if answer.content_length is not None:
        response.content_length = answer.content_length
    await response.prepare(request)
    try:
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
    except (aiohttp.ClientError, TimeoutError) as error:
        # The client must not take this for the whole answer.
        raise ConnectionResetError(f"the answer of {whose} broke off") from error
    await response.write_eof()
    return response
