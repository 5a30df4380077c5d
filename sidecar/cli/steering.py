"""The commands that steer the replication of a node that runs: pause, resume, resync, topology."""

from typing import Annotated

import typer

from sidecar.cli.common import ADMIN_URL, AdminOption, TokenOption, one_line, run_here

commands = typer.Typer()

TargetOption = Annotated[
    str | None, typer.Option("--target", help="Only to this node; absent: to all targets.")
]


@commands.command()
def pause(
    url: AdminOption = ADMIN_URL,
    target: TargetOption = None,
    token_file: TokenOption = None,
) -> None:
    """Stop shipping what a node writes, until `resume` or a restart; its feed keeps what waits."""
    with one_line():
        from sidecar.commands.steering import pause, paused_in_words

        typer.echo(paused_in_words(run_here(pause(url, target))))


@commands.command()
def resume(
    url: AdminOption = ADMIN_URL,
    target: TargetOption = None,
    token_file: TokenOption = None,
) -> None:
    """Ship again what a node writes; what has waited first."""
    with one_line():
        from sidecar.commands.steering import paused_in_words, resume

        typer.echo(paused_in_words(run_here(resume(url, target))))


@commands.command()
def resync(
    target: Annotated[str, typer.Argument(help="The node that is to get everything.")],
    url: AdminOption = ADMIN_URL,
    token_file: TokenOption = None,
) -> None:
    """Give a target a full state transfer from this node now; `sidecar status` says how far."""
    with one_line():
        from sidecar.commands.steering import resync

        done = run_here(resync(url, target))
        begins = "begins" if done["connected"] else "begins as soon as there is a session"
        typer.echo(f"the state transfer from {done['node']} to {done['target']} {begins}")


topology_app = typer.Typer(no_args_is_help=True)
commands.add_typer(topology_app, name="topology", help="Regions and nodes that come and go.")


@topology_app.command("reload")
def reload(url: AdminOption = ADMIN_URL, token_file: TokenOption = None) -> None:
    """Have a node read its configuration again and take up its regions, without a restart.

    Ask every node of the topology. What needs a restart is refused, and then nothing has changed.
    """
    with one_line():
        from sidecar.commands.steering import reload_topology, reloaded_in_words

        for line in reloaded_in_words(run_here(reload_topology(url))):
            typer.echo(line)
