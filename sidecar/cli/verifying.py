"""The command that compares all nodes: verify."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.cli.common import EXIT_UNAVAILABLE, count_bar, one_line, progress_of, run_here
from sidecar.errors import Refused

if TYPE_CHECKING:
    from sidecar.commands.verify import Effect, Findings


commands = typer.Typer()


@commands.command()
def verify(
    *,
    config: Annotated[Path, typer.Option("--config", help="The YAML file of the deployment.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what differs by the word of --from.")
    ] = False,
    source: Annotated[
        str | None, typer.Option("--from", help="The node whose tuples are right.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what --repair would do.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    wait: Annotated[
        float, typer.Option("--wait", min=0, max=3600, help="Seconds to ask about busy buckets.")
    ] = 30,
) -> None:
    """Compare what all nodes store; exit code 1 when they differ or one cannot be reached."""
    with one_line():
        from sidecar.commands.verify import Watching, json_of, lines_of, parts_of, plan_lines
        from sidecar.commands.verify import verify as compare
        from sidecar.config import load_some_node
        from sidecar.security.guard import links_of_node

        if repair and source is None:
            raise Refused("bad_option", "--repair needs --from NODE: whose tuples are right?")
        if dry_run and not repair:
            raise Refused("bad_option", "--dry-run belongs to --repair")
        settings = load_some_node(config, environ=os.environ)
        told: dict[str, list[Effect]] = {}

        def planned(found: "Findings", plan: "Sequence[Effect]") -> None:
            told.setdefault(found.part.partition, []).extend(plan)
            if not as_json:
                for line in plan_lines(found, plan):
                    typer.echo(line)

        with progress_of(count_bar()) as progress:
            task = progress.add_task("buckets", total=None)
            watching = Watching(
                advance=lambda count: progress.update(task, completed=count), planned=planned
            )
            found = run_here(
                compare(
                    parts_of(settings.topology, settings.residency),
                    wait_s=wait,
                    source=source,
                    repair=repair,
                    dry_run=dry_run,
                    watching=watching,
                    links=links_of_node(settings),
                )
            )
        if as_json:
            typer.echo(json.dumps(json_of(found, told)))
        else:
            for line in (line for one in found for line in lines_of(one)):
                # What was written behind our back need not be text.
                typer.echo(line.encode("utf-8", "replace").decode())
            if all(one.is_equal for one in found):
                typer.echo("all nodes store the same")
    if not all(one.is_equal for one in found):
        raise typer.Exit(EXIT_UNAVAILABLE)
