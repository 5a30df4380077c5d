"""The commands that ask an admin listener: status, conflicts, accept-loss, promote, parked."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from sidecar.cli.common import (
    ADMIN_URL,
    AdminOption,
    JsonOption,
    TokenOption,
    complain,
    one_line,
    run_here,
)
from sidecar.errors import Refused

commands = typer.Typer()


@commands.command()
def conflicts(
    url: AdminOption = ADMIN_URL,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    resource: Annotated[
        str | None, typer.Option("--resource", help="Only of this resource, TYPE:ID.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show the conflicts that merges on a node met, newest first; with --follow newest last."""
    with one_line():
        from sidecar.commands.asking import tell_lines
        from sidecar.commands.conflicts import ConflictTable, show_conflicts

        tell = tell_lines if as_json else ConflictTable().tell
        run_here(
            show_conflicts(
                url, resource=resource, limit=limit, is_following=follow, tell=tell, warn=complain
            )
        )


@commands.command()
def status(
    *,
    url: AdminOption = ADMIN_URL,
    node_only: Annotated[
        bool,
        typer.Option("--node-only", help="Only the node at --url, and all that it knows."),
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again each second, until Ctrl-C.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show how all nodes do; any of them can be asked.

    Exit codes: 0 when it was shown, however the nodes are; 1 when the node at --url does not
    answer; 2 for bad input; 130 after Ctrl-C.
    """
    with one_line():
        from sidecar.commands.asking import tell_lines
        from sidecar.commands.operations import status_of, tell_status
        from sidecar.commands.overview import (
            deployment_of,
            refreshing,
            tell_deployment,
            watch_deployment,
        )

        if watch and node_only:
            raise Refused("bad_option", "--watch shows all nodes; --node-only is shown once")
        if watch:
            with _telling_lines() if as_json else refreshing() as tell:
                run_here(watch_deployment(url, tell))
        shown = run_here(status_of(url) if node_only else deployment_of(url))
        if as_json:
            tell_lines([shown])
        elif node_only:
            tell_status(shown)
        else:
            tell_deployment(shown)


@contextlib.contextmanager
def _telling_lines() -> Iterator[Callable[[Any, str], None]]:
    """Tells each state as a line of JSON, and what is in the way on standard error."""
    from sidecar.commands.asking import tell_lines

    yield lambda shown, away: complain(away) if away else tell_lines([shown])


@commands.command("accept-loss")
def accept_loss_(
    url: AdminOption = ADMIN_URL,
    token_file: TokenOption = None,
    partition: Annotated[
        str | None,
        typer.Option("--partition", help="Which one, where several are behind; see `status`."),
    ] = None,
) -> None:
    """Let a node that catches up go on without what it has lost.

    For when the nodes that have the rest are gone for good: writes that only they had stay lost,
    and what they had deleted is in view again. One that returns after all is caught up with.
    """
    with one_line():
        from sidecar.commands.operations import accept_loss

        done = run_here(accept_loss(url, partition))
        typer.echo(
            f"{done['node']} goes on with what it has; writes that it or others made and that no "
            "node it can reach has stay lost"
        )


@commands.command("promote")
def promote_(
    region: Annotated[str, typer.Argument(help="The region that is to take the writes.")],
    url: AdminOption = ADMIN_URL,
    token_file: TokenOption = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Drain the old primary first: nothing is left behind.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=1, max=600, help="Seconds that --wait may take.")
    ] = 30,
) -> None:
    """Make a region the primary (strategy primary_replica).

    The old one stops taking writes when it hears of it. What it had accepted and not shipped by
    then is merged, and listed there by `sidecar conflicts`.
    """
    with one_line():
        from sidecar.commands.operations import promote, promoted_in_words

        done = run_here(promote(url, region, timeout if wait else None))
        for line in promoted_in_words(done):
            typer.echo(line)


parked_app = typer.Typer(invoke_without_command=True)
commands.add_typer(parked_app, name="parked", help="Show what a node could not apply yet, and why.")


@parked_app.callback()
def parked(
    context: typer.Context, url: AdminOption = ADMIN_URL, as_json: JsonOption = False
) -> None:
    if context.invoked_subcommand is None:
        _list_parked(url, as_json)


def _list_parked(url: str, as_json: bool) -> None:
    with one_line():
        from sidecar.commands.asking import tell_lines
        from sidecar.commands.operations import parked_at, tell_parked

        found = run_here(parked_at(url))
        if as_json:
            tell_lines(found)
        else:
            tell_parked(found)


@parked_app.command("list")
def list_(url: AdminOption = ADMIN_URL, as_json: JsonOption = False) -> None:
    """Show what waits: the same as `sidecar parked`."""
    _list_parked(url, as_json)


@parked_app.command("release")
def release(
    origin: Annotated[str, typer.Argument(help="Whose transaction, as `sidecar parked` shows it.")],
    url: AdminOption = ADMIN_URL,
) -> None:
    """Try one parked transaction again, now, and say what becomes of it.

    Nodes try again each second by themselves. What is still not applied then is refused with the
    reason (exit code 2): nothing is let in by force.
    """
    with one_line():
        from sidecar.commands.operations import release_parked

        one = run_here(release_parked(url, origin))
        typer.echo(f"applied the transaction {one['timestamp']} of {one['origin']}")


@parked_app.command("drop")
def drop(
    origin: Annotated[str, typer.Argument(help="Whose transaction, as `sidecar parked` shows it.")],
    url: AdminOption = ADMIN_URL,
    token_file: TokenOption = None,
) -> None:
    """Pass over one parked transaction: this node then differs from those that have applied it."""
    with one_line():
        from sidecar.commands.operations import drop_parked

        one = run_here(drop_parked(url, origin))
        typer.echo(
            f"dropped the transaction {one['timestamp']} of {one['origin']}: what it changed is "
            "not, and will not be, on this node"
        )
