"""What the commands share: options, exit codes, and how failures and progress are shown.

Exit codes: 2 for bad input, 1 when something outside did not work, 130 after Ctrl-C.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from sidecar.errors import Broken, Refused, SidecarError, ungrouped

Answer = TypeVar("Answer")

EXIT_UNAVAILABLE = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

_errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="The YAML file; without it: one region, one node.")
]
NodeOption = Annotated[
    str | None, typer.Option("--node", help="Which node of the file; beats INFERADB__NODE.")
]
UrlOption = Annotated[
    str, typer.Option("--url", help="A sidecar's app listener, such as http://127.0.0.1:8080.")
]
ADMIN_URL = "http://127.0.0.1:8082"
AdminOption = Annotated[str, typer.Option("--url", help="The admin listener of the node.")]


def _present(file: Path | None) -> Path | None:
    from sidecar.commands.asking import token_file

    token_file.set(file)
    return file


TokenOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="INFERADB__SECURITY__ADMIN__TOKEN_FILE",
        callback=_present,
        help="Whose first line is the admin token; not needed on the node's own machine.",
    ),
]
"""Of every command that changes something: `asking` shows the token then."""

KeyOption = Annotated[
    Path | None, typer.Option("--key-file", help="Whose first line is the key of an application.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON.")]
WaitOption = Annotated[
    float,
    typer.Option("--wait", min=0, max=300, help="Seconds to insist when nobody answers, or 503."),
]


def run_here(main: Coroutine[Any, Any, Answer]) -> Answer:
    return uvloop.run(main)


def stop_on_signals() -> asyncio.Event:
    """Set by the first SIGTERM or Ctrl-C; the second one ends us as it would anybody."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop


def reload_on_hangup() -> asyncio.Event:
    """Set by SIGHUP; on a terminal that signal ends us, because the terminal has gone."""
    hangup = asyncio.Event()
    if not sys.stdin.isatty():
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)
    return hangup


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Turn every expected failure into one line and an exit code."""
    try:
        with ungrouped():
            yield
    except (SidecarError, OSError) as error:
        _fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _fail(error: SidecarError | OSError) -> None:
    if isinstance(error, Broken):
        # A bug of ours: whoever mends it needs the whole story.
        raise error
    message = error.message if isinstance(error, SidecarError) else str(error)
    complain(message)
    code = EXIT_BAD_INPUT if isinstance(error, Refused) else EXIT_UNAVAILABLE
    raise typer.Exit(code) from None


def complain(message: str) -> None:
    _errors.print(f"sidecar: {' '.join(message.split())}")


def progress_of(bar: tuple[Any, ...]) -> Progress:
    # Warnings and the bar share a console, so that neither overwrites the other.
    return Progress(*bar, console=_errors, transient=True, disable=not _errors.is_terminal)


def bytes_bar() -> tuple[Any, ...]:
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
    )


def count_bar() -> tuple[Any, ...]:
    return (
        SpinnerColumn(),
        TextColumn("{task.completed:,.0f} {task.description}"),
        TimeElapsedColumn(),
    )
