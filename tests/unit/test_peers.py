"""What a node concludes from what others tell: of its own incarnation, of what may be collected.

Node a among a, b and c, with a store in memory; b and c are what a test says that they tell.
"""

import json
import random
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from sidecar.agent.incoming import Incoming, Intake
from sidecar.agent.orphans import let_go
from sidecar.agent.peers import PRESENT_US, PROOF_US, Peers
from sidecar.core.conflict import ConflictResolutionStrategy, Rules
from sidecar.core.relationship import Change, Operation, Relationship, bucket_of
from sidecar.core.sender import Limits, Send, Sender
from sidecar.core.session import Party
from sidecar.core.vector import Version, newest_origins
from sidecar.core.wire import decode_frame, encode_vector
from sidecar.errors import Refused, Unavailable
from sidecar.store.calls import Phase, Way
from tests.sim.memory_store import MemoryStore
from tests.sim.texts import names_of
from tests.sim.world import BEGIN_US, KEYS, S, run

LWW = Rules.of(ConflictResolutionStrategy.LAST_WRITE_WINS)
B, B2, C = "b.aaaaaaaa0001", "b.bbbbbbbb0002", "c.aaaaaaaa0001"
FUTURE = "a.zaaaaaaa0001"
Vector = Mapping[str, int]


class Scene:
    """Node a, whose store has just been opened for the first time."""

    def __init__(self, neighbours: Iterable[str] | None = None) -> None:
        self.now_us = 0
        self.store = MemoryStore(
            "a",
            LWW,
            now_us=lambda: BEGIN_US + self.now_us,
            random_bits=random.Random(1).getrandbits,
        )
        self._neighbours = None if neighbours is None else set(neighbours)
        self.start()

    def start(self) -> None:
        """A new process."""
        self.store.start()
        self.peers = Peers(self.store, "a", ["a", "b", "c"], lambda: self.now_us, self._neighbours)

    def restart(self) -> None:
        """The process and its server come back after a while, with all that was written."""
        self.store.crash(loses=False)
        self.pass_s(1)
        self.start()

    def pass_s(self, seconds: float) -> None:
        self.now_us += int(seconds * S)

    def tick(self) -> None:
        run(self.peers.tick())

    def write(self, operation: Operation = Operation.INSERT, key: int = 0) -> Version:
        change = Change(operation, Relationship(*KEYS[key]))
        return run(self.store.write("default", [change]))

    def has_come(self, origin: str, timestamp: int) -> None:
        """An empty transaction of another node, with all before it."""
        line = (
            f'{{"format":1,"origin":"{origin}","timestamp":"{timestamp}","previous":"0",'
            '"context":{},"tenant":"default","changes":[]}'
        )
        run(self.store.merge(line.encode()))

    def greet(self, node: str, vector: Vector | None = None, **facts: object) -> None:
        """A hello of b or c, or its answer to ours. It has what it says, or all that a has."""
        origin = {"b": B, "c": C}[node]
        said = {**self.store.vector, origin: 1} if vector is None else vector
        run(self.peers.greeted(node, head(said, **{"origin": origin, **facts})))

    def hear(self, node: str, vector: Vector, **facts: object) -> None:
        run(self.peers.heard(node, head(vector, **facts)))

    @property
    def phase(self) -> Phase:
        return self.store.phase

    @property
    def origin(self) -> str:
        return self.store.origin


def head(vector: Vector, **facts: object) -> dict[str, object]:
    for name in ("claims", "durable"):
        told = facts.get(name)
        if isinstance(told, Mapping):
            facts[name] = encode_vector(told)
    return {"vector": encode_vector(vector), **facts}


def serving() -> Scene:
    scene = Scene()
    scene.greet("b")
    scene.greet("c")
    assert scene.phase is Phase.SERVING
    return scene


# -- the first start ------------------------------------------------------------------------------


def test_a_fresh_node_is_exposed_until_a_peer_has_told_that_it_knows_no_more_of_it() -> None:
    scene = Scene()
    phases = [scene.phase]
    scene.write()
    scene.greet("b")
    phases.append(scene.phase)
    assert phases == [Phase.EXPOSED, Phase.SERVING]


