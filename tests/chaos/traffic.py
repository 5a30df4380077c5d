"""Clients that write whatever happens, and remember what they were told."""

import http.client
import json
import random
import select
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sidecar.core.token import Token
from tests.chaos.history import Change, Outcome, Request, Version
from tests.world import DELETE, HOST, UPDATE, WRITE, Node, Triple, World, documents

FEW: Sequence[Triple] = documents(range(8))
MANY: Sequence[Triple] = [
    (f"folder:{number // 10}", "editor", f"user:{number}") for number in range(3_000)
]
CLIENTS_PER_NODE = 4
PAUSE_S = 0.02
AFTER_A_REFUSAL_S = 0.05
# Longer than a node needs to say that it does not know the outcome.
TIMEOUT_S = 60.0


@dataclass
class Client:
    """Writes random transactions to one node, one after the other, and goes on whatever happens.

    is_patient: it sends each request with an `Idempotency-Key`, and again until it is answered.
    surprises: answers that no failure explains.
    """

    name: str
    node: Node
    dice: random.Random
    ending: threading.Event
    is_patient: bool
    requests: list[Request] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    _line: http.client.HTTPConnection | None = None

    def run(self) -> None:
        while not self.ending.is_set():
            request = self._settle(len(self.requests), self._draw())
            self.requests.append(request)
            is_refused = request.outcome is Outcome.REFUSED
            # Leave the processor to those who have to start again.
            self.ending.wait(
                AFTER_A_REFUSAL_S if is_refused else self.dice.expovariate(1 / PAUSE_S)
            )
        self._hang_up()

    def _draw(self) -> tuple[Change, ...]:
        population = self.dice.choice([FEW, MANY])
        count = 1 if self.dice.random() < 0.6 else self.dice.randint(2, 5)
        return tuple(
            self._change(triple, place)
            for place, triple in enumerate(self.dice.sample(population, count))
        )

    def _change(self, triple: Triple, place: int) -> Change:
        is_insert = self.dice.random() < 0.5
        is_marked = is_insert and self.dice.random() < 0.5
        mark = f"{self.name}/{len(self.requests)}/{place}" if is_marked else None
        return Change(triple, is_insert, mark)

    def _settle(self, number: int, changes: tuple[Change, ...]) -> Request:
        """Ask; the patient ones ask again while nobody knows whether it was done."""
        began_us = _now_us()
        was_lost = False
        while True:
            request = self._ask(number, changes, began_us)
            was_lost |= request.outcome is Outcome.UNKNOWN
            is_over = request.outcome is Outcome.DONE or not was_lost
            if is_over or not self.is_patient or self.ending.wait(AFTER_A_REFUSAL_S):
                break
        if was_lost and request.outcome is Outcome.REFUSED:
            # Only the last attempt is known to have done nothing.
            return self._request(number, changes, began_us, Outcome.UNKNOWN, request.answer)
        return request

    def _ask(self, number: int, changes: tuple[Change, ...], began_us: int) -> Request:
        path, body = _body(changes)
        headers = {"Content-Type": "application/json"}
        if self.is_patient:
            headers["Idempotency-Key"] = f"{self.name}/{number}"
        try:
            line = self._connected()
        except OSError as error:
            return self._request(number, changes, began_us, Outcome.REFUSED, repr(error))
        try:
            line.request("POST", path, body, headers)
            response = line.getresponse()
            status, answer = response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._hang_up()
            return self._request(number, changes, began_us, Outcome.UNKNOWN, repr(error))
        return self._answered(number, changes, began_us, status, answer)

    def _answered(
        self, number: int, changes: tuple[Change, ...], began_us: int, status: int, answer: Any
    ) -> Request:
        if status == 200:
            token = Token.decode(answer["token"])
            origins = [
                origin
                for origin, timestamp in token.vector.items()
                if origin.partition(".")[0] == token.node and timestamp == token.revision
            ]
            if len(origins) == 1 and str(token.revision) == answer["revision"]:
                return Request(
                    *(self.name, number, self.node.name, changes, began_us, _now_us()),
                    *(Outcome.DONE, Version(token.revision, origins[0]), token.vector),
                )
        said = f"{status} {answer}"
        if status == 503 and answer.get("error") != "outcome_unknown":
            return self._request(number, changes, began_us, Outcome.REFUSED, said)
        if status != 503:
            self.surprises.append(f"{self.name}/{number} at {self.node.name}: {said}")
        return self._request(number, changes, began_us, Outcome.UNKNOWN, said)

    def _request(
        self,
        number: int,
        changes: tuple[Change, ...],
        began_us: int,
        outcome: Outcome,
        answer: str,
    ) -> Request:
        return Request(
            *(self.name, number, self.node.name, changes, began_us, _now_us(), outcome),
            answer=answer,
        )

    def _connected(self) -> http.client.HTTPConnection:
        """A connection that has not been closed by the node meanwhile. Raises OSError."""
        if self._line is not None and self._line.sock is not None:
            readable, _, _ = select.select([self._line.sock], [], [], 0)
            if not readable:
                return self._line
        self._hang_up()
        # Without a key another node could serve it, and of an unknown outcome nobody could tell
        # where: the peer listener serves what applications ask and forwards nothing.
        port = self.node.app_port if self.is_patient else self.node.peer_port
        line = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_S)
        line.connect()
        self._line = line
        return line

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None


def _body(changes: Sequence[Change]) -> tuple[str, bytes]:
    """The call that a client would use for these changes, and its body."""
    relationships = [_relationship(change) for change in changes]
    inserts = [change.is_insert for change in changes]
    if all(inserts):
        return WRITE, json.dumps({"relationships": relationships}).encode()
    if not any(inserts):
        return DELETE, json.dumps({"relationships": relationships}).encode()
    updates = [
        {"operation": "insert" if is_insert else "delete", "relationship": relationship}
        for is_insert, relationship in zip(inserts, relationships, strict=True)
    ]
    return UPDATE, json.dumps({"updates": updates}).encode()


def _relationship(change: Change) -> dict[str, Any]:
    named = dict(zip(("resource", "relation", "subject"), change.triple, strict=True))
    return {**named, "condition": {"mark": change.mark}} if change.mark else {**named}


def _now_us() -> int:
    return time.time_ns() // 1000


@contextmanager
def traffic(world: World, seed: int, *, may_be_patient: bool) -> Iterator[list[Client]]:
    """Clients at every node, which end with the block.

    may_be_patient: half of them repeat what was not answered. A node that forgets its last seconds
    forgets keys, too, and would do a repeated request twice.
    """
    ending = threading.Event()
    dice = random.Random(seed)
    clients = [
        Client(
            name=f"client{index}-{node.name}",
            node=node,
            dice=random.Random(dice.random()),
            ending=ending,
            is_patient=may_be_patient and index % 2 == 0,
        )
        for node in world.nodes
        for index in range(CLIENTS_PER_NODE)
    ]
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield clients
    finally:
        ending.set()
        for thread in threads:
            thread.join(2 * TIMEOUT_S)
