"""One run: nodes, traffic, a schedule of faults; then healing, waiting, and the checkers."""

import contextlib
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.checkers import Finding, Rules, check, check_versions
from tests.chaos.faults import Faults
from tests.chaos.history import Final, Lost, Request
from tests.chaos.schedule import ALWAYS, Fault, Kind, draw
from tests.chaos.traffic import FEW, MANY, traffic
from tests.chaos.variants import BROKEN, tree_with
from tests.waiting import wait_until
from tests.world import REGIONS, ROOT, Node, Triple, World, triple_of

STRATEGIES = ("lww", "source_priority", "insert_wins", "delete_wins")
GOOD_SETTLING_S = 10.0
SETTLING_LIMIT_S = 45.0
MAX_MESSAGE = 4_000
MAX_FINDINGS_TOLD = 8
EVALUATED = [*FEW, *MANY[::30]]
# Faults last seconds, not hours: look again as often.
PROBING = {"probe_interval_max_s": 2, "agent": {"request_timeout_secs": 4}}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. appendfsync: of every Valkey; None: as the product sets it."""

    seed: int
    seconds: float = 120.0
    strategy: str = "lww"
    appendfsync: str | None = None
    has_old_copies: bool = False
    broken: str | None = None

    @property
    def schedule(self) -> list[Fault]:
        kinds = tuple(Kind) if self.has_old_copies else ALWAYS
        return draw(self.seed, self.seconds, [f"node{i + 1}" for i in range(len(REGIONS))], kinds)

    @property
    def may_lose(self) -> bool:
        return self.has_old_copies or self.appendfsync not in (None, "always")

    @property
    def rules(self) -> Rules:
        return Rules(self.strategy, {f"node{i + 1}": i for i in range(len(REGIONS))})

    @property
    def replication(self) -> dict[str, object]:
        rules: dict[str, object] = {"conflict_resolution": self.strategy, **PROBING}
        if self.strategy == "source_priority":
            rules["region_priorities"] = list(REGIONS)
        return rules


@dataclass
class Result:
    """What came of a run; `folder` is kept when there are findings."""

    folder: Path
    findings: list[Finding] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    settled_s: float | None = None
    finals: Sequence[Final] = ()
    lost: Sequence[Lost] = ()

    def add(self, check_name: str, *messages: str) -> None:
        self.findings += [Finding(check_name, message) for message in messages]


def run(plan: Plan) -> Result:
    """Run it. Prints the schedule first, and what came of it last."""
    print(f"SEED={plan.seed} {plan}")
    for fault in plan.schedule:
        print(f"  {fault}")
    with contextlib.ExitStack() as stack:
        tree = stack.enter_context(_tree_of(plan))
        world = World(len(REGIONS), replication=plan.replication, tree=tree)
        stack.callback(world.close)
        result = Result(world.folder)
        faults = Faults(world, may_forget=plan.may_lose)
        try:
            _play(plan, world.start(), faults, result)
            _settle(world, faults, result)
            _look(plan, world, faults, result)
        except AssertionError as error:
            # Its message may hold a whole log.
            result.add("run", str(error)[:MAX_MESSAGE])
        except Exception:
            world.is_kept = True
            print(f"the run itself has failed; SEED={plan.seed}; logs are in {world.folder}")
            raise
        world.is_kept = bool(result.findings)
        _tell(plan, result, faults)
        _keep_history(result)
    return result


@contextlib.contextmanager
def _tree_of(plan: Plan) -> Iterator[Path]:
    if plan.broken is None and plan.appendfsync is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory(prefix="sidecar-tree-") as folder:
        patches = BROKEN[plan.broken].patches if plan.broken else ()
        yield tree_with(Path(folder), patches, plan.appendfsync)


def _play(plan: Plan, world: World, faults: Faults, result: Result) -> None:
    with traffic(world, plan.seed, may_be_patient=not plan.may_lose) as clients:
        faults.play(plan.schedule, plan.seconds)
    result.requests = sorted(
        (request for client in clients for request in client.requests),
        key=lambda request: request.began_us,
    )
    result.add("answers", *(surprise for client in clients for surprise in client.surprises))


def _settle(world: World, faults: Faults, result: Result) -> None:
    """Wait until all is well again; the time counts from the healing of the links on."""
    healed = time.monotonic()
    faults.end()
    result.add("nodes", *faults.surprises)
    try:
        world.settle(SETTLING_LIMIT_S)
    except AssertionError:
        vectors = {node.name: node.vector for node in world.nodes}
        result.add("settling", f"after {SETTLING_LIMIT_S:.0f} s the vectors differ: {vectors}")
        return
    result.settled_s = time.monotonic() - healed
    if result.settled_s > GOOD_SETTLING_S:
        result.add("settling", f"it took {result.settled_s:.1f} s until all vectors were equal")


def _look(plan: Plan, world: World, faults: Faults, result: Result) -> None:
    result.finals = [final_of(node) for node in world.nodes]
    result.lost = _lost(world, result)
    for node in world.nodes:
        if "Traceback" in node.log:
            result.add("logs", f"{node.name} has met an error that it does not know")
    result.findings += check(
        result.requests, result.finals, plan.rules, lost=result.lost, restored=faults.restored
    )


def _lost(world: World, result: Result) -> list[Lost]:
    """What the logs name as lost: said once all nodes agree where an incarnation has ended."""

    def named() -> list[Lost]:
        return [lost for node in world.nodes for lost in lost_in(node.log)]

    def all_are_named() -> bool:
        return not check_versions(result.requests, result.finals, named())

    with contextlib.suppress(AssertionError):
        wait_until(all_are_named, "what is lost is named", GOOD_SETTLING_S)
    return named()


def final_of(node: Node) -> Final:
    return Final(
        node=node.name,
        visible={triple_of(one): mark_of(one) for one in node.export()},
        digest=node.digest(),
        vector=node.vector,
        allowed={triple: _is_allowed(node, triple) for triple in EVALUATED},
    )


def mark_of(relationship: Mapping[str, Any]) -> str | None:
    condition = relationship.get("condition")
    return None if condition is None else str(condition["mark"])


def _is_allowed(node: Node, triple: Triple) -> bool:
    resource, relation, subject = triple
    resource_type, _, resource_id = resource.partition(":")
    subject_type, _, subject_id = subject.partition(":")
    answer = node.post(
        "/access/v1/evaluation",
        {
            "subject": {"type": subject_type, "id": subject_id},
            "action": {"name": relation},
            "resource": {"type": resource_type, "id": resource_id},
        },
    )
    assert answer.status == 200, f"{node.name}: {answer}"
    return bool(answer.body["decision"])


def lost_in(log: str) -> list[Lost]:
    """What a node's log, in its text format, names as lost, or as set aside and written again."""
    found = []
    for line in log.splitlines():
        fields = dict(re.findall(r" (\w+)=(\S+)", line))
        if " incarnation ended, " in line:
            found.append(Lost(fields["origin"], int(fields["after"])))
        elif " new incarnation " in line and fields.get("set_aside", "0") != "0":
            found.append(Lost(fields["before"], 0, is_aside=True))
    return found


def _keep_history(result: Result) -> None:
    if result.findings:
        lines = [str(request) for request in result.requests]
        (result.folder / "history.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        said = [str(finding) for finding in result.findings]
        (result.folder / "findings.txt").write_text("\n".join(said) + "\n", encoding="utf-8")


def _tell(plan: Plan, result: Result, faults: Faults) -> None:
    outcomes = Counter(request.outcome.value for request in result.requests)
    settled = "not settled" if result.settled_s is None else f"settled in {result.settled_s:.2f} s"
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    played = f"{len(plan.schedule) - len(faults.skipped)} faults"
    print(f"{played}; {len(result.requests)} requests: {counts}; {settled}")
    if result.lost:
        print(f"said to be lost: {', '.join(map(str, result.lost))}")
    for finding in result.findings[:MAX_FINDINGS_TOLD]:
        print(finding)
    if result.findings:
        print(
            f"{len(result.findings)} findings; SEED={plan.seed}; all, and logs, in {result.folder}"
        )
