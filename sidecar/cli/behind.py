"""The commands about the database behind a node: adopt, reapply, held."""

from typing import Annotated

import typer

from sidecar.cli.common import (
    ADMIN_URL,
    AdminOption,
    JsonOption,
    TokenOption,
    count_bar,
    one_line,
    progress_of,
    run_here,
)

commands = typer.Typer()


@commands.command("adopt")
def adopt_(
    *,
    url: AdminOption = ADMIN_URL,
    token_file: TokenOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    with_deletions: Annotated[
        bool,
        typer.Option("--with-deletions", help="Also delete here what the database does not hold."),
    ] = False,
) -> None:
    """Take over what went to the database behind a node past the sidecar.

    Also the way to begin with a database that has data. It may be repeated, and applications may
    write meanwhile.
    """
    with one_line():
        from sidecar.commands.behind import adopt, adopted_in_words

        with progress_of(count_bar()) as progress:
            task = progress.add_task("relationships read", total=None)
            done = run_here(
                adopt(
                    url,
                    dry_run=dry_run,
                    with_deletions=with_deletions,
                    advance=lambda line: progress.update(task, completed=line["relationships"]),
                )
            )
        for line in adopted_in_words(done):
            typer.echo(line)


@commands.command("reapply")
def reapply_(url: AdminOption = ADMIN_URL, token_file: TokenOption = None) -> None:
    """Write everything that a node shows to the database behind it again.

    For a database that was emptied, restored or replaced. What it holds beside that stays.
    """
    with one_line():
        from sidecar.commands.behind import reapply

        count = run_here(reapply(url))
        typer.echo(f"{count:,} tuples are told to the database; `sidecar status` counts them down")


@commands.command("held")
def held_(
    *,
    url: AdminOption = ADMIN_URL,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
    release: Annotated[
        bool, typer.Option("--release", help="Try to write them again, now.")
    ] = False,
) -> None:
    """Show what the database behind a node refuses, and why."""
    with one_line():
        from sidecar.commands.asking import tell_lines
        from sidecar.commands.behind import held_at, tell_held
        from sidecar.commands.behind import release as release_at

        if release:
            count = run_here(release_at(url))
            typer.echo(f"{count:,} tuples are told to the database again")
            return
        found = run_here(held_at(url))
        if as_json:
            tell_lines(found)
        else:
            tell_held(found)