def test_a_fresh_node_whose_id_has_been_used_before_must_take_back_what_it_had() -> None:
    scene = Scene()
    first = scene.origin
    version = scene.write()
    scene.greet("b", claims={"a.aaaaaaaa0001": 7})
    phases = [scene.phase]
    assert scene.store.behind["a.aaaaaaaa0001"] == 7
    assert scene.origin > first
    assert first not in scene.store.vector, "what it wrote is set aside"
    assert scene.store.visible(KEYS[0]) is None
    with pytest.raises(Unavailable):
        scene.write()
    scene.has_come("a.aaaaaaaa0001", 7)
    scene.tick()
    scene.pass_s(1)
    scene.greet("b", {"a.aaaaaaaa0001": 7}, phase="serving")
    scene.tick()
    phases.append(scene.phase)
    assert phases == [Phase.BEHIND, Phase.SERVING]
    again = scene.store.visible(KEYS[0])
    assert again is not None
    assert again > version, "and written again, as a write of now"
    assert again[1] == scene.origin


# -- a restart ------------------------------------------------------------------------------------


def test_after_a_restart_all_peers_together_prove_that_nothing_is_missing() -> None:
    scene = serving()
    scene.write()
    origin = scene.origin
    scene.restart()
    phases = [scene.phase]
    with pytest.raises(Unavailable):
        scene.write()
    scene.greet("b")
    scene.tick()
    phases.append(scene.phase)
    scene.greet("c")
    phases.append(scene.phase)
    assert phases == [Phase.UNPROVEN, Phase.UNPROVEN, Phase.SERVING]
    assert scene.origin == origin
    scene.write()


def test_only_neighbours_are_asked_for_a_proof() -> None:
    scene = Scene(neighbours=["b"])
    scene.greet("b")
    scene.restart()
    scene.greet("b")
    assert scene.phase is Phase.SERVING


def test_the_same_peer_twice_proves_no_more_than_once() -> None:
    scene = serving()
    scene.restart()
    scene.greet("b")
    scene.greet("b")
    assert scene.phase is Phase.UNPROVEN


def test_a_second_without_proof_begins_an_exposed_incarnation() -> None:
    scene = serving()
    before = scene.write()
    origin = scene.origin
    scene.restart()
    scene.greet("b")
    scene.tick()
    scene.now_us += PROOF_US - 1
    scene.tick()
    phases = [scene.phase]
    scene.now_us += 1
    scene.tick()
    phases.append(scene.phase)
    assert phases == [Phase.UNPROVEN, Phase.EXPOSED]
    assert scene.origin > origin
    assert scene.write() > before
    scene.greet("c")
    assert scene.phase is Phase.SERVING
    assert scene.store.vector[origin] == before[0], "what it had it still has"


def test_a_peer_that_has_more_of_this_node_proves_nothing() -> None:
    """Of an older incarnation: the present one is as whole as before, what is missing comes."""
    scene = Scene()
    scene.has_come("a.aaaaaaaa0001", 5)
    scene.greet("b")
    scene.restart()
    scene.greet("b", {**scene.store.vector, "a.aaaaaaaa0001": 9})
    scene.greet("c")
    assert scene.phase is Phase.UNPROVEN


# -- what was lost --------------------------------------------------------------------------------


def test_writes_that_a_peer_has_and_this_node_has_not_end_the_incarnation() -> None:
    """Nobody had been told that they were durable, but their places must not be used again."""
    scene = serving()
    lost = scene.write()
    scene.store.crash(loses=True)
    scene.start()
    scene.greet("b", {**scene.store.vector, lost[1]: lost[0]})
    assert scene.phase is Phase.SERVING
    assert scene.origin > lost[1]
    assert scene.write() > lost


def test_a_claim_above_the_vector_means_behind() -> None:
    scene = serving()
    copied = scene.store.disk.copy()
    scene.has_come(B, 5)
    lost = scene.write()
    scene.store.restore(copied)
    scene.start()
    claims = {lost[1]: lost[0], B: 5}
    scene.greet("b", claims=claims)
    assert scene.phase is Phase.BEHIND
    assert scene.origin > lost[1]
    assert scene.store.behind.items() >= claims.items()
    with pytest.raises(Unavailable):
        scene.write()


def test_what_is_behind_stays_so_however_often_it_is_told() -> None:
    scene = Scene()
    scene.greet("b", claims={C: 5})
    origin = scene.origin
    scene.greet("b", claims={C: 5})
    scene.greet("c", claims={C: 6})
    assert (scene.phase, scene.origin) == (Phase.BEHIND, origin)


def test_a_loss_is_noticed_also_when_a_peer_hears_of_it_after_the_greeting() -> None:
    """It had lost its own knowledge, and others have brought it meanwhile."""
    scene = serving()
    lost = (scene.store.vector[scene.origin] + 9, scene.origin)
    scene.hear("b", {**scene.store.vector, B: 1, lost[1]: lost[0]}, phase="serving")
    phases = [scene.phase]
    scene.hear("b", {**scene.store.vector, B: 1, lost[1]: lost[0]}, phase="serving")
    phases.append(scene.phase)
    # The answer to a write may come after its way around: not at once.
    assert phases == [Phase.SERVING, Phase.BEHIND]
    assert scene.store.behind[lost[1]] == lost[0]
    assert scene.origin > lost[1]


