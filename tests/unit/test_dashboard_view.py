"""What the dashboard makes of what nodes say: words for links and nodes, whatever they say."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sidecar.admin.view import (
    LATE_MS,
    MAX_PARKED,
    MAX_TEXT,
    SILENT_MS,
    STALE_MS,
    LinkState,
    NodeState,
    Seen,
    deployment,
    links_of,
    node_shown,
)
from sidecar.core.topology import Node, NodeId, RegionId, ZoneId

HERE = Node(NodeId("node1"), RegionId("us"), ZoneId("us-a"), "127.0.0.1:1")
THERE = Node(NodeId("node2"), RegionId("eu"), ZoneId("eu-a"), "127.0.0.1:2")


def target(**told: Any) -> dict[str, Any]:
    return {"connected": True, "heard_ms_ago": 100, "lag_ms": 0.0, "backlog": 0, **told}


def status(of: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    targets = {"node2": target()} if of is None else {"node2": of}
    return {"status": "healthy", "reasons": [], "targets": targets, "transfers_out": {}, **more}


def seen(told: dict[str, Any] | None, age_ms: float | None = 50, error: str | None = None) -> Seen:
    return Seen(HERE, told, age_ms, error)


def link(told: dict[str, Any] | None, age_ms: float | None = 50, **more: Any) -> dict[str, Any]:
    (one,) = links_of(seen(told, age_ms, **more), ["node2"])
    return one


def test_a_link_has_the_word_that_fits_its_lag() -> None:
    for lag_ms, word in (
        (0, LinkState.FRESH),
        (LATE_MS - 1, LinkState.FRESH),
        (LATE_MS, LinkState.LATE),
        (STALE_MS, LinkState.STALE),
    ):
        assert link(status(target(lag_ms=lag_ms)))["state"] == word


def test_a_target_that_is_not_heard_of_is_silent_before_the_session_ends() -> None:
    """Nothing has failed yet: only the heartbeats have stopped."""
    assert link(status(target(heard_ms_ago=SILENT_MS - 100)))["state"] == LinkState.FRESH
    silent = link(status(target(heard_ms_ago=SILENT_MS - 10)))
    assert (silent["state"], silent["silent_ms"]) == (LinkState.SILENT, SILENT_MS + 40)
    cut = link(status(target(connected=False, last_error="no answer")))
    assert (cut["state"], cut["error"]) == (LinkState.CUT, "no answer")


def test_a_state_transfer_shows_how_far_it_is() -> None:
    one = link(status(transfers_out={"node2": {"buckets": 1024, "of": 4096}}))
    assert (one["state"], one["transfer"]) == (LinkState.TRANSFER, 0.25)


def test_the_worst_partition_counts_and_backlogs_add_up() -> None:
    bound = {"regions": ["us", "eu"], "targets": {"node2": target(connected=False, backlog=5)}}
    one = link(status(target(backlog=2, lag_ms=20), partitions={"set-1.0": bound}))
    assert (one["state"], one["backlog"], one["lag_ms"]) == (LinkState.CUT, 7, 20)


def test_of_a_node_that_does_not_answer_the_links_are_not_known() -> None:
    """Also where it said something before: that may have changed since."""
    for told in (None, status()):
        one = link(told, error="127.0.0.1:1 cannot be asked")
        assert (one["from"], one["to"], one["state"]) == ("node1", "node2", LinkState.UNKNOWN)


def test_a_node_has_the_word_that_fits_what_it_says() -> None:
    for one, word in (
        (seen(status()), NodeState.HEALTHY),
        (seen(status(status="degraded", reasons=["store is full"])), NodeState.DEGRADED),
        (seen(status(status="unhealthy", reasons=["store: away"])), NodeState.UNHEALTHY),
        (seen(status(), SILENT_MS + 1), NodeState.SILENT),
        (seen(status(), 50, "no answer"), NodeState.UNREACHABLE),
        (seen(None, None), NodeState.SILENT),
    ):
        assert node_shown(one)["state"] == word


def test_a_node_that_others_reach_is_not_called_gone() -> None:
    """Only the way from here is cut: whoever looks elsewhere sees it."""
    silent = Seen(THERE, None, None, "no answer")

    def state(told: dict[str, Any]) -> tuple[str, list[str]]:
        shown, _ = deployment([seen(told), silent], {}, "node3")
        return shown["nodes"][1]["state"], shown["nodes"][1]["reached_by"]

    assert state(status()) == (NodeState.APART, ["node1"])
    assert state(status(target(connected=False))) == (NodeState.UNREACHABLE, [])


def test_figures_of_all_partitions_add_up_and_who_holds_back_collection_is_named_once() -> None:
    held: dict[str, Any] = {"collection": {"held_by": "node2"}, "unsettled": 3, "feed_length": 10}
    idle: dict[str, Any] = {"collection": {"held_by": "node3"}, "unsettled": 0, "feed_length": 5}
    node = node_shown(seen(status(**held, partitions={"a": held, "b": idle})))
    assert (node["unsettled"], node["feed_length"], node["held_by"]) == (6, 25, ["node2"])


def test_states_are_news_and_figures_are_not() -> None:
    def states(told: dict[str, Any]) -> str:
        return deployment([seen(told), Seen(THERE, status({}), 50)], {}, "node1")[1]

    assert states(status(target(lag_ms=1))) == states(status(target(lag_ms=2)))
    assert states(status(target(lag_ms=1))) != states(status(target(connected=False)))


def test_only_so_many_parked_transactions_and_so_long_texts_are_shown() -> None:
    row = {"origin": "node2.x", "timestamp": "1", "reason": "x" * 2 * MAX_TEXT, "since": "1"}
    shown, _ = deployment([seen(status(parked=[row] * (MAX_PARKED + 7)))], {}, "node1")
    assert (len(shown["parked"]), shown["parked_total"]) == (MAX_PARKED, MAX_PARKED + 7)
    assert len(shown["parked"][0]["reason"]) == MAX_TEXT


WORDS = (
    *("targets", "node2", "lag_ms", "connected", "transfers_out", "buckets", "of", "partitions"),
    *("reasons", "parked", "database", "regions", "collection", "held_by", "unsettled"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(WORDS),
            inner,
            max_size=6,
        )
    ),
    max_leaves=25,
)


@given(said=st.dictionaries(st.sampled_from(list(status())), JSON))
def test_a_node_may_say_what_it_likes(said: dict[str, Any]) -> None:
    """It may be of a release to come, or no sidecar at all; the others are shown all the same."""
    shown, _ = deployment([seen(said), Seen(THERE, status({}), 50)], {"node1": ["node2"]}, "node1")
    assert [node["id"] for node in shown["nodes"]] == ["node1", "node2"]
    assert shown["nodes"][1]["state"] == NodeState.HEALTHY
