"""What a call waits for before it answers: what a token names, other regions that have a write."""

from sidecar.api import headers
from sidecar.api.answers import compact
from sidecar.api.served import Served
from sidecar.core.token import Token
from sidecar.core.vector import Vector, covers, newest_origins, node_of
from sidecar.errors import Refused, Unavailable
from sidecar.store.calls import Written


async def reach(here: Served, consistency: headers.Consistency | None) -> None:
    """Wait until this node has what a token names. Raises Refused when it never will, or not
    in time.
    """
    if consistency is None:
        return
    token = consistency.token
    if token.partition != here.store.keys.partition:
        raise Refused(
            "invalid_token",
            "X-Revision-Token was given for a tenant that is bound to other regions than this "
            "one; send a token of this tenant, or none",
        )
    stranger = here.stranger_among({token.node, *map(node_of, token.vector)})
    if stranger is not None:
        raise Refused(
            "invalid_token",
            f"X-Revision-Token names node {stranger}, which this deployment does not have and "
            "never had; tokens are good only where they were given",
        )
    _refuse_lost(here, token)
    if not await here.store.wait_covered(token.vector, consistency.timeout_s):
        # What was lost may have come to light meanwhile.
        _refuse_lost(here, token)
        raise Refused(
            "token_not_reached",
            f"node {here.store.node} has not received everything that X-Revision-Token names "
            f"within {consistency.timeout_s * 1000:.0f} ms; try again, wait longer "
            f"(X-Consistency-Timeout-Ms), or ask node {token.node}",
            409,
        )


async def hold(here: Served, written: Written, concern: headers.Concern) -> list[str]:
    """Wait until enough regions have a write; returns those that have not acknowledged it."""
    origin = newest_origins(written.vector)[here.store.node]
    _refuse_lost_write(here, origin, written.revision)
    version = (written.revision, origin)
    missing = await here.concerns.wait(version, concern.level, concern.timeout_s)
    if missing:
        # This node may have lost it meanwhile: then it does not go on replicating from here.
        _refuse_lost_write(here, origin, written.revision)
        if not covers(here.store.vector, version):
            raise Unavailable(
                "outcome_unknown",
                "this node has lost the write before it knew that another region has it, and "
                "takes it back if one has; with a new Idempotency-Key it may be repeated",
            )
    return missing


def concern_failure(concern: headers.Concern, missing: list[str]) -> str:
    """The fields with which the answer to an accepted write begins that too few regions have."""
    message = (
        f"the write is accepted on this node and goes on replicating, but X-Write-Concern: "
        f"{concern.level} was not met within {concern.timeout_s * 1000:.0f} ms: no node of "
        f"{', '.join(missing)} has acknowledged it; do not write it again, the token is good"
    )
    return f'"error":"write_concern_timeout","message":{compact(message)},'


def token_text(here: Served, revision: int, vector: Vector) -> str:
    """The token of an answer."""
    return Token(here.store.node, revision, vector, here.store.keys.partition).encode()


def _refuse_lost(here: Served, token: Token) -> None:
    origin = here.lost_of(token.vector)
    if origin is not None:
        raise Refused(
            "write_lost",
            f"X-Revision-Token names a write of {origin} that was lost before any other node "
            "had it, and no node will ever show it; drop the token, read what there is and "
            "write again",
            410,
        )


def _refuse_lost_write(here: Served, origin: str, revision: int) -> None:
    if here.lost_of({origin: revision}) is not None:
        raise Refused(
            "write_lost",
            f"write {revision} of {origin} was lost before any other node had it, and no node "
            "will ever show it; write again, with a new Idempotency-Key",
            410,
        )
