"""What a reload of the topology may change, and that one comes after the other."""

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.config import Config, checked
from sidecar.errors import Refused
from sidecar.reload import MAX_WAITING, Change, Reading, Reloads, change_between

Settings = dict[str, Any]


def region(name: str, *nodes: str, port: int = 9000) -> Settings:
    placed = [{"id": n, "endpoint": f"127.0.0.1:{port + i}"} for i, n in enumerate(nodes)]
    return {"id": name, "zones": [{"id": f"{name}a", "nodes": placed}]}


def settings(**replication: object) -> Settings:
    regions = [region("us", "n1", port=9100), region("eu", "n2", port=9200)]
    return {"node": "n1", "replication": {"local_region": "us", "regions": regions, **replication}}


AP = region("ap", "n3", "n4", port=9300)


Edit = Callable[[Settings], None]


def config(*edits: Edit, **replication: Any) -> Config:
    """The settings of a node in a topology of two regions, and what a test makes of them."""
    written = copy.deepcopy(settings(**replication))
    for edit in edits:
        edit(written)
    return checked(written)


def with_ap(written: Settings) -> None:
    written["replication"]["regions"].append(copy.deepcopy(AP))


# -- what is taken ---------------------------------------------------------------------------------


def test_nothing_is_new_where_the_file_is_the_same() -> None:
    assert change_between(config(), config()) == Change(is_new=False)


def test_nodes_come_and_go() -> None:
    both = Change(is_new=True, added=("n3", "n4"))
    assert change_between(config(), config(with_ap)) == both
    assert change_between(config(with_ap), config()) == Change(is_new=True, removed=("n3", "n4"))


def test_a_node_may_move_and_another_take_its_region() -> None:
    def moved(written: Settings) -> None:
        written["replication"]["regions"][1] = region("eu", "n2", port=9999)

    def renamed(written: Settings) -> None:
        written["replication"]["regions"][1] = region("eu", "n9", port=9200)

    assert change_between(config(), config(moved)) == Change(is_new=True, moved=("n2",))
    expected = Change(is_new=True, added=("n9",), removed=("n2",))
    assert change_between(config(), config(renamed)) == expected


def test_who_ships_to_whom_may_change() -> None:
    def ring(written: Settings) -> None:
        targets = {"us": ["eu"], "eu": ["ap"], "ap": ["us"]}
        written["replication"]["replication_targets"] = targets

    before = config(with_ap)
    after = config(with_ap, ring)
    assert change_between(before, after) == Change(is_new=True)


# -- what is not -----------------------------------------------------------------------------------


def set_in(place: str, value: object) -> Edit:
    def change(written: Settings) -> None:
        *sections, name = place.split(".")
        for section in sections:
            written = written.setdefault(section, {})
        written[name] = value

    return change


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("replication.window", 7),
        ("replication.agent.batch_size", 7),
        ("replication.conflict_resolution", "insert_wins"),
        ("replication.strategy", "multi_master"),
        ("replication.tenants", {"acme": {"home": "eu"}}),
        ("redis.url", "redis://elsewhere"),
        ("listen.app", "127.0.0.1:7777"),
        ("log.level", "debug"),
        ("drain_timeout_s", 3),
        ("database", {"dialect": "passthrough", "url": "http://127.0.0.1:1"}),
    ],
)
def test_another_setting_needs_a_restart_and_is_named(place: str, value: object) -> None:
    with pytest.raises(Refused) as refused:
        change_between(config(), config(with_ap, set_in(place, value)))
    assert (refused.value.code, refused.value.status) == ("needs_restart", 409)
    assert place in refused.value.message
    assert str(value) not in refused.value.message, "what it says may be a secret"


