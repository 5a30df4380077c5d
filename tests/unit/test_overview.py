"""`sidecar status`: what a person is shown of a deployment, and that it fits on a terminal."""

import io
from typing import Any

from rich.console import Console

from sidecar.commands.overview import overview, refreshing

WIDTH = 100
REGIONS = ("us-west-1", "eu-central-1", "ap-southeast-1", "sa-east-1")
NODES = {f"node{number}": REGIONS[number // 2] for number in range(8)}


def partition(name: str, **more: Any) -> dict[str, Any]:
    target = {
        "connected": True,
        "unreachable": False,
        "paused": False,
        "lag_ms": 0.0,
        "lag_transactions": 0,
        "backlog": 0,
        "last_error": None,
    }
    return {
        "phase": "serving",
        "origin": f"{name}.mx02rzkn6m3e",
        "unsettled": 0,
        "collection": {"held_by": None},
        "parked": [],
        "targets": {other: dict(target) for other in NODES if other != name},
        **more,
    }


def status(name: str) -> dict[str, Any]:
    return partition(name, status="healthy", reasons=[], partitions={}, database=None, epoch=None)


def deployment() -> dict[str, Any]:
    return {
        "asked_by": "node0",
        "strategy": "active_active",
        "primary": None,
        "epoch": None,
        "nodes": {
            name: {"region": region, "is_reachable": True, "status": status(name)}
            for name, region in NODES.items()
        },
    }


def lines(shown: dict[str, Any], away: str = "", width: int = WIDTH) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, markup=False).print(overview(shown, away))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def row(shown: dict[str, Any], node: str) -> list[str]:
    rows = (line.split() for line in lines(shown)[2 : 3 + len(NODES)])
    return next(cells for cells in rows if cells[1] == node)


def test_eight_nodes_at_their_worst_are_a_row_each_in_a_hundred_columns() -> None:
    shown = deployment()
    for node in shown["nodes"].values():
        one = node["status"]
        one["status"], one["phase"] = "unhealthy", "behind"
        one["epoch"] = {"number": 1234, "region": "us-west-1"}
        one["unsettled"], one["collection"]["held_by"] = 5, "node7"
        one["database"] = {"held": 99_999}
        for target in one["targets"].values():
            target |= {"lag_ms": 7_199_000.0, "lag_transactions": 9_999_999, "backlog": 9_999_999}
    drawn = lines(shown)
    assert max(map(len, drawn)) <= WIDTH
    # Headline, nothing, headings, and the nodes: no cell is folded.
    assert len(drawn) == 3 + len(NODES), drawn
    assert "69M" in drawn[3]


def test_a_sound_deployment_is_its_table_and_nothing_else() -> None:
    shown = deployment()
    assert row(shown, "node2") == [
        *("eu-central-1", "node2", "healthy", "0", "ms", "0", "0", "mx02rzkn6m3e", "–", "free"),
        *("0", "–"),
    ]
    assert len(lines(shown)) == 3 + len(NODES)
    assert lines(shown)[0] == "active_active as node0 sees it"


def test_a_node_that_is_away_shows_what_the_others_have_for_it() -> None:
    shown = deployment()
    shown["nodes"]["node3"] = {
        "region": "eu-central-1",
        "is_reachable": False,
        "error": "nobody answers",
        "known": {"health": "unreachable", "origin": "node3.mx02old", "heard_s": 125.0},
    }
    for name, node in shown["nodes"].items():
        if name != "node3":
            node["status"]["targets"]["node3"] |= {
                "connected": False,
                "unreachable": True,
                "lag_ms": 4_300.0,
                "lag_transactions": 2,
                "backlog": 3,
            }
    assert row(shown, "node3")[2:8] == ["away", "4", "s", "14", "21", "mx02old"]
    text = "\n".join(lines(shown))
    assert "node3 is away: nobody answers; last heard of 2 m ago" in text
    assert "node0: target node3 is unreachable, 3 wait for it" in text


def test_what_is_wrong_stands_below_in_words() -> None:
    shown = deployment()
    one = shown["nodes"]["node1"]["status"]
    one["status"], one["reasons"] = "degraded", ["store is full"]
    one["targets"]["node2"]["paused"] = True
    one["parked"] = [{"origin": "node4.mx"}]
    one["partitions"] = {"set-1.0": partition("node1", parked=[{"origin": "node5.mx"}])}
    text = "\n".join(lines(shown))
    assert "node1: store is full" in text
    assert "node1: parked is node5.mx" in text
    assert row(shown, "node1")[-2] == "2"


def test_text_of_a_peer_does_not_steer_the_terminal() -> None:
    shown = deployment()
    shown["nodes"]["node1"]["status"]["reasons"] = ["\x1b[2Jgone [bold]x"] * 30
    text = "\n".join(lines(shown))
    assert "\x1b" not in text
    assert "[bold]x" in text
    assert "… and 10 more" in text


def test_watching_replaces_what_was_shown_on_a_terminal_and_goes_on_below_in_a_pipe() -> None:
    for is_terminal in (True, False):
        out = io.StringIO()
        console = Console(
            file=out, width=WIDTH, force_terminal=is_terminal, highlight=False, markup=False
        )
        with refreshing(console) as tell:
            tell(deployment(), "")
            tell(deployment(), "nobody answers")
        assert out.getvalue().count("as node0 sees it") >= 2
        assert "NOT NOW: nobody answers" in out.getvalue()
        assert ("\x1b[1A" in out.getvalue()) == is_terminal