def test_a_write_that_a_peer_has_before_its_writer_knows_is_no_loss() -> None:
    scene = serving()
    written = scene.write()
    before = {**scene.store.vector, written[1]: written[0] + 1}
    scene.hear("b", before, phase="serving")
    later = scene.write()
    assert later[0] > written[0]
    scene.hear("b", {**scene.store.vector, B: 1}, phase="serving")
    assert (scene.phase, scene.origin) == (Phase.SERVING, written[1])


def test_a_peer_that_knows_a_newer_incarnation_of_this_node_makes_it_begin_a_newer_one() -> None:
    """This one is from a copy that is older than the other."""
    scene = serving()
    scene.greet("b", {**scene.store.vector, FUTURE: 3})
    assert scene.origin > FUTURE
    assert newest_origins(scene.store.vector)["a"] == scene.origin


# -- catching up ----------------------------------------------------------------------------------


def behind(**facts: Any) -> Scene:
    """A node that lacks what it once had of c; b has told so."""
    scene = Scene()
    scene.greet("b", claims={C: 5}, **facts)
    assert scene.phase is Phase.BEHIND
    return scene


def test_a_node_that_has_caught_up_may_write() -> None:
    scene = behind()
    scene.pass_s(1)
    scene.tick()
    scene.pass_s(1)
    scene.greet("b", {B: 1, C: 5}, phase="serving")
    scene.tick()
    phases = [scene.phase]
    scene.has_come(B, 1)
    scene.tick()
    phases.append(scene.phase)
    scene.has_come(C, 5)
    scene.tick()
    phases.append(scene.phase)
    assert phases == [Phase.BEHIND, Phase.BEHIND, Phase.SERVING]
    scene.write()


def test_who_has_not_heard_yet_that_it_has_caught_up_does_not_begin_it_all_again() -> None:
    """What it wrote before it was told is set aside: nobody has it, and others remember it."""
    scene = Scene()
    exposed = scene.write()
    scene.greet("b", {}, claims={C: 5}, phase="serving")
    claims = {C: 5, exposed[1]: exposed[0]}
    scene.greet("c", {C: 5}, claims=claims, phase="serving")
    scene.has_come(C, 5)
    scene.pass_s(1)
    scene.tick()
    scene.pass_s(1)
    scene.greet("c", {C: 5}, claims=claims, phase="serving")
    scene.tick()
    origin = scene.origin
    scene.greet("c", {C: 5}, claims=claims, phase="serving")
    assert (scene.phase, scene.origin) == (Phase.SERVING, origin)
    # A loss of later is noticed.
    scene.greet("c", {C: 5}, claims={**claims, C: 6}, phase="serving")
    assert scene.phase is Phase.BEHIND


def test_it_catches_up_with_everybody_who_is_there() -> None:
    scene = behind()
    scene.tick()
    scene.has_come(C, 5)
    scene.pass_s(0.5)
    scene.greet("b", {C: 5}, phase="serving")
    scene.greet("c", {C: 9}, phase="serving")
    scene.tick()
    phases = [scene.phase]
    # c says nothing more: who has gone need not be waited for.
    scene.pass_s(PRESENT_US / S)
    scene.hear("b", {C: 5}, phase="serving")
    scene.tick()
    phases.append(scene.phase)
    assert phases == [Phase.BEHIND, Phase.SERVING]


@pytest.mark.parametrize("facts", [{"phase": "behind"}, {"phase": "serving", "new": True}], ids=str)
def test_nodes_that_know_no_more_go_on_together_once_all_are_there(
    facts: dict[str, Any],
) -> None:
    scene = behind(**facts)
    scene.tick()
    scene.pass_s(0.5)
    scene.greet("b", {C: 5}, **facts)
    scene.has_come(C, 5)
    scene.tick()
    phases = [scene.phase]
    scene.greet("c", {C: 5}, **facts)
    scene.tick()
    phases.append(scene.phase)
    assert phases == [Phase.BEHIND, Phase.SERVING]


# -- who is believed ------------------------------------------------------------------------------


def test_a_node_that_speaks_for_another_is_refused() -> None:
    scene = Scene()
    for origin in (C, "", None, 5):
        with pytest.raises(Refused) as refused:
            scene.greet("b", origin=origin)
        assert refused.value.code == "bad_frame"
    assert scene.peers.told == {}


