"""Where the documents lie: text and tokens in one row, so that neither travels without the other.

A file that both regions share stands in for the database that your application has. If yours is
replicated by itself, a region may show an old row for a while: the old text with the old tokens,
which is what its readers were allowed to see. What must not happen is a new text with old tokens.
"""

import contextlib
import json
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple


class Document(NamedTuple):
    """tokens: all that a check for this document must have seen; usually one."""

    text: str
    tokens: list[str]


class Shelf:
    """The documents by id. Close it at the end.

    Its calls block, for the moment that a small local file takes; an application that waits for a
    database uses a driver for asyncio.
    """

    def __init__(self, path: Path) -> None:
        self._file = sqlite3.connect(path, isolation_level=None)
        self._file.execute(
            "CREATE TABLE IF NOT EXISTS documents"
            " (id TEXT PRIMARY KEY, text TEXT NOT NULL, tokens TEXT NOT NULL)"
        )

    def close(self) -> None:
        self._file.close()

    def get(self, name: str) -> Document | None:
        """Text and tokens as they are at one moment: judge the text by these tokens."""
        found = self._file.execute("SELECT text, tokens FROM documents WHERE id = ?", (name,))
        row = found.fetchone()
        return Document(row[0], json.loads(row[1])) if row else None

    def put(self, name: str, text: str, token: str) -> None:
        """A new document, with the token of the write that gave it its owner."""
        row = (name, text, json.dumps([token]))
        self._file.execute("INSERT INTO documents VALUES (?, ?, ?)", row)

    def rewrite(self, name: str, text: str) -> None:
        """Another text. The tokens stay: nobody's permissions have changed."""
        self._file.execute("UPDATE documents SET text = ? WHERE id = ?", (text, name))

    def note(self, name: str, token: str, covered: Collection[str]) -> None:
        """Add the token of a change of permissions; those that it covers go.

        Another region may add one at the same time, so that what is there now is read again here.
        Overwriting it would forget a revocation.
        """
        with self._transaction():
            document = self.get(name)
            assert document is not None, "documents are never removed"
            kept = [old for old in document.tokens if old not in covered]
            row = (json.dumps([*kept, token]), name)
            self._file.execute("UPDATE documents SET tokens = ? WHERE id = ?", row)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._file:
            self._file.execute("BEGIN IMMEDIATE")
            yield
