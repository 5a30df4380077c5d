"""The command line: options in, one line out when something is wrong.

Owns the commands, their options, exit codes and what a person reads on the terminal. Exit codes: 2
for bad input, 1 when something outside did not work, 130 after Ctrl-C in import, export
and conflicts. What a command does is the business of the module it calls; those are imported late,
so that `--help` is quick.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Coroutine, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

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

if TYPE_CHECKING:
    from sidecar.bulk import Imported
    from sidecar.config import Config
    from sidecar.verify import Effect, Findings

Answer = TypeVar("Answer")

EXIT_UNAVAILABLE = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="sidecar",
    help="Active-active multi-region replication for relationship tuples.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
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
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON.")]
WaitOption = Annotated[
    float,
    typer.Option("--wait", min=0, max=300, help="Seconds to insist when nobody answers, or 503."),
]


def main() -> None:
    """Entry point: every failure that is not a bug of ours is one line on stderr."""
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as usage:
        _complain(f"{usage.format_message()} (see sidecar --help)")
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


@app.command()
def run(config: ConfigOption = None, node: NodeOption = None) -> None:
    """Run one node in the foreground until SIGTERM or Ctrl-C."""
    with _one_line():
        from sidecar.config import load

        settings = load(config, node=node, environ=os.environ)
        from sidecar.app import run_node

        async def serve() -> None:
            await run_node(settings, stop=_stop_on_signals())

        _run(serve())


@app.command()
def demo(
    regions: Annotated[int, typer.Option(help="How many regions, one node each.")] = 2,
    data_dir: Annotated[Path, typer.Option(help="Where the nodes keep their data.")] = Path(
        "./data"
    ),
    base_port: Annotated[
        int, typer.Option(help="Node i, from 0: app at base+10i, peer +1, admin +2.")
    ] = 8080,
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Keep the data in a temporary folder instead.")
    ] = False,
) -> None:
    """Run several regions on this machine until Ctrl-C."""
    with _one_line():
        from sidecar.demo import data_folder, plan, run_demo

        plan(regions, base_port, data_dir)
        with data_folder(data_dir, ephemeral=ephemeral) as folder:
            nodes = plan(regions, base_port, folder)

            async def serve() -> None:
                await run_demo(
                    nodes,
                    folder,
                    stop=_stop_on_signals(),
                    say=typer.echo,
                    environ=os.environ,
                    farewell="removes their data" if ephemeral else "keeps their data",
                )

            _run(serve())


@app.command("check-config")
def check_config(
    file: Annotated[Path, typer.Argument(help="The YAML file.")], node: NodeOption = None
) -> None:
    """Say what a configuration file means, and what `run` would refuse of it."""
    with _one_line():
        from sidecar.config import load
        from sidecar.rules import custom_script, rules_of

        settings = load(file, node=node, environ=os.environ)
        for line in _meaning(settings):
            typer.echo(line)
        custom = custom_script(settings)
        if custom is not None:
            from sidecar.store.trial import try_on_embedded

            count = _run(try_on_embedded(custom, rules_of(settings, custom)))
            typer.echo(f"custom script        {custom.file}: sound for {count} sets of siblings")
        for remark in settings.remarks():
            typer.echo(f"note: {remark}")


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(help="NDJSON, plain or gzip; - for standard input.")],
    url: UrlOption,
    tenant: Annotated[str, typer.Option(help="The tenant of lines that name none.")] = "default",
    from_line: Annotated[int, typer.Option(min=1, help="Begin at this line.")] = 1,
    wait: WaitOption = 60,
) -> None:
    """Write the relationships or transactions of a file, in its order."""
    with _one_line():
        from sidecar.bulk import Sidecar, Source, Watching, check_url, import_file, retold
        from sidecar.core.relationship import check_tenant

        check_tenant(tenant)
        check_url(url)
        with Source(file) as source, _progress(_bytes_bar()) as progress:
            task = progress.add_task(Path(source.name).name, total=source.size)
            watching = Watching(
                advance=lambda count: progress.update(task, completed=count), warn=_complain
            )

            async def transfer() -> "Imported":
                async with Sidecar(url, wait_s=wait, warn=_complain) as client:
                    return await import_file(client, source, tenant, from_line, watching)

            source.next_line = from_line
            try:
                done = _run(transfer())
            except KeyboardInterrupt:
                progress.stop()
                _complain(f"interrupted; resume with --from-line {source.next_line}")
                raise typer.Exit(EXIT_INTERRUPTED) from None
            except SidecarError as error:
                if source.next_line == from_line:
                    raise
                message = f"{error.message}; resume with --from-line {source.next_line}"
                raise retold(error, message) from error
        typer.echo(_imported(done))


@app.command("export")
def export(
    url: UrlOption,
    file: Annotated[
        str, typer.Argument(help="Where to; .gz is compressed; - is standard output.")
    ] = "-",
    tenant: Annotated[str, typer.Option(help="Which tenant.")] = "default",
    all_tenants: Annotated[
        bool, typer.Option("--all-tenants", help="Every tenant, instead of one.")
    ] = False,
    wait: WaitOption = 60,
) -> None:
    """Write all relationships of a tenant to a file, sorted, one per line."""
    with _one_line():
        from sidecar.bulk import Sidecar, Watching, check_url, export_file
        from sidecar.core.relationship import check_tenant

        check_tenant(tenant)
        check_url(url)
        with _progress(_count_bar()) as progress:
            task = progress.add_task("relationships", total=None)
            watching = Watching(advance=lambda count: progress.update(task, completed=count))

            async def transfer() -> str:
                async with Sidecar(url, wait_s=wait, warn=_complain) as client:
                    chosen = None if all_tenants else tenant
                    done = await export_file(client, file, chosen, watching)
                return (
                    f"exported {done.relationships:,} relationships of {done.tenants} "
                    f"tenant{'' if done.tenants == 1 else 's'} in {done.seconds:.1f} s"
                )

            summary = _run(transfer())
        # Standard output may be the export itself.
        typer.echo(summary, err=True)


@app.command()
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
    with _one_line():
        from sidecar.asking import tell_lines
        from sidecar.conflicts import ConflictTable, show_conflicts

        tell = tell_lines if as_json else ConflictTable().tell
        _run(
            show_conflicts(
                url, resource=resource, limit=limit, is_following=follow, tell=tell, warn=_complain
            )
        )


@app.command()
def status(url: AdminOption = ADMIN_URL, as_json: JsonOption = False) -> None:
    """Show how a node does: its phase, what it has, what it waits for, its targets."""
    with _one_line():
        from sidecar.asking import tell_lines
        from sidecar.operations import status_of, tell_status

        shown = _run(status_of(url))
        if as_json:
            tell_lines([shown])
        else:
            tell_status(shown)


@app.command("accept-loss")
def accept_loss_(
    url: AdminOption = ADMIN_URL,
    partition: Annotated[
        str | None,
        typer.Option("--partition", help="Which one, where several are behind; see `status`."),
    ] = None,
) -> None:
    """Let a node that catches up go on without what it has lost.

    For when the nodes that have the rest are gone for good: writes that only they had stay lost,
    and what they had deleted is in view again. One that returns after all is caught up with.
    """
    with _one_line():
        from sidecar.operations import accept_loss

        done = _run(accept_loss(url, partition))
        typer.echo(
            f"{done['node']} goes on with what it has; writes that it or others made and that no "
            "node it can reach has stay lost"
        )


@app.command("promote")
def promote_(
    region: Annotated[str, typer.Argument(help="The region that is to take the writes.")],
    url: AdminOption = ADMIN_URL,
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
    with _one_line():
        from sidecar.operations import promote, promoted_in_words

        done = _run(promote(url, region, timeout if wait else None))
        for line in promoted_in_words(done):
            typer.echo(line)


parked_app = typer.Typer(invoke_without_command=True)
app.add_typer(parked_app, name="parked", help="Show what a node could not apply yet, and why.")


@parked_app.callback()
def parked(
    context: typer.Context, url: AdminOption = ADMIN_URL, as_json: JsonOption = False
) -> None:
    if context.invoked_subcommand is not None:
        return
    with _one_line():
        from sidecar.asking import tell_lines
        from sidecar.operations import parked_at, tell_parked

        found = _run(parked_at(url))
        if as_json:
            tell_lines(found)
        else:
            tell_parked(found)


@parked_app.command("drop")
def drop(
    origin: Annotated[str, typer.Argument(help="Whose transaction, as `sidecar parked` shows it.")],
    url: AdminOption = ADMIN_URL,
) -> None:
    """Pass over one parked transaction: this node then differs from those that have applied it."""
    with _one_line():
        from sidecar.operations import drop_parked

        one = _run(drop_parked(url, origin))
        typer.echo(
            f"dropped the transaction {one['timestamp']} of {one['origin']}: what it changed is "
            "not, and will not be, on this node"
        )


@app.command("adopt")
def adopt_(
    *,
    url: AdminOption = ADMIN_URL,
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
    with _one_line():
        from sidecar.behind import adopt, adopted_in_words

        with _progress(_count_bar()) as progress:
            task = progress.add_task("relationships read", total=None)
            done = _run(
                adopt(
                    url,
                    dry_run=dry_run,
                    with_deletions=with_deletions,
                    advance=lambda line: progress.update(task, completed=line["relationships"]),
                )
            )
        for line in adopted_in_words(done):
            typer.echo(line)


@app.command("reapply")
def reapply_(url: AdminOption = ADMIN_URL) -> None:
    """Write everything that a node shows to the database behind it again.

    For a database that was emptied, restored or replaced. What it holds beside that stays.
    """
    with _one_line():
        from sidecar.behind import reapply

        count = _run(reapply(url))
        typer.echo(f"{count:,} tuples are told to the database; `sidecar status` counts them down")


@app.command("held")
def held_(
    *,
    url: AdminOption = ADMIN_URL,
    as_json: JsonOption = False,
    release: Annotated[
        bool, typer.Option("--release", help="Try to write them again, now.")
    ] = False,
) -> None:
    """Show what the database behind a node refuses, and why."""
    with _one_line():
        from sidecar.asking import tell_lines
        from sidecar.behind import held_at, tell_held
        from sidecar.behind import release as release_at

        if release:
            count = _run(release_at(url))
            typer.echo(f"{count:,} tuples are told to the database again")
            return
        found = _run(held_at(url))
        if as_json:
            tell_lines(found)
        else:
            tell_held(found)


@app.command()
def reset(
    config: ConfigOption = None,
    node: NodeOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it, only say what.")] = False,
) -> None:
    """Delete all data of a stopped node: it comes back empty and gets all from the others."""
    with _one_line():
        from sidecar.config import load
        from sidecar.reset import reset_node

        _run(reset_node(load(config, node=node, environ=os.environ), is_sure=yes, say=typer.echo))


@app.command()
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
    with _one_line():
        from sidecar.config import load_some_node
        from sidecar.verify import Watching, json_of, lines_of, parts_of, plan_lines
        from sidecar.verify import verify as compare

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

        with _progress(_count_bar()) as progress:
            task = progress.add_task("buckets", total=None)
            watching = Watching(
                advance=lambda count: progress.update(task, completed=count), planned=planned
            )
            found = _run(
                compare(
                    parts_of(settings.topology, settings.residency),
                    wait_s=wait,
                    source=source,
                    repair=repair,
                    dry_run=dry_run,
                    watching=watching,
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


# --- running --------------------------------------------------------------------------------------


def _run(main: Coroutine[Any, Any, Answer]) -> Answer:
    return uvloop.run(main)


def _stop_on_signals() -> asyncio.Event:
    """Set by the first SIGTERM or Ctrl-C; the second one ends us as it would anybody."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
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
    _complain(message)
    code = EXIT_BAD_INPUT if isinstance(error, Refused) else EXIT_UNAVAILABLE
    raise typer.Exit(code) from None


