"""A seeded world of nodes in simulated time: real sessions, real decisions, stores in memory.

The nodes run `core` and what `agent` decides with it (`Sender`, `Incoming`, `Peers`); the world
carries their frames, lets time pass, and breaks things. It also keeps what only an outsider can
know: for every write the writes that its writer had really seen, whatever vectors say.
"""

import heapq
import json
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sidecar.agent import incoming as incoming_module
from sidecar.agent.incoming import Incoming, Intake
from sidecar.agent.peers import Peers
from sidecar.core import relationship
from sidecar.core import session as session_module
from sidecar.core.conflict import ConflictResolutionStrategy, Rules
from sidecar.core.relationship import Change, Identity, Operation, Relationship, bucket_of
from sidecar.core.routing import Graph, carried, neighbours
from sidecar.core.session import Action, Close, Limits, Party, ReadStates, Send, Sender, refuse
from sidecar.core.vector import Version, is_covered, pointwise_max
from sidecar.core.wire import decode_frame, encode_bucket
from sidecar.errors import SidecarError
from sidecar.store.calls import Phase
from tests.sim.memory_store import Disk, MemoryStore

MS = 1_000
S = 1_000_000
BEGIN_US = 1_790_000_000_000_000
BUCKETS = 4
TENANT = "default"
KEYS: list[Identity] = [
    (TENANT, f"document:{n}", relation, "user:ann") for n in (1, 2, 3) for relation in ("r", "w")
]

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
    modules = (relationship, session_module, incoming_module)
    for module in modules:
        module.BUCKETS = BUCKETS  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in modules:
            module.BUCKETS = 4096  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Write:
    """A write that was acknowledged, and the writes of its tuple that its writer had seen."""

    identity: Identity
    operation: Operation
    past: frozenset[Version]


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
    arrives_us: dict[str, int] = field(default_factory=lambda: {"there": 0, "back": 0})
    is_reading: bool = False


class SimNode:
    """One node: a store that stays, and a process that comes and goes."""

    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name = world, name
        self.skew_us = 0
        self.is_up = False
        self.life = 0
        self.sessions: dict[str, Session] = {}
        self.copies: list[Disk] = []
        self.store = MemoryStore(
            name,
            world.rules,
            now_us=self.wall_us,
            random_bits=world.rnd.getrandbits,
            has_peers=len(world.names) > 1,
            skew_us=world.skew_limit_us,
        )
        self.store.wrote = world.note_write
        self.party = Party(name, f"r-{name}", "global.0", 1, 1, world.rules.fingerprint)

    def wall_us(self) -> int:
        return BEGIN_US + self.world.now_us + self.skew_us

    def start(self) -> None:
        """A new process on what the store holds."""
        self.is_up, self.life = True, self.life + 1
        self.store.start()
        near = neighbours(self.world.graph, self.name)
        self.peers = Peers(self.store, self.name, self.world.names, lambda: self.world.now_us, near)
        self.intake = Intake()
        life = self.life
        self.world.at(self.world.rnd.randint(0, 500 * MS), lambda: self._pulse(life))
        for target in self.world.graph[self.name]:
            self.world.at(self.world.rnd.randint(0, 50 * MS), lambda t=target: self._dial(t, life))  # type: ignore[misc]

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
            run(self.store.let_go(self.peers.rows.ended))
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


async def _no_pause() -> None:
    return


