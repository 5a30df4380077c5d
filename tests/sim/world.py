"""A seeded world of nodes in simulated time: real sessions, real decisions, stores in memory.

The nodes run `core` and what `agent` decides with it (`Sender`, `Incoming`, `Peers`); the world
carries their frames, lets time pass, and breaks things. What really happened it tells the oracle.
"""

import heapq
import json
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from sidecar.agent import incoming as incoming_module
from sidecar.agent.incoming import Incoming, Intake
from sidecar.agent.orphans import let_go
from sidecar.agent.peers import Peers
from sidecar.core import relationship
from sidecar.core import sender as sender_module
from sidecar.core.conflict import ConflictResolutionStrategy, Rules
from sidecar.core.relationship import Change, Identity, Operation, Relationship, bucket_of
from sidecar.core.routing import Graph, carried, neighbours
from sidecar.core.sender import Action, Close, Limits, ReadStates, Send, Sender
from sidecar.core.session import Party, refuse
from sidecar.core.vector import Vector, Version, is_covered, pointwise_max
from sidecar.core.wire import decode_frame, decode_vector, encode_bucket
from sidecar.errors import SidecarError
from sidecar.store.calls import Bucket, Phase
from tests.sim.memory_store import Disk, MemoryStore
from tests.sim.oracle import Oracle, held
from tests.sim.texts import names_of

MS = 1_000
S = 1_000_000
BEGIN_US = 1_790_000_000_000_000
BUCKETS = 4
TENANT = "default"
KEYS: list[Identity] = [
    (TENANT, f"document:{n}", relation, "user:ann") for n in (1, 2, 3) for relation in ("r", "w")
]
CALM_US = 20 * MS
"""Delay of a link when nothing is wrong with it."""

Answer = TypeVar("Answer")