def _complain(message: str) -> None:
    _errors.print(f"sidecar: {' '.join(message.split())}")


# --- what a person reads --------------------------------------------------------------------------


def _progress(bar: tuple[Any, ...]) -> Progress:
    # Warnings and the bar share a console, so that neither overwrites the other.
    return Progress(*bar, console=_errors, transient=True, disable=not _errors.is_terminal)


def _bytes_bar() -> tuple[Any, ...]:
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
    )


def _count_bar() -> tuple[Any, ...]:
    return (
        SpinnerColumn(),
        TextColumn("{task.completed:,.0f} {task.description}"),
        TimeElapsedColumn(),
    )


def _imported(done: "Imported") -> str:
    parts = []
    if done.transactions or not done.relationships:
        inserts = done.inserts - done.relationships
        parts.append(
            f"{done.transactions:,} transactions ({inserts:,} inserts, {done.deletes:,} deletes)"
        )
    if done.relationships:
        parts.append(f"{done.relationships:,} relationships")
    rate = (done.transactions or done.requests) / max(done.seconds, 1e-6)
    unit = "transactions" if done.transactions else "requests"
    return f"imported {' and '.join(parts)} in {done.seconds:.1f} s, {rate:,.0f} {unit}/s"


def _bound_tenants(config: "Config") -> Iterator[str]:
    for partition, regions in config.residency.sets.items():
        places = config.tenants.places.items()
        names = [name for name, place in places if place.regions == frozenset(regions)]
        yield f"tenants              {', '.join(names)} only in {', '.join(regions)} ({partition})"