def test_what_an_older_incarnation_tells_is_not_taken() -> None:
    scene = serving()
    scene.greet("b", {B2: 4}, origin=B2)
    scene.greet("b", {B: 9}, origin=B, claims={C: 99})
    assert scene.phase is Phase.SERVING
    assert scene.peers.told["b"].origin == B2
    assert scene.peers.is_outdated("b", B)
    assert not scene.peers.is_outdated("b", B2)


def test_an_incarnation_is_outdated_also_when_others_have_brought_the_newer_one() -> None:
    scene = serving()
    scene.has_come(B2, 4)
    assert scene.peers.is_outdated("b", B)


def test_a_heartbeat_of_a_node_that_was_never_greeted_is_nothing() -> None:
    scene = Scene()
    scene.hear("b", {B: 1})
    assert scene.peers.told == {}


def test_a_node_that_serves_with_less_than_it_claimed_has_accepted_its_loss() -> None:
    scene = serving()
    scene.greet("b", {B: 9, C: 9})
    claims = [scene.peers.facts(to="b")["claims"]]
    scene.greet("b", {B: 4, B2: 1}, origin=B2, phase="behind")
    scene.hear("b", {B: 4, B2: 2}, phase="behind")
    claims.append(scene.peers.facts(to="b")["claims"])
    scene.hear("b", {B: 4, B2: 3}, phase="serving")
    claims.append(scene.peers.facts(to="b")["claims"])
    lost = encode_vector({B: 9, C: 9})
    assert [claim.items() >= lost.items() for claim in claims if isinstance(claim, dict)] == [
        *(True, True, False)
    ]
    assert claims[-1] == encode_vector({B: 4, B2: 3})


def test_a_node_that_was_put_back_is_told_its_claims_by_one_that_was_restarted() -> None:
    """They are read before the first word is said, or it would be told that it never had any."""
    scene = serving()
    scene.has_come(B, 9)
    scene.tick()
    scene.greet("b", {B: 9})
    scene.tick()
    scene.restart()
    scene.greet("b", {B: 4})
    assert scene.peers.facts(to="b")["claims"] == encode_vector(scene.peers.rows.known["b"])
    assert scene.peers.rows.known["b"][B] == 9


def with_a_page(timestamp: int = 9) -> Scene:
    """A part of a transfer has come from b, with a write that no vector here has reached."""
    scene = serving()
    number = bucket_of(KEYS[0][0], KEYS[0][1])
    page = {
        "bucket": number,
        "vector": encode_vector({B: timestamp}),
        "tuples": [[*names_of(KEYS[0]), 0, f"+{timestamp} {B}"]],
    }
    run(scene.store.absorb(json.dumps(page).encode(), Way.JOIN, "half"))
    return scene


def test_a_node_is_told_what_only_pages_have_of_it_also_after_a_restart() -> None:
    """They may have come before any row that names its last writes."""
    scene = with_a_page()
    for _ in range(2):
        scene.restart()
        scene.greet("b", {B: 4})
        assert scene.peers.facts(to="b")["claims"] == encode_vector({B: 9})
    # Once it has begun anew the places are not used again, and it has been told.
    scene.greet("b", {B: 4, B2: 1}, origin=B2)
    claims = scene.peers.facts(to="b")["claims"]
    assert claims == encode_vector({B: 4, B2: 1})


def test_what_came_with_a_page_and_its_node_has_lost_is_written_again_once_all_is_here() -> None:
    """Not before: a write that is still on its way here would be overwritten by its time."""
    scene = with_a_page()
    scene.has_come(B, 4)
    scene.has_come(B2, 5)
    scene.has_come(C, 1)
    here = {B: 4, B2: 5, C: 1}
    here[scene.origin] = scene.store.vector[scene.origin]
    scene.store.sync()
    scene.pass_s(1)
    for _ in range(2):  # the oldest row of each is believed first
        scene.greet("b", here, origin=B2)
        scene.greet("c", here)
        scene.tick()
    assert scene.peers.rows.ended == {B: 4}
    shown = []
    for theirs in ({**here, C: 2}, here):
        scene.greet("b", theirs, origin=B2)
        run(let_go(scene.store, scene.peers))
        shown.append(scene.store.visible(KEYS[0]))
    assert shown[0] == (9, B)
    assert shown[1] is not None
    assert shown[1][1] == scene.origin
    assert run(scene.store.taken()) == {}


