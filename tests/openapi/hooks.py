"""What schemathesis cannot know: what only a node can give, and what no schema can say.

Loaded by schemathesis itself (`SCHEMATHESIS_HOOKS`), in a process of its own.
"""

import os
import re
import uuid
from datetime import UTC, datetime
from typing import Any

import schemathesis
from hypothesis import strategies as st

from sidecar.core.relationship import NAME_PATTERN, RESOURCE_PATTERN

KEY, CURSOR = "Idempotency-Key", "a-cursor"
BEGIN, END = (datetime(year, 1, 1) for year in (2100, 9990))  # noqa: DTZ001 - hypothesis adds it

FORMATS: dict[str, st.SearchStrategy[Any]] = {
    "revision-token": st.just(os.environ["SIDECAR_TEST_TOKEN"]),
    "target": st.just(os.environ["SIDECAR_TEST_TARGET"]),
    "partition": st.just("global.0"),
    "cursor": st.just(CURSOR),
    "conflict-cursor": st.just("1790000000000000-0"),
    "idempotency-key": st.just(KEY),
    # In the future, so that what is written can be seen.
    "date-time": st.datetimes(BEGIN, END, timezones=st.just(UTC)).map(datetime.isoformat),
}
for name, values in FORMATS.items():
    schemathesis.openapi.format(name, values)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Mend what is valid each for itself, and not together: what is wrong stays as it is."""
    if case.headers and case.headers.get(KEY) == KEY:
        # One that was used for another request is refused.
        case.headers[KEY] = uuid.uuid4().hex
    if isinstance(case.body, dict):
        if case.body.get("cursor") == CURSOR:
            # There is none before the first page.
            case.body["cursor"] = None
        for wanted in (case.body, case.body.get("filter")):
            _of_one_type(wanted)
        _distinct(case.body.get("relationships", case.body.get("updates")))


def _of_one_type(wanted: Any) -> None:
    """A resource of one type is none of another."""
    if not isinstance(wanted, dict):
        return
    kind, resource = wanted.get("resource_type"), wanted.get("resource")
    if _is(RESOURCE_PATTERN, resource) and _is(NAME_PATTERN, kind):
        wanted["resource_type"] = str(resource).partition(":")[0]


def _distinct(entries: Any) -> None:
    """A transaction changes a relationship once."""
    seen: set[str] = set()
    for number, entry in enumerate(entries if isinstance(entries, list) else ()):
        one = entry.get("relationship", entry) if isinstance(entry, dict) else None
        if isinstance(one, dict) and _is(RESOURCE_PATTERN, one.get("resource")):
            identity = repr([one.get(part) for part in ("resource", "relation", "subject")])
            if identity in seen:
                # What is generated more than once may also be the same object.
                one = {**one, "resource": f"{one['resource']}.{number}"}
                entries[number] = {**entry, "relationship": one} if "relationship" in entry else one
            seen.add(identity)


def _is(pattern: str, text: Any) -> bool:
    return isinstance(text, str) and re.search(pattern, text) is not None