class World:
    """Nodes, links, time and what is known of every write. One seed, one history."""

    def __init__(
        self,
        seed: int,
        strategy: ConflictResolutionStrategy,
        graph: Graph | None = None,
        **options: Any,
    ) -> None:
        self.rnd = random.Random(seed)
        self.graph: Graph = graph or random_graph(self.rnd)
        self.names = sorted(self.graph)
        order = self.rnd.sample(self.names, len(self.names))
        priority = {name: order.index(name) for name in self.names}
        uses = strategy is ConflictResolutionStrategy.SOURCE_PRIORITY
        self.rules = Rules(strategy, priority if uses else {})
        self.now_us = 0
        self.events = 0
        self.faults = 0
        self.story: list[str] = []
        self.skew_limit_us = options.get("skew_limit_us", self.rnd.choice([60 * S, 60 * S, 2 * S]))
        self.delay_us = self.rnd.choice([1 * MS, 20 * MS, 150 * MS])
        self.limits = Limits(self.rnd.choice([1, 3, 32]), self.rnd.choice([1, 5, 100]), 4 * S)
        self.loss = self.rnd.choice([0.0, 0.0, 0.02])
        self.twice = self.rnd.choice([0.0, 0.02])
        self.cut: set[tuple[str, str]] = set()
        self.writes: dict[Version, Write] = {}
        self.acknowledged: set[Version] = set()
        self.dropped: set[Version] = set()
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._sessions: list[Session] = []
        self.nodes = {name: SimNode(self, name) for name in self.names}

    # -- time -------------------------------------------------------------------------------------

    def at(self, delay_us: int, event: Callable[[], None]) -> None:
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
        if not self.story or self.story[-1].partition(" ")[2] != text:
            self.story.append(f"{self.now_us / 1e6:.3f} {text}")

    # -- links ------------------------------------------------------------------------------------

    def sessions_of(self, node: SimNode) -> list[Session]:
        return [s for s in self._sessions if node in (s.source, s.target)]

    def connect(self, source: SimNode, target: SimNode) -> None:
        if target.name in source.sessions or not source.store.is_open:
            return
        is_there = target.is_up and not self.cut & {
            (source.name, target.name),
            (target.name, source.name),
        }
        if not is_there:
            return
        sender = Sender(
            source.party,
            source.store.origin,
            target.name,
            self.limits,
            carried(self.graph, source.name, target.name),
        )
        regions = {name: f"r-{name}" for name in self.names}
        arriving = Incoming(target.store, target.peers, target.intake, target.party, regions)
        session = Session(source, target, sender, arriving, source.store.origin)
        source.sessions[target.name] = session
        self._sessions.append(session)
        run(source.peers.restore())
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
        ends = (session.source.name, session.target.name)
        if (ends if way == "there" else ends[::-1]) in self.cut or self.rnd.random() < self.loss:
            return
        for _ in range(2 if self.rnd.random() < self.twice else 1):
            late_us = self.now_us + self.rnd.randint(self.delay_us // 2, self.delay_us)
            if self.rnd.random() >= self.twice:
                # In order, nearly always.
                session.arrives_us[way] = late_us = max(session.arrives_us[way], late_us)
            arrive = self._arrive_there if way == "there" else self._arrive_back
            self.at(late_us - self.now_us, lambda a=arrive: a(session, frame))  # type: ignore[misc]

    def _arrive_there(self, session: Session, frame: str | bytes) -> None:
        target = session.target
        if session.is_over or not target.is_up:
            return
        head, lines = decode_frame(frame)
        try:
            if head["type"] == "hello":
                if session.is_greeted:
                    return
                for older in self.sessions_of(target):
                    if older is not session and older.source is session.source:
                        run(older.incoming.end())
                        self.break_session(older)
                answer = run(session.incoming.greet(head))
                session.is_greeted = True
            elif not session.is_greeted or not target.store.is_open:
                return
            elif head["type"] == "batch":
                self.events += 1
                answer = run(session.incoming.on_batches([(head, lines)]))
            else:
                answer = run(session.incoming.on_frame(head, lines))
            self._carry(session, "back", answer)
        except SidecarError as failure:
            self.note(f"{target.name} refuses {session.source.name}: {failure.code}")
            self._carry(session, "back", refuse(failure.code, failure.message))
            self.break_session(session)

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
                case ReadStates(first):
                    late_us = self.rnd.randint(0, 100 * MS)
                    self.at(late_us, lambda f=first: self._read_states(session, f))  # type: ignore[misc]
                case Close(code, _):
                    self.note(f"{session.source.name} closes to {session.target.name}: {code}")
                    self.break_session(session)
                    return
        assert len(session.sender._in_flight) <= self.limits.window
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

    def _read_states(self, session: Session, first: int) -> None:
        source = session.source
        if session.is_over or not source.is_up or not source.store.is_open:
            return
        states = run(source.store.states(first, self.rnd.randint(1, BUCKETS), 1000))
        seen = dict(source.store.disk.seen)
        lines = []
        for one in states.buckets:
            line = encode_bucket(
                one.number, pointwise_max(states.vector, one.beyond), one.tuples
            ).decode()
            known = [
                (f"{t}/{r}", f"{n}#{s}", sorted((str(at), origin) for at, origin in versions))
                for (t, r, n, s), versions in seen.items()
                if bucket_of(t, r) == one.number
            ]
            lines.append(f'{line[:-1]},"seen":{json.dumps(known)}}}'.encode())

        def send_when_durable() -> None:
            if session.is_over or not source.is_up:
                return
            if not is_covered(states.vector, source.store.durable):
                self.at(50 * MS, send_when_durable)
                return
            actions = session.sender.on_states(states.vector, states.following, lines)
            self._perform(session, actions)

        send_when_durable()

    # -- what applications do ---------------------------------------------------------------------

    def note_write(self, version: Version, change: Change, past: frozenset[Version]) -> None:
        """Called by stores: also what was set aside is written like this."""
        identity = change.relationship.identity
        mine = self.writes.get(version)
        assert mine is None or mine.identity != identity, f"{version} is used twice"
        if mine is None:
            self.writes[version] = Write(identity, change.operation, past)

    def write(self, name: str, operation: Operation, identity: Identity) -> Version | None:
        """One write; None when it was refused."""
        node = self.nodes[name]
        if not node.is_up:
            return None
        try:
            version = run(node.store.write(TENANT, [Change(operation, Relationship(*identity))]))
        except SidecarError:
            return None
        self.events += 1
        self.acknowledged.add(version)
        self.note(f"{name} {operation} {identity[1]} {identity[2]} as {version}")
        return version

    def insert(self, name: str, identity: Identity = KEYS[0]) -> Version | None:
        return self.write(name, Operation.INSERT, identity)

    def delete(self, name: str, identity: Identity = KEYS[0]) -> Version | None:
        return self.write(name, Operation.DELETE, identity)

    # -- what happens to nodes --------------------------------------------------------------------

    def start(self) -> None:
        for node in self.nodes.values():
            node.start()

    def kill(self, name: str, loses: bool = False) -> None:
        """The process and its server end; with the machine go the writes that were not synced."""
        node = self.nodes[name]
        before = self._held(node)
        node.stop()
        node.store.crash(loses)
        self._note_dropped(node, before)
        self.note(f"{name} killed{', losing its last writes' if loses else ''}")

    def crash_server(self, name: str, loses: bool) -> None:
        """The server alone ends and comes back; the process stays."""
        node = self.nodes[name]
        before = self._held(node)
        node.store.crash(loses)
        self._note_dropped(node, before)
        self.note(f"the server of {name} restarts{', losing its last writes' if loses else ''}")
        node.store.reopen()

    def restore(self, name: str, copied: Disk) -> None:
        """The node is down and gets an older copy of its files."""
        node = self.nodes[name]
        before = self._held(node)
        node.store.restore(copied)
        self._note_dropped(node, before)
        self.note(f"{name} is restored from an older copy")

    def sync(self) -> None:
        for node in self.nodes.values():
            node.store.sync()

    def _held(self, node: SimNode) -> set[Version]:
        return {v for versions in node.store.disk.seen.values() for v in versions}

    def _note_dropped(self, node: SimNode, before: set[Version]) -> None:
        self.dropped |= before - self._held(node)

    # -- checkers ---------------------------------------------------------------------------------

    def heal(self) -> None:
        """No more faults: everything runs, clocks agree, links work."""
        self.cut.clear()
        self.loss = self.twice = 0.0
        self.delay_us = 20 * MS
        for node in self.nodes.values():
            node.skew_us = 0
            if not node.is_up:
                node.start()
            node.store.sync()

    def is_settled(self) -> bool:
        """All have the same, and nothing is left to be collected."""
        self.sync()
        stores = [node.store for node in self.nodes.values()]
        first = stores[0].vector
        return (
            all(store.phase is Phase.SERVING and store.vector == first for store in stores)
            and not any(run(store.unsettled()) for store in stores)
            and not any(store.disk.beyond for store in stores)
        )

    def check(self) -> None:
        """After healing. Raises AssertionError with what is wrong."""
        survived: dict[Identity, set[Version]] = {}
        for node in self.nodes.values():
            for identity, versions in node.store.disk.seen.items():
                survived.setdefault(identity, set()).update(versions)
        everywhere = set().union(*survived.values()) if survived else set()
        undone = {v for v in self.acknowledged if v not in everywhere}
        assert undone <= self.dropped | self.aside, f"lost: {sorted(undone - self.dropped)}"
        for identity in KEYS:
            mine = {v: self.writes[v] for v in survived.get(identity, ())}
            overwritten = frozenset().union(*(write.past for write in mine.values()))
            maximal = {v: write for v, write in mine.items() if v not in overwritten}
            expected = self._winner(maximal)
            found = {name: node.store.visible(identity) for name, node in self.nodes.items()}
            assert set(found.values()) == {expected}, (
                f"{identity[1]} {identity[2]}: expected {expected}, found {found}"
            )
            held = [node.store.disk.tuples.get(identity) for node in self.nodes.values()]
            assert all(state == held[0] for state in held), f"states differ: {held}"

    @property
    def aside(self) -> set[Version]:
        """Acknowledged writes of incarnations that no vector names: they were written again."""
        named = {o for node in self.nodes.values() for o in node.store.vector}
        return {version for version in self.acknowledged if version[1] not in named}

    def _winner(self, maximal: dict[Version, Write]) -> Version | None:
        """By the strategy, from its words in the README; not by the code under test."""
        if not maximal:
            return None
        priority, strategy = self.rules.priority, self.rules.strategy

        def rank(version: Version) -> tuple[object, ...]:
            node, _, name = version[1].partition(".")
            last = (version[0], node.encode(), name.encode())
            is_insert = maximal[version].operation is Operation.INSERT
            match strategy:
                case ConflictResolutionStrategy.SOURCE_PRIORITY:
                    return (priority[node], *last)
                case ConflictResolutionStrategy.INSERT_WINS:
                    return (is_insert, *last)
                case ConflictResolutionStrategy.DELETE_WINS:
                    return (not is_insert, *last)
                case _:
                    return last

        best = max(maximal, key=rank)
        return best if maximal[best].operation is Operation.INSERT else None


def mesh(names: Sequence[str]) -> Graph:
    return {a: [b for b in names if b != a] for a in names}


def ring(names: Sequence[str]) -> Graph:
    n = len(names)
    return {a: sorted({names[(i + 1) % n], names[i - 1]} - {a}) for i, a in enumerate(names)}


def one_way_ring(names: Sequence[str]) -> Graph:
    return {a: [names[(i + 1) % len(names)]] for i, a in enumerate(names)}


def chain(names: Sequence[str]) -> Graph:
    return {
        a: list(names[max(i - 1, 0) : i]) + list(names[i + 1 : i + 2]) for i, a in enumerate(names)
    }


def star(names: Sequence[str]) -> Graph:
    return {a: list(names[1:]) if a == names[0] else [names[0]] for a in names}


SHAPES = {
    "mesh": (mesh, (2, 3, 4)),
    "ring": (ring, (3, 4, 5)),
    "one-way ring": (one_way_ring, (3, 4)),
    "chain": (chain, (3, 4)),
    "star": (star, (3, 4, 5)),
}


def random_graph(rnd: random.Random, shape: str | None = None) -> Graph:
    make, sizes = SHAPES[shape or rnd.choice(sorted(SHAPES))]
    names = rnd.sample(["n", "n-1", "n0", "n1", "n2"], rnd.choice(sizes))
    return make(names)
