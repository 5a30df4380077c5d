"""Processes that must not outlive the one that started them.

Owns the launcher between fork and the real program: it asks the kernel to send a signal when its
parent ends (Linux, PR_SET_PDEATHSIG), makes sure that the parent has not ended already, and becomes
the program. Doing this in a small program of its own, rather than in a function run after fork, is
safe however many threads the parent has. Knows nothing of Valkey or sidecars, and imports nothing
of ours: it runs as a file.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def tethered(command: Sequence[str], death_signal: signal.Signals) -> list[str]:
    """`command`, made to receive `death_signal` when the calling process ends in whatever way.

    Start it from the main thread: the kernel watches the *thread* that forked. Where the kernel
    cannot do this (anything but Linux), the command is returned as it is.
    """
    if sys.platform != "linux":
        return list(command)
    launcher = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
    return [*launcher, str(os.getpid()), str(int(death_signal)), *command]


def _become(parent: int, death_signal: int, command: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        sys.exit(f"cannot tie {command[0]} to its parent: {os.strerror(ctypes.get_errno())}")
    # The parent may have ended before the line above: then no signal will ever come.
    if os.getppid() != parent:
        sys.exit(f"{command[0]} not started: the process that asked for it has ended")
    os.execv(command[0], command)


if __name__ == "__main__":
    _become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
