"""What a target makes of the frames of a state transfer that come twice, late or out of order."""

import pytest

from sidecar.agent.incoming import Incoming
from sidecar.core.conflict import ConflictResolutionStrategy
from sidecar.core.sender import Send, Sender
from sidecar.core.session import Party
from sidecar.core.wire import decode_frame, encode_bucket, encode_vector
from sidecar.errors import Refused
from tests.sim.shapes import mesh
from tests.sim.world import BUCKETS, World, run

Head = dict[str, object]


class Source:
    """The frames of a source with one write, said to a target by hand."""

    def __init__(self) -> None:
        world = World(
            "frames", ConflictResolutionStrategy.LAST_WRITE_WINS, mesh(["p", "q"]), is_calm=True
        )
        node = world.nodes["q"]
        node.start()
        self.store = node.store
        self.origin = "p.mubbs7i8l796"
        self.start = {self.origin: node.store.disk.clock}
        regions = {name: f"r-{name}" for name in world.names}
        self.arriving = Incoming(node.store, node.peers, node.intake, node.party, regions)
        party = Party("p", "r-p", "global.0", 1, 1, world.rules.fingerprint)
        hello, *_ = Sender(party, self.origin, "q", world.limits).hello({"vector": {}}, now_us=0)
        assert isinstance(hello, Send)
        run(self.arriving.greet(decode_frame(hello.frame)[0]))

    def begin(self, number: int) -> Head:
        return self._say(
            {"type": "transfer", "transfer": number, "start": encode_vector(self.start)}
        )

    def page(self, number: int, first: int, following: int) -> object:
        """The bucket that the target says to need after it."""
        head: Head = {"type": "page", "transfer": number, "first": first, "next": following}
        lines = [encode_bucket(one, self.start, []) for one in range(first, following)]
        return self._say(head, b"\n".join(lines))["next"]

    def end(self, number: int) -> Head:
        return self._say({"type": "transfer_end", "transfer": number})

    def _say(self, head: Head, lines: bytes = b"") -> Head:
        return decode_frame(run(self.arriving.on_frame(head, lines)))[0]

    @property
    def has_all(self) -> bool:
        return self.store.disk.vector.get(self.origin) == self.start[self.origin]


def test_pages_in_their_order_bring_everything() -> None:
    source = Source()
    assert source.begin(1)["next"] == 0
    assert [source.page(1, 0, 3), source.page(1, 3, BUCKETS)] == [3, BUCKETS]
    assert not source.has_all
    assert source.end(1)["type"] == "done"
    assert source.has_all


def test_a_page_that_leaves_some_out_is_not_taken() -> None:
    source = Source()
    source.begin(1)
    assert [source.page(1, 0, 1), source.page(1, 2, BUCKETS), source.page(1, 1, 2)] == [1, 1, 2]
    assert 3 not in source.store.disk.beyond


def test_a_page_that_comes_again_takes_nothing_back() -> None:
    source = Source()
    source.begin(1)
    assert [source.page(1, 0, 3), source.page(1, 0, 1), source.page(1, 1, 2)] == [3, 3, 3]


def test_a_late_page_of_an_earlier_transfer_is_not_taken_for_one_of_the_next() -> None:
    source = Source()
    source.begin(1)
    source.page(1, 0, BUCKETS)
    source.end(1)
    source.begin(2)
    assert [source.page(1, 0, BUCKETS), source.page(1, 2, BUCKETS)] == [0, 0]


def test_the_end_of_a_transfer_before_its_last_page_is_refused() -> None:
    source = Source()
    source.begin(1)
    source.page(1, 0, 3)
    with pytest.raises(Refused, match="before its last page"):
        source.end(1)
    assert not source.has_all


def test_a_beginning_that_comes_again_goes_on_where_it_was() -> None:
    source = Source()
    source.begin(1)
    source.page(1, 0, 3)
    assert source.begin(1)["next"] == 3


def test_a_beginning_that_comes_again_after_the_end_begins_nothing() -> None:
    """It would keep every other source out."""
    source = Source()
    source.begin(1)
    source.page(1, 0, BUCKETS)
    source.end(1)
    assert source.begin(1)["type"] == "busy"
    with pytest.raises(Refused, match="was begun"):
        source.page(1, 0, BUCKETS)


@pytest.mark.parametrize("number", [None, "1", 1.5, [1]])
def test_a_transfer_without_a_number_is_a_bad_frame(number: object) -> None:
    with pytest.raises(Refused, match="number"):
        Source().begin(number)  # type: ignore[arg-type]
