"""The texts that travel: transactions in feeds and between nodes, and the frames of a session.

A transaction is one line of JSON; it is made once, by the node that accepted the write, and stored
and forwarded as it is:

    {"format":1, "origin":"node1.…", "timestamp":"1790…", "previous":"1790…",
     "context":{origin: timestamp}, "beyond":{index: {origin: timestamp}}, "tenant":"default",
     "changes":[[sign, resource, relation, subject, bucket, hash, condition, expires_at], …]}

`previous` is the timestamp of the transaction before it of the same origin. `context` is what the
node had received when it wrote, without its own writes: of these it had everything up to
`previous`. `beyond`, nearly always absent, is what single changes (counted from 1) overwrite beside
that. Timestamps and `expires_at` are texts of digits, because Lua prints numbers with 14 digits;
`condition` is the text of a JSON value, so that nobody re-encodes it; both are "" or absent for
none. There are no nulls.

A frame is UTF-8: a line of JSON, the head, with a `type`; a batch has its transactions as further
lines, to be handed to the merge script as they are. Large frames are compressed with zlib and
travel as binary messages, the others as text messages.
"""

import json
import json.encoder
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.core.relationship import Change, Operation, Relationship, bucket_of, tuple_hash
from sidecar.core.vector import Vector
from sidecar.errors import Refused

FORMAT = 1
COMPRESS_ABOVE_BYTES = 32 * 1024
MAX_FRAME_BYTES = 32 * 1024 * 1024
"""A legal transaction has up to 4 MiB of request and 5,000 hashes; one always fits, with room."""

_quoted = json.encoder.encode_basestring
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Transaction:
    """All changes of one write request, as they are seen on one node."""

    tenant: str
    origin: str
    timestamp: int
    changes: tuple[Change, ...]


def encode_body(tenant: str, changes: Iterable[Change]) -> str:
    """The tail of a transaction's JSON, from the tenant on; the write script adds the rest."""
    rows = []
    for operation, one in changes:
        is_insert = operation is Operation.INSERT
        # By hand: a write spends its time here, and the encoder takes three times as long.
        row = (
            f'["{"+" if is_insert else "-"}",{_quoted(one.resource)},{_quoted(one.relation)},'
            f"{_quoted(one.subject)},{bucket_of(tenant, one.resource)},"
            f"{tuple_hash((tenant, one.resource, one.relation, one.subject))}"
        )
        if is_insert and (one.condition is not None or one.expires_at):
            row += f",{_quoted(one.condition or '')}"
            if one.expires_at:
                row += f',"{one.expires_at}"'
        rows.append(row + "]")
    return f'"tenant":{_quoted(tenant)},"changes":[{",".join(rows)}]}}'


def decode_transaction(text: bytes, effects: bytes | None = None) -> Transaction:
    """A transaction from its JSON.

    effects: what the merge found for changes that are not the visible version on this node; they
    are left out, or replaced by what became visible instead.
    """
    decoded = json.loads(text)
    tenant = decoded["tenant"]
    seen_here = json.loads(effects) if effects else {}
    changes = []
    for index, row in enumerate(decoded["changes"], 1):
        sign, resource, relation, subject, _, _, *payload = row
        effect = seen_here.get(str(index))
        if effect is not None:
            sign, *payload = effect
        if sign == "=":
            continue
        changes.append(change_of_row(tenant, (sign, resource, relation, subject, 0, 0, *payload)))
    return Transaction(tenant, decoded["origin"], int(decoded["timestamp"]), tuple(changes))


def change_of_row(tenant: str, row: Sequence[Any]) -> Change:
    """A change of a transaction from the list it is in JSON."""
    sign, resource, relation, subject, _, _, *payload = row
    condition, expires_at = (*payload, "", "")[:2]
    until = int(expires_at) if expires_at else None
    one = Relationship(tenant, resource, relation, subject, condition or None, until)
    return Change(Operation.INSERT if sign == "+" else Operation.DELETE, one)


