"""Reading the feed: the stream of all transactions this node has applied, local and remote."""

from typing import Any, NamedTuple

from sidecar.core.wire import Transaction, decode_transaction


class FeedEntry(NamedTuple):
    """One transaction in the order of this node.

    revision: position in this node's feed. timestamp: its own, of its origin. changes: how many.
    text: the JSON of the transaction, as its origin wrote it. effects: see `decode_transaction`.
    """

    revision: int
    origin: str
    timestamp: int
    changes: int
    text: bytes
    effects: bytes | None = None

    def transaction(self) -> Transaction:
        """The changes as they became visible here; what lost a conflict here is left out."""
        return decode_transaction(self.text, self.effects)


def entries_of(reply: list[Any]) -> list[FeedEntry]:
    """The entries in a reply to XRANGE."""
    entries = []
    for stream_id, fields in reply:
        effects = fields[9] if len(fields) > 8 else None
        entries.append(
            FeedEntry(
                int(stream_id[:-2]),  # without the "-0"
                fields[1].decode(),
                int(fields[3]),
                int(fields[5]),
                fields[7],
                effects,
            )
        )
    return entries
