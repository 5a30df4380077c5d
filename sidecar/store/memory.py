"""How full a Redis is, told from its `INFO memory`."""

from typing import NamedTuple

MAX_RESERVE_BYTES = 64 * 1024 * 1024


class Memory(NamedTuple):
    """used, limit: bytes; a limit of 0 is none. policy: `maxmemory_policy`, "" if unsaid."""

    used: int
    limit: int
    policy: str = ""

    @property
    def reserve(self) -> int:
        """Bytes that writes of applications leave for merges: a tenth of the limit, 64 MiB at most.

        It also covers what is written before the next look.
        """
        return min(self.limit // 10, MAX_RESERVE_BYTES)

    @property
    def is_full(self) -> bool:
        """Whether only the reserve is left."""
        return self.limit > 0 and self.used > self.limit - self.reserve


def memory_of(info: bytes) -> Memory:
    """What the reply to `INFO memory` says; a server that leaves a line out has no limit there."""
    said = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    # The server leaves the buffers of its replicas and of its append-only file out as well.
    used = int(said.get("used_memory", "0")) - int(said.get("mem_not_counted_for_evict", "0"))
    return Memory(used, int(said.get("maxmemory", "0")), said.get("maxmemory_policy", ""))