@pytest.mark.parametrize(
    ("here", "why"),
    [
        (region("us", "n1", port=9101), "the endpoint of this node"),
        ({**region("us", "n1", port=9100), "id": "west"}, "the region of this node"),
        (
            {"id": "us", "zones": [{**region("us", "n1", port=9100)["zones"][0], "id": "z"}]},
            "the zone of this node",
        ),
    ],
)
def test_this_node_stays_where_it_is(here: Settings, why: str) -> None:
    def moved(written: Settings) -> None:
        written["replication"]["regions"][0] = here
        del written["replication"]["local_region"]

    def placed(written: Settings) -> None:
        del written["replication"]["local_region"]

    with pytest.raises(Refused, match=why):
        change_between(config(placed), config(moved))


def test_regions_that_have_priorities_belong_to_the_rules(tmp_path: Path) -> None:
    ranked: Settings = {"conflict_resolution": "source_priority", "region_priorities": ["us", "eu"]}
    with pytest.raises(Refused, match="part of the conflict rules"):
        change_between(config(**ranked), config(with_ap, **ranked))
    script = tmp_path / "rule.lua"
    script.write_text("return function(siblings) return 1 end")
    custom: Settings = {"conflict_resolution": "custom", "custom_script": str(script)}
    change = change_between(config(**custom), config(with_ap, **custom))
    assert change.added == ("n3", "n4"), "without priorities a script knows no regions"


# -- one after the other ---------------------------------------------------------------------------


class Node:
    """A node that reads `file` and takes up what it says."""

    def __init__(self) -> None:
        self.file: Config | Refused = config()
        self.taken: list[Config] = []
        self.begun = 0
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.hangup = asyncio.Event()
        self.reloads = Reloads(config(), Reading(self._read, self.hangup), self._adapt)

    def _read(self) -> Config:
        if isinstance(self.file, Refused):
            raise self.file
        return self.file

    async def _adapt(self, after: Config) -> None:
        self.begun += 1
        await self.may_go_on.wait()
        self.taken.append(after)


async def test_what_is_refused_changes_nothing_and_the_next_one_is_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = Node()
    async with asyncio.TaskGroup() as group:
        loop = group.create_task(node.reloads.run())
        node.file = Refused("bad_config", "sidecar.yaml: what is this?")
        with pytest.raises(Refused, match="what is this"):
            await node.reloads.reload()
        assert node.taken == []
        assert "topology not reloaded" in caplog.text
        node.file = config(with_ap)
        assert (await node.reloads.reload()).added == ("n3", "n4")
        assert node.taken == [node.file]
        assert node.reloads.config == node.file
        assert not (await node.reloads.reload()).is_new, "it is the one it goes by now"
        assert node.taken == [node.file]
        loop.cancel()


async def test_a_signal_reloads_and_a_fault_in_the_file_does_not_end_the_node() -> None:
    node = Node()
    async with asyncio.TaskGroup() as group:
        loop = group.create_task(node.reloads.run())
        node.file = Refused("bad_config", "sidecar.yaml: what is this?")
        node.hangup.set()
        while node.hangup.is_set():
            await asyncio.sleep(0)
        with pytest.raises(Refused):
            await node.reloads.reload()
        node.file = config(with_ap)
        node.hangup.set()
        while not node.taken:
            await asyncio.sleep(0)
        assert node.reloads.config == node.file
        loop.cancel()


async def test_who_asks_may_go_away_and_too_many_are_refused() -> None:
    node = Node()
    node.file = config(with_ap)
    node.may_go_on.clear()
    async with asyncio.TaskGroup() as group:
        # One is taken up, and as many wait.
        loop = group.create_task(node.reloads.run())
        first = group.create_task(node.reloads.reload())
        while node.begun == 0:
            await asyncio.sleep(0)
        others = [group.create_task(node.reloads.reload()) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="wait already"):
            await node.reloads.reload()
        first.cancel()
        node.may_go_on.set()
        assert [(await other).is_new for other in others] == [False] * len(others)
        assert node.taken == [node.file], "it was brought to its end all the same"
        loop.cancel()
