"""Permissions of documents, asked of the sidecar of this region. This is the part to copy.

The new-enemy problem: Alice takes Bob off a document, and then writes into it what he must not
see. Another region may have the new text, and not have heard of the revocation yet; it would let
Bob read it. So every change of permissions gives a token, the token is stored with the document,
and a check for the document sends it along: a region that does not have what the token names waits
until it has, or says that it cannot tell. What cannot be told is denied.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import aiohttp

WAIT_MS = 2_000
"""How long a region may wait for what a token names, and for other regions when asked to."""
LIMIT = aiohttp.ClientTimeout(total=3 * WAIT_MS / 1000)


class Denied(Exception):
    """No. The two below are kinds of it, so that who forgets to tell them apart denies as well."""


class NotChecked(Denied):
    """Nobody could tell just now: no for the moment, ask again."""


class PermissionsLost(Denied):
    """A change of these permissions was lost with its region, and nobody will ever show it.

    It may have been a revocation. Asking again does not help: somebody has to say anew who may.
    """


class NotChanged(Exception):
    """Nobody has confirmed the change; it may have been made. Saying it again does no harm."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of permissions that was made.

    token: to be stored with the document before anybody is told. node: who made it, `region/node`.
    is_everywhere: whether every region has it; False also where nobody asked.
    """

    token: str
    node: str
    is_everywhere: bool

    def covered(self, tokens: Collection[str], nodes: Collection[str]) -> Collection[str]:
        """Which of the tokens, just checked on these nodes, this one makes superfluous.

        A token names all that its node had. If another node took the change (a failover happened
        in between) nothing is known.
        """
        return tokens if set(nodes) == {self.node} else ()


class _Answer(NamedTuple):
    status: int
    body: Mapping[str, Any]
    node: str


class Permissions:
    """Who may what, as the sidecar at this URL says."""

    def __init__(self, session: aiohttp.ClientSession, sidecar: str) -> None:
        self._session, self._url = session, f"{sidecar.rstrip('/')}/access/v1"

    async def check(
        self,
        user: str,
        relations: Collection[str],
        document: str,
        tokens: Collection[str],
        *,
        despite_loss: bool = False,
    ) -> Collection[str]:
        """Return, with the nodes that answered, if the user has one of the relations.

        tokens: all that are stored with the document, at least one. Each must have been seen by the
        region that says yes, except with `despite_loss` those that nobody will ever show.
        Raises Denied if not.
        """
        for relation in relations:
            question = {
                "subject": {"type": "user", "id": user},
                "action": {"name": relation},
                "resource": {"type": "document", "id": document},
            }
            answers = []
            for token in tokens:
                try:
                    answers.append(await self._decided(question, {"X-Revision-Token": token}))
                except PermissionsLost:
                    if not despite_loss:
                        raise
                    answers.append(await self._decided(question, {}))
            if answers and all(answer.body["decision"] is True for answer in answers):
                return {answer.node for answer in answers}
        raise Denied(f"{user} is no {' or '.join(relations)} of it")

    async def _decided(self, question: Mapping[str, object], token: Mapping[str, str]) -> _Answer:
        headers = {"X-Consistency-Timeout-Ms": str(WAIT_MS), **token}
        try:
            answer = await self._post("evaluation", question, headers)
        except (aiohttp.ClientError, TimeoutError) as failure:
            raise NotChecked(f"no answer from the sidecar: {failure!r}") from None
        match answer.status, answer.body.get("error"):
            case 200, _:
                return answer
            case 410, "write_lost":
                raise PermissionsLost(answer.body["message"])
            # 409 token_not_reached: this region has not heard of it yet. 503: it cannot answer.
            case _:
                raise NotChecked(f"{answer.body.get('error')}: {answer.body.get('message')}")

    async def grant(self, user: str, relation: str, document: str) -> Change:
        """Raises NotChanged."""
        return await self._update("insert", user, relation, document)

    async def revoke(
        self, user: str, relation: str, document: str, *, everywhere: bool = False
    ) -> Change:
        """Revoke; with `everywhere` wait until every region has it, or say that it does not.

        The token guards the document without that. Waiting costs a round trip to the farthest
        region and buys that losing this region right afterwards does not undo the revocation.
        Raises NotChanged.
        """
        return await self._update("delete", user, relation, document, everywhere=everywhere)

    async def revoke_all(self, relation: str, document: str) -> Change:
        """Take the relation from everybody. Raises NotChanged."""
        everyone = {"filter": {"resource": f"document:{document}", "relation": relation}}
        return await self._change("relationships/delete", everyone, {})

    async def _update(
        self, operation: str, user: str, relation: str, document: str, *, everywhere: bool = False
    ) -> Change:
        relationship = {
            "resource": f"document:{document}",
            "relation": relation,
            "subject": f"user:{user}",
        }
        body = {"updates": [{"operation": operation, "relationship": relationship}]}
        headers = {"X-Write-Concern": "all", "X-Write-Concern-Timeout-Ms": str(WAIT_MS)}
        return await self._change("relationships/update", body, headers if everywhere else {})

    async def _change(
        self, path: str, body: Mapping[str, object], headers: Mapping[str, str]
    ) -> Change:
        try:
            answer = await self._post(path, body, headers)
        except (aiohttp.ClientError, TimeoutError) as failure:
            raise NotChanged(f"no answer from the sidecar: {failure!r}") from None
        match answer.status, answer.body.get("error"):
            case 200, _:
                return Change(answer.body["token"], answer.node, bool(headers))
            # It was made, here, and goes on to the others: its token is as good as any.
            case 504, "write_concern_timeout":
                return Change(answer.body["token"], answer.node, is_everywhere=False)
            case _:
                raise NotChanged(f"{answer.body.get('error')}: {answer.body.get('message')}")

    async def _post(
        self, path: str, body: Mapping[str, object], headers: Mapping[str, str]
    ) -> _Answer:
        url = f"{self._url}/{path}"
        async with self._session.post(url, json=body, headers=headers, timeout=LIMIT) as response:
            # Errors are JSON as well; whatever stands in between may answer something else.
            found = await response.json() if response.content_type == "application/json" else {}
            return _Answer(response.status, found, response.headers.get("X-Served-By", ""))