def run(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    """The result of a coroutine that never has to wait."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("the simulator has no event loop: nothing may wait")


@contextmanager
def few_buckets() -> Iterator[None]:
    """Few tuples need few buckets; 4,096 of them are for real stores."""
    modules = (relationship, sender_module, incoming_module)

    def set_to(count: int) -> None:
        for module in modules:
            module.BUCKETS = count  # type: ignore[attr-defined]
        bucket_of.cache_clear()

    before = relationship.BUCKETS
    set_to(BUCKETS)
    try:
        yield
    finally:
        set_to(before)


@dataclass
class Session:
    """A connection from one node to another, in order both ways, until it breaks."""

    source: "SimNode"
    target: "SimNode"
    sender: Sender
    incoming: Incoming
    origin: str
    is_greeted: bool = False
    is_over: bool = False
    is_reading: bool = False
    is_taking_pages: bool = False
    arrives_us: dict[str, int] = field(default_factory=lambda: {"there": 0, "back": 0})

    def ends(self, way: str) -> tuple["SimNode", "SimNode"]:
        """Who sends a frame and who gets it."""
        if way == "there":
            return self.source, self.target
        return self.target, self.source


async def _no_pause() -> None:
    return


class SimNode:
    """One node: a store that stays, and a process that comes and goes."""

    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name = world, name
        self.skew_us = 0
        self.is_up = False
        self.life = self.began_us = 0
        self.sessions: dict[str, Session] = {}
        self.copies: list[Disk] = []
        self.is_restored = False
        self.store = MemoryStore(
            name,
            world.rules,
            now_us=self.wall_us,
            random_bits=world.rnd.getrandbits,
            has_peers=len(world.names) > 1,
            skew_us=world.skew_limit_us,
        )
        self.store.wrote = world.oracle.note_write
        self.store.begun = world.oracle.note_begun
        self.store.happened = world.happened
        self.party = Party(name, f"r-{name}", "global.0", 1, 1, world.rules.fingerprint)

    def wall_us(self) -> int:
        """The wall clock of this node, microseconds since 1970."""
        return BEGIN_US + self.world.now_us + self.skew_us

    def start(self) -> None:
        """A new process on what the store holds."""
        self.is_up, self.life, self.began_us = True, self.life + 1, self.world.now_us
        self.store.start()
        near = neighbours(self.world.graph, self.name)
        self.peers = Peers(self.store, self.name, self.world.names, lambda: self.world.now_us, near)
        self.intake = Intake()
        life = self.life
        self.world.at(self.world.rnd.randint(0, 500 * MS), lambda: self._pulse(life))
        for target in self.world.graph[self.name]:
            self.world.at(self.world.rnd.randint(0, 50 * MS), lambda t=target: self._dial(t, life))  # type: ignore[misc]

    def configure(self, rules: Rules) -> None:
        """From the next start on it decides by these rules."""
        self.store.rules = rules
        self.party = replace(self.party, rules=rules.fingerprint)

    def stop(self) -> None:
        """The process ends, as kill -9 ends it."""
        self.is_up = False
        for session in self.world.sessions_of(self):
            self.world.break_session(session)

    def _pulse(self, life: int) -> None:
        if self.life != life or not self.is_up:
            return
        if self.store.is_open:
            self.guard(lambda: run(self.peers.tick()))
            self.guard(lambda: run(self.peers.collect(_no_pause)))
            self.guard(lambda: run(let_go(self.store, self.peers)))
            self.world.check_node(self)
        self.world.at(500 * MS, lambda: self._pulse(life))

    def guard(self, step: Callable[[], None]) -> None:
        """A step of a loop: an outage is waited for."""
        try:
            step()
        except SidecarError as failure:
            self.world.note(f"{self.name}: {failure.code}")

    def _dial(self, target: str, life: int) -> None:
        if self.life != life or not self.is_up:
            return
        self.world.connect(self, self.world.nodes[target])
        self.world.at(self.world.rnd.randint(100 * MS, 400 * MS), lambda: self._dial(target, life))


class World:
    """Nodes, links, time and what is known of every write. One seed, one history."""

    def __init__(
        self,
        seed: object,
        strategy: ConflictResolutionStrategy,
        graph: Graph,
        *,
        is_calm: bool = False,
        rules: Rules | None = None,
    ) -> None:
        """is_calm: links lose and repeat nothing, all alike. rules: more than a strategy."""
        self.rnd = random.Random(str(seed))
        self.graph = graph
        self.names = sorted(graph)
        order = self.rnd.sample(self.names, len(self.names))
        uses_priority = strategy is ConflictResolutionStrategy.SOURCE_PRIORITY
        priority = {name: order.index(name) for name in self.names}
        self.rules = rules or Rules(strategy, priority if uses_priority else {})
        self.oracle = Oracle(self.rules)
        self.happened: Counter[str] = Counter()
        self.now_us = 0
        self.events = self.faults = 0
        self.story: list[str] = []
        self._set_weather(is_calm)
        self.cut: set[tuple[str, str]] = set()
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._sessions: list[Session] = []
        self.nodes = {name: SimNode(self, name) for name in self.names}

    def _set_weather(self, is_calm: bool) -> None:
        self.skew_limit_us, self.delay_us = 60 * S, CALM_US
        self.limits = Limits(32, 5, 4 * S)
        self.loss = self.twice = 0.0
        if not is_calm:
            self.skew_limit_us = self.rnd.choice([60 * S, 60 * S, 2 * S])
            self.delay_us = self.rnd.choice([1 * MS, 20 * MS, 150 * MS])
            self.limits = Limits(self.rnd.choice([1, 3, 32]), self.rnd.choice([1, 5, 100]), 4 * S)
            self.loss = self.rnd.choice([0.0, 0.0, 0.02])
            self.twice = self.rnd.choice([0.0, 0.02])

    # -- time -------------------------------------------------------------------------------------

    def at(self, delay_us: int, event: Callable[[], None]) -> None:
        """Let something happen after this time."""
        self._count += 1
        heapq.heappush(self._queue, (self.now_us + delay_us, self._count, event))

    def run_for(self, duration_us: int) -> None:
        """Let time pass."""
        end_us = self.now_us + duration_us
        while self._queue and self._queue[0][0] <= end_us:
            self.now_us, _, event = heapq.heappop(self._queue)
            event()
        self.now_us = end_us

    def run_until(self, holds: Callable[[], bool], limit_us: int) -> bool:
        """Let time pass until something holds; whether it came to that."""
        end_us = self.now_us + limit_us
        while not holds():
            if self.now_us >= end_us:
                return False
            self.run_for(250 * MS)
        return True

    def note(self, text: str) -> None:
        """Tell it in the story of this history."""
        if not self.story or self.story[-1].partition(" ")[2] != text:
            self.story.append(f"{self.now_us / 1e6:.3f} {text}")

    # -- links ------------------------------------------------------------------------------------

    def sessions_of(self, node: SimNode) -> list[Session]:
        """The sessions from and to a node."""
        return [s for s in self._sessions if node in (s.source, s.target)]

    def connect(self, source: SimNode, target: SimNode) -> None:
        """Begin a session, if there is none, nothing is cut and both are there."""
        ways = {(source.name, target.name), (target.name, source.name)}
        is_possible = target.is_up and source.store.is_open and not self.cut & ways
        if target.name in source.sessions or not is_possible:
            return
        mine = source.store.origin
        carries = carried(self.graph, source.name, target.name)
        sender = Sender(source.party, mine, target.name, self.limits, carries)
        regions = {name: f"r-{name}" for name in self.names}
        arriving = Incoming(target.store, target.peers, target.intake, target.party, regions)
        session = Session(source, target, sender, arriving, mine)
        source.sessions[target.name] = session
        self._sessions.append(session)
        run(source.peers.prepare())
        facts = source.peers.facts(to=target.name)
        self._perform(session, sender.hello(facts, self.now_us))
        self.at(self.rnd.randint(0, 250 * MS), lambda: self._tick(session))

    def break_session(self, session: Session) -> None:
        """Both ends notice, which with a cable that was pulled takes a while in the real world."""
        if session.is_over:
            return
        session.is_over = True
        self._sessions.remove(session)
        if session.source.sessions.get(session.target.name) is session:
            del session.source.sessions[session.target.name]
        run(session.incoming.end())

    def _carry(self, session: Session, way: str, frame: str | bytes) -> None:
        sender, receiver = session.ends(way)
        self._check_claims(sender, frame)
        if (sender.name, receiver.name) in self.cut or self.rnd.random() < self.loss:
            return
        arrive = self._arrive_there if way == "there" else self._arrive_back
        for _ in range(2 if self.rnd.random() < self.twice else 1):
            late_us = self.now_us + self.rnd.randint(self.delay_us // 2, self.delay_us)
            if self.rnd.random() >= self.twice:
                # In order, nearly always.
                session.arrives_us[way] = late_us = max(session.arrives_us[way], late_us)
            self.at(late_us - self.now_us, lambda: arrive(session, frame))

    def _check_claims(self, node: SimNode, frame: str | bytes) -> None:
        """Nothing is said to be stored, or to be safe, that is not."""
        head, _ = decode_frame(frame)
        stored, saved = node.store.disk.vector, node.store.saved.vector
        if head["type"] not in ("transfer", "ready"):
            claimed = decode_vector(head.get("vector", {}))
            assert is_covered(claimed, stored), f"{node.name} says {claimed}, it has {stored}"
        safe = decode_vector(head.get("durable", {}))
        assert is_covered(safe, saved), f"{node.name} says {safe} is safe, on disk is {saved}"

    def _arrive_there(self, session: Session, frame: str | bytes) -> None:
        target = session.target
        if session.is_over or not target.is_up:
            return
        head, lines = decode_frame(frame)
        try:
            answer = self._answer(session, head, lines)
        except SidecarError as failure:
            self.note(f"{target.name} refuses {session.source.name}: {failure.code}")
            answer = refuse(failure.code, failure.message)
            self._carry(session, "back", answer)
            self.break_session(session)
            return
        if answer is not None:
            self._note_transfer(session, decode_frame(answer)[0])
            self._carry(session, "back", answer)

    def _answer(
        self, session: Session, head: dict[str, object], lines: bytes
    ) -> str | bytes | None:
        if head["type"] == "hello":
            return None if session.is_greeted else self._greet(session, head)
        if not session.is_greeted or not session.target.store.is_open:
            return None
        if head["type"] == "batch":
            self.events += 1
            return run(session.incoming.on_batches([(head, lines)]))
        return run(session.incoming.on_frame(head, lines))

    def _greet(self, session: Session, head: dict[str, object]) -> str | bytes:
        for older in self.sessions_of(session.target):
            if older is not session and older.source is session.source:
                run(older.incoming.end())
                self.break_session(older)
        answer = run(session.incoming.greet(head))
        session.is_greeted = True
        return answer

    def _note_transfer(self, session: Session, answer: dict[str, object]) -> None:
        match answer["type"]:
            case "ready":
                session.is_taking_pages = True
                self.happened["transfers resumed"] += answer["next"] != 0
            case "busy":
                self.happened["transfers refused"] += 1
            case "done":
                session.is_taking_pages = False
        taking = [s for s in self._sessions if s.target is session.target and s.is_taking_pages]
        assert len(taking) <= 1, f"{session.target.name} takes in two transfers at a time"

    def _arrive_back(self, session: Session, frame: str | bytes) -> None:
        source = session.source
        if session.is_over or not source.is_up or not source.store.is_open:
            return
        head, _ = decode_frame(frame)
        try:
            if head["type"] == "welcome":
                run(source.peers.greeted(session.target.name, head))
            elif head["type"] == "heartbeat":
                run(source.peers.heard(session.target.name, head))
            if source.store.origin != session.origin:
                self.break_session(session)
                return
            self._perform(session, session.sender.on_frame(head, source.peers.here, self.now_us))
        except SidecarError as failure:
            self.note(f"{source.name} ends the session to {session.target.name}: {failure.code}")
            self.break_session(session)

    # -- the sender's loops -----------------------------------------------------------------------

    def _perform(self, session: Session, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Send(frame, _):
                    self._carry(session, "there", frame)
                case ReadStates():
                    late_us = self.rnd.randint(0, 100 * MS)
                    self.at(late_us, lambda asked=action: self._read_states(session, asked))  # type: ignore[misc]
                case Close(code, _):
                    self.note(f"{session.source.name} closes to {session.target.name}: {code}")
                    self.break_session(session)
                    return
        is_in_bounds = session.sender.room >= 0
        assert is_in_bounds, f"more than {self.limits.window} batches are in flight"
        self._pump(session)

    def _pump(self, session: Session) -> None:
        if session.is_reading or not session.sender.room or session.is_over:
            return
        session.is_reading = True
        after = session.sender.position

        def bring() -> None:
            session.is_reading = False
            source = session.source
            if session.is_over or not source.is_up or not source.store.is_open:
                return
            if source.store.origin != session.origin:
                self.break_session(session)
                return
            entries = run(source.store.feed_after(after, self.rnd.randint(1, 20)))
            actions = session.sender.on_entries(after, entries, source.peers.here, self.now_us)
            if actions or session.sender.position != after:
                self._perform(session, actions)

        self.at(self.rnd.randint(1 * MS, 20 * MS), bring)

    def _tick(self, session: Session) -> None:
        source = session.source
        if session.is_over:
            return
        if source.is_up and source.store.is_open:
            if source.store.origin != session.origin:
                self.break_session(session)
                return
            facts = source.peers.facts()
            self._perform(session, session.sender.on_tick(source.peers.here, facts, self.now_us))
        self.at(250 * MS, lambda: self._tick(session))

    def _read_states(self, session: Session, asked: ReadStates) -> None:
        source = session.source
        if session.is_over or not source.is_up or not source.store.is_open:
            return
        states = run(source.store.states(asked.first, self.rnd.randint(1, BUCKETS), 1000))
        lines = [self._line_of(one, states.vector, source.store.disk) for one in states.buckets]

        def send_when_durable() -> None:
            if session.is_over or not source.is_up:
                return
            if not is_covered(states.vector, source.store.durable):
                self.at(50 * MS, send_when_durable)
                return
            actions = session.sender.on_states(asked, states.vector, states.following, lines)
            self._perform(session, actions)

        send_when_durable()

    def _line_of(self, one: Bucket, vector: Vector, disk: Disk) -> bytes:
        """A line of a page, and what only the oracle wants to know of the bucket."""
        line = encode_bucket(one.number, pointwise_max(vector, one.beyond), one.tuples)
        seen = [
            (*names_of(identity), sorted((str(at), origin) for at, origin in versions))
            for identity, versions in disk.seen.items()
            if bucket_of(identity[0], identity[1]) == one.number
        ]
        return line[:-1] + f',"seen":{json.dumps(seen)}}}'.encode()

    # -- what applications do ---------------------------------------------------------------------

    def write(self, name: str, operation: Operation, *identities: Identity) -> Version | None:
        """One write of one or more tuples; None when it was refused."""
        node = self.nodes[name]
        if not node.is_up:
            return None
        changes = [Change(operation, Relationship(*identity)) for identity in identities]
        try:
            version = run(node.store.write(TENANT, changes))
        except SidecarError:
            self.happened["refused"] += 1
            return None
        self.events += 1
        self.oracle.note_acknowledged(version)
        words = ", ".join(f"{identity[1]} {identity[2]}" for identity in identities)
        self.note(f"{name} {operation} {words} as {version}")
        return version

    def insert(self, name: str, identity: Identity = KEYS[0]) -> Version | None:
        """The relationship shall be there."""
        return self.write(name, Operation.INSERT, identity)

    def delete(self, name: str, identity: Identity = KEYS[0]) -> Version | None:
        """The relationship shall not be there."""
        return self.write(name, Operation.DELETE, identity)

    def everywhere(self, identity: Identity = KEYS[0]) -> Version | None:
        """What every node shows; AssertionError when they differ."""
        shown = {name: node.store.visible(identity) for name, node in self.nodes.items()}
        assert len(set(shown.values())) == 1, f"{identity[1:3]} differs: {shown}"
        return next(iter(shown.values()))

    # -- what happens to nodes --------------------------------------------------------------------

    def start(self) -> None:
        """Every node that is not up starts."""
        for node in self.nodes.values():
            if not node.is_up:
                node.start()

    def kill(self, name: str, loses: bool = False) -> None:
        """The process and its server end; with the machine go the writes that were not synced."""
        node = self.nodes[name]
        node.stop()
        self._lose(node, lambda: node.store.crash(loses))
        self.note(f"{name} killed{', losing its last writes' if loses else ''}")

    def crash_server(self, name: str, loses: bool) -> None:
        """The server alone ends and comes back; the process stays."""
        node = self.nodes[name]
        self._lose(node, lambda: node.store.crash(loses))
        self.note(f"the server of {name} restarts{', losing its last writes' if loses else ''}")
        node.store.reopen()

    def restore(self, name: str, copied: Disk) -> None:
        """The node is down and gets an older copy of its files."""
        node = self.nodes[name]
        node.is_restored = True
        self._lose(node, lambda: node.store.restore(copied))
        self.happened["restored"] += 1
        self.note(f"{name} is restored from an older copy")

    def sync(self) -> None:
        """All nodes have on disk what they have."""
        for node in self.nodes.values():
            node.store.sync()

    def _lose(self, node: SimNode, fault: Callable[[], None]) -> None:
        before = held(node.store.disk)
        fault()
        gone = before - held(node.store.disk)
        self.oracle.note_gone(gone, (other.store.disk for other in self.nodes.values()))

    def cut_off(self, *names: str) -> None:
        """Every link of these nodes is cut, both ways, and both ends notice."""
        for name in names:
            for other in self.names:
                self.cut |= {(name, other), (other, name)}
            for session in self.sessions_of(self.nodes[name]):
                self.break_session(session)
        self.note(f"{', '.join(names)} cut off")

    def mend(self) -> None:
        """All links work again."""
        self.cut.clear()

    # -- checkers ---------------------------------------------------------------------------------

    def check_node(self, node: SimNode) -> None:
        """What must hold at any time: of the vector, a tuple, and what is said to be stable."""
        self.oracle.check_vector(node.name, node.store.disk)
        self.oracle.check_tuple(node.name, node.store, self.rnd.choice(KEYS))
        stable = {o: t for o, t in (node.peers.stability.vector or {}).items() if t}
        for other in self.nodes.values():
            # A node from an old copy has less than it once had, and is dealt with when it is met.
            is_wrong = not other.is_restored and not is_covered(stable, other.store.disk.vector)
            assert not is_wrong, f"{node.name} takes for stable what {other.name} has not: {stable}"

    def heal(self) -> None:
        """No more faults: everything runs, clocks agree, links work."""
        self.mend()
        self.loss = self.twice = 0.0
        self.delay_us = CALM_US
        for node in self.nodes.values():
            node.skew_us = 0
        self.start()
        self.sync()

    def is_settled(self) -> bool:
        """All have the same, and nothing is left to be collected."""
        self.sync()
        stores = [node.store for node in self.nodes.values()]
        first = stores[0].vector
        return (
            all(store.phase is Phase.SERVING and store.vector == first for store in stores)
            and not any(run(store.unsettled()) or store.disk.aside for store in stores)
            and not any(store.disk.beyond for store in stores)
        )

    def settle(self, limit_us: int = 90 * S) -> None:
        """Let time pass until nothing is left to do, and check the end."""
        assert self.run_until(self.is_settled, limit_us), self.report(limit_us)
        stores = {name: node.store for name, node in self.nodes.items()}
        self.oracle.check_end(stores, KEYS)

    def report(self, limit_us: int) -> str:
        """Why it has not settled: a paragraph for each node."""
        lines = [f"not settled within {limit_us // S} s of healing"]
        for node in self.nodes.values():
            lines += self._report_of(node)
        return "\n".join(lines)

    def _report_of(self, node: SimNode) -> list[str]:
        store, rows = node.store, node.peers.rows
        left = {i[1:3]: s for i, s in store.disk.tuples.items() if not s.is_settled}
        return [
            f"{node.name} {store.phase} as {store.origin}, behind {dict(store.behind)}",
            f"  vector    {dict(store.vector)}",
            f"  floor     {dict(store.floor)}",
            f"  beyond    {store.disk.beyond}",
            f"  transfer  {store.progress}",
            *(f"  unsettled {names}: {state}" for names, state in left.items()),
            f"  stable    {node.peers.stability}",
            f"  ended     {dict(rows.ended)}",
            *(
                f"  to {target}: established {s.sender.is_established}, sent to "
                f"{s.sender.position}, there {dict(s.sender.target_vector)}"
                for target, s in node.sessions.items()
            ),
        ]
