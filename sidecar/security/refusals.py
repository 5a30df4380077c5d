"""Who was refused, and why: said in the log when it is news, and counted for nothing else."""

import logging

log = logging.getLogger(__name__)

MAX_REMEMBERED = 1000
"""Sources whose refusal is remembered; beyond it all are forgotten and logged anew."""


class Refusals:
    """Those of one listener."""

    def __init__(self, listener: str) -> None:
        self._listener = listener
        self._reasons: dict[str, str] = {}

    def note(self, source: str, reason: str) -> None:
        """A source (its address, or its name where that is known) was refused."""
        if self._reasons.get(source) == reason:
            return
        if len(self._reasons) >= MAX_REMEMBERED:
            self._reasons.clear()
        self._reasons[source] = reason
        log.warning(
            "request refused",
            extra={"listener": self._listener, "source": source, "reason": reason},
        )
