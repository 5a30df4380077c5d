"""The command line: options in, one line out when something is wrong.

Owns which commands there are; each kind of them has a file. What a command does is the business of
the module it calls; those are imported late, so that `--help` is quick.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from sidecar.cli import behind, copying, node, operating, steering, verifying
from sidecar.cli.common import EXIT_BAD_INPUT, EXIT_INTERRUPTED, complain

app = typer.Typer(
    name="sidecar",
    help="Active-active multi-region replication for relationship tuples.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for part in (node, copying, operating, steering, behind, verifying):
    app.add_typer(part.commands)


def main() -> None:
    """Entry point: every failure that is not a bug of ours is one line on stderr."""
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as usage:
        complain(f"{usage.format_message()} (see sidecar --help)")
        code = usage.exit_code
    except typer.Abort:
        code = EXIT_INTERRUPTED
    sys.exit(code if isinstance(code, int) else 0)


@app.callback(invoke_without_command=True)
def sidecar(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Show it and end.")] = False,
) -> None:
    if show_version:
        try:
            typer.echo(f"sidecar {version('inferadb-sidecar')}")
        except PackageNotFoundError:
            typer.echo("sidecar (not installed)")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(EXIT_BAD_INPUT)