@pytest.mark.parametrize(
    "name", ["a.x", "a.", "a", "a.zzzzzzzz0001", "a.mwsgf5b!35gt", "a." + "m" * 99]
)
@pytest.mark.parametrize("where", ["vector", "claims"])
def test_a_name_above_which_there_is_none_is_refused(name: str, where: str) -> None:
    """This node would have to begin an incarnation that is greater."""
    scene = serving()
    origin = scene.origin
    with pytest.raises(Refused) as refused:
        scene.greet("b", **{where: {name: 5}})
    assert refused.value.code == "bad_frame"
    assert (scene.phase, scene.origin) == (Phase.SERVING, origin)


# -- sessions -------------------------------------------------------------------------------------


def session_of(scene: Scene, origin: str) -> Incoming:
    """A session of b to a, greeted."""
    parties = {n: Party(n, f"r-{n}", "global.0", 1, 1, LWW.fingerprint) for n in "ab"}
    regions = {"a": "r-a", "b": "r-b", "c": "r-c"}
    arriving = Incoming(scene.store, scene.peers, Intake(), parties["a"], regions)
    sender = Sender(parties["b"], origin, "a", Limits(1, 1, S))
    (hello,) = sender.hello({"vector": encode_vector({origin: 1})}, now_us=0)
    assert isinstance(hello, Send)
    said, _ = decode_frame(hello.frame)
    answer, _ = decode_frame(run(arriving.greet(said)))
    assert answer["type"] == "welcome"
    return arriving


def line_of(origin: str) -> tuple[dict[str, object], bytes]:
    line = (
        f'{{"format":1,"origin":"{origin}","timestamp":"9","previous":"0",'
        '"context":{},"tenant":"default","changes":[]}'
    )
    return {"type": "batch", "batch": 1}, line.encode()


def test_nothing_is_merged_from_a_session_of_an_older_incarnation() -> None:
    scene = serving()
    older = session_of(scene, B)
    newer = session_of(scene, B2)
    with pytest.raises(Refused) as refused:
        run(older.on_batches([line_of(B)]))
    assert refused.value.code == "old_incarnation"
    assert B not in scene.store.vector
    run(newer.on_batches([line_of(B2)]))
    assert scene.store.vector[B2] == 9


def test_nothing_is_merged_by_a_session_from_before_this_node_began_anew() -> None:
    """The vector that it was told is no longer true."""
    scene = serving()
    arriving = session_of(scene, B)
    run(scene.peers.begin({}))
    with pytest.raises(Unavailable) as over:
        run(arriving.on_batches([line_of(B)]))
    assert over.value.code == "new_incarnation"
    assert B not in scene.store.vector


# -- collection -----------------------------------------------------------------------------------


async def no_pause() -> None:
    return


def test_a_deleted_tuple_goes_when_every_node_is_known_to_have_it() -> None:
    scene = serving()
    scene.write()
    scene.write(Operation.DELETE)
    scene.store.sync()
    scene.has_come(B, 1)
    scene.has_come(C, 1)
    scene.store.sync()
    unsettled = []
    for node, origin in (("b", B), ("c", C)):
        scene.tick()
        run(scene.peers.collect(no_pause))
        unsettled.append(run(scene.store.unsettled()))
        scene.greet(node, {**scene.store.vector, origin: 1})
    held_by = scene.peers.stability.held_by
    scene.tick()
    run(scene.peers.collect(no_pause))
    assert unsettled == [1, 1]
    assert held_by == "c"
    assert scene.peers.stability.held_by is None
    assert run(scene.store.unsettled()) == 0
    assert KEYS[0] not in scene.store.disk.tuples


def test_rows_that_were_believed_are_there_after_a_restart() -> None:
    scene = serving()
    scene.has_come(B, 1)
    scene.tick()
    row = scene.peers.rows.known["b"]
    is_new = [scene.peers.is_new]
    scene.restart()
    is_new.append(scene.peers.is_new)
    scene.greet("c")
    assert scene.peers.rows.known["b"] == row
    is_new.append(scene.peers.is_new)
    assert is_new == [False, True, False]


def test_the_end_of_an_incarnation_of_this_node_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = serving()
    version = scene.write()
    run(scene.peers.begin({}))
    scene.has_come(B, 1)
    scene.has_come(C, 1)
    scene.store.sync()
    for _ in range(3):
        # The rows from before come first, then those that name the new incarnation.
        scene.greet("b")
        scene.greet("c")
        scene.tick()
    said = [r for r in caplog.records if r.message.startswith("incarnation ended")]
    assert [(getattr(r, "origin", ""), getattr(r, "after", 0)) for r in said] == [
        (version[1], version[0])
    ]