def decode_body(text: str) -> str:
    """The body from which the write script makes a transaction, out of a transaction's JSON."""
    return text[text.index('"tenant":') :]


def encode_bucket(bucket: int, vector: Vector, tuples: Iterable[tuple[str, str, str]]) -> bytes:
    """A line of a page: a whole bucket, as the absorb script takes it.

    vector: what the states were judged by. tuples: (tenant/resource, relation#subject, state).
    """
    rows = ",".join(
        f"[{_quoted(key)},{_quoted(field)},{hash_of(key, field)},{_quoted(state)}]"
        for key, field, state in tuples
    )
    return (
        f'{{"bucket":{bucket},"vector":{_encode(encode_vector(vector))},"tuples":[{rows}]}}'
    ).encode()


def hash_of(key: str, field: str) -> int:
    """The hash of the tuple stored under `tenant/resource` and `relation#subject`."""
    tenant, _, resource = key.partition("/")
    relation, _, subject = field.partition("#")
    return tuple_hash((tenant, resource, relation, subject))


def bucket_of_name(name: str) -> int:
    """The bucket of a tuple by its name in the list of unsettled ones."""
    tenant, _, resource = name.partition("#")[0].partition("/")
    return bucket_of(tenant, resource)


def encode_vector(vector: Vector) -> dict[str, str]:
    """A vector as it travels: timestamps as text."""
    return {origin: str(timestamp) for origin, timestamp in vector.items()}


def decode_vector(value: object) -> dict[str, int]:
    """A vector from JSON. Raises Refused("bad_frame") for anything else."""
    if not isinstance(value, dict):
        raise Refused("bad_frame", "a vector is an object of origin and timestamp")
    try:
        return {str(origin): _timestamp(text) for origin, text in value.items()}
    except ValueError:
        raise Refused("bad_frame", "a vector holds timestamps as texts of digits") from None


def encode_frame(head: Mapping[str, object], transactions: Sequence[bytes] = ()) -> str | bytes:
    """A frame: `str` to be sent as text, `bytes` to be sent as a binary message."""
    frame = b"\n".join([_encode(head).encode(), *transactions])
    if len(frame) > COMPRESS_ABOVE_BYTES:
        return zlib.compress(frame, level=1)
    return frame.decode()


def decode_frame(message: str | bytes) -> tuple[dict[str, object], bytes]:
    """Head and the lines of transactions, not taken apart. Raises Refused("bad_frame")."""
    frame = _decompress(message) if isinstance(message, bytes) else _encoded(message)
    line, _, transactions = frame.partition(b"\n")
    try:
        head = json.loads(line)
    except (ValueError, RecursionError):
        raise Refused("bad_frame", "a frame begins with a line of JSON") from None
    if not isinstance(head, dict) or not isinstance(head.get("type"), str):
        raise Refused("bad_frame", "the head of a frame is an object with a type")
    return head, transactions


def _decompress(message: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        frame = inflater.decompress(message, MAX_FRAME_BYTES)
    except zlib.error:
        raise Refused("bad_frame", "a binary frame is compressed with zlib") from None
    if inflater.unconsumed_tail:
        raise Refused("bad_frame", f"a frame has at most {MAX_FRAME_BYTES} bytes")
    if not inflater.eof or inflater.unused_data:
        raise Refused("bad_frame", "a binary frame is one whole stream of zlib")
    # The store takes transactions as they are, and whoever reads them later expects text.
    if not frame.isascii():
        _check_utf8(frame)
    return frame


def _check_utf8(frame: bytes) -> None:
    try:
        frame.decode()
    except UnicodeDecodeError:
        raise Refused("bad_frame", "a frame is UTF-8") from None


def _encoded(message: str) -> bytes:
    try:
        return message.encode()
    except UnicodeEncodeError:
        raise Refused("bad_frame", "a frame is UTF-8") from None


def _timestamp(text: object) -> int:
    if not isinstance(text, str) or not text.isascii() or not text.isdigit():
        raise ValueError(text)
    return int(text)