def _meaning(config: "Config") -> Iterator[str]:
    replication, topology, here = config.replication, config.topology, config.this_node
    yield f"strategy             {replication.strategy}"
    yield f"conflict resolution  {replication.conflict_resolution}"
    for override in replication.conflict_overrides:
        kind = "relation" if override.relation is not None else "resource type"
        yield f"  {kind:<19}{override.relation or override.resource_type}: {override.strategy}"
    if replication.region_priorities:
        yield f"region priorities    {' < '.join(replication.region_priorities)}"
    for region in topology.regions:
        primary = ", primary" if region.is_primary else ""
        targets = ", ".join(topology.target_regions(region.id)) or "no other region"
        yield f"region               {region.id} ({region.name}{primary}) ships to {targets}"
        for node in region.nodes():
            mark = "  <- this node" if node.id == here.id else ""
            yield f"  node               {node.id} at {node.endpoint}, zone {node.zone}{mark}"
    yield from _bound_tenants(config)
    yield f"this node            {here.id} in {here.region}"
    addresses = f"app {config.app_address}, peer {config.peer_address}"
    yield f"listens              {addresses}, admin {config.admin_address}"
    yield f"store                {config.redis.safe_url}"
    if config.database is not None:
        yield f"database             {config.database.dialect} at {config.database.url}"


if __name__ == "__main__":
    main()
