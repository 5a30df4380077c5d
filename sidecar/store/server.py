"""Which servers fit, as far as their release tells; the rest is tried (`lua/check.lua`)."""

from sidecar.errors import Refused

OLDEST_REDIS = (7, 0)
"""The first that takes flags in the first line of a script (`#!lua flags=allow-oom`)."""


def check_release(version: str) -> None:
    """Raise Refused for a Redis that is too old; every Valkey says that it is Redis 7.2.

    version: "" where the server does not tell; the check of the scripts then has to do.
    """
    parts = version.split(".")[:2]
    if all(part.isdigit() for part in parts) and tuple(map(int, parts)) < OLDEST_REDIS:
        raise Refused(
            "wrong_redis",
            f"redis.url: this is Redis {version}; the scripts of the sidecar need Redis 7.0 or "
            "newer, or any Valkey",
        )
