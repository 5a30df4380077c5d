"""The commands that carry relationships in and out: import, export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.cli.common import (
    EXIT_INTERRUPTED,
    KeyOption,
    UrlOption,
    WaitOption,
    bytes_bar,
    complain,
    count_bar,
    one_line,
    progress_of,
    run_here,
)
from sidecar.errors import SidecarError

if TYPE_CHECKING:
    from sidecar.commands.bulk import Imported


commands = typer.Typer()


@commands.command("import")
def import_(
    *,
    file: Annotated[str, typer.Argument(help="NDJSON, plain or gzip; - for standard input.")],
    url: UrlOption,
    tenant: Annotated[str, typer.Option(help="The tenant of lines that name none.")] = "default",
    from_line: Annotated[int, typer.Option(min=1, help="Begin at this line.")] = 1,
    key_file: KeyOption = None,
    wait: WaitOption = 60,
) -> None:
    """Write the relationships or transactions of a file, in its order."""
    with one_line():
        from sidecar.commands.bulk import (
            Sidecar,
            Source,
            Watching,
            bearer_of,
            check_url,
            import_file,
            retold,
        )
        from sidecar.core.relationship import check_tenant

        check_tenant(tenant)
        check_url(url)
        bearer = bearer_of("--key-file", key_file)
        with Source(file) as source, progress_of(bytes_bar()) as progress:
            task = progress.add_task(Path(source.name).name, total=source.size)
            watching = Watching(
                advance=lambda count: progress.update(task, completed=count), warn=complain
            )

            async def transfer() -> "Imported":
                async with Sidecar(url, wait_s=wait, warn=complain, bearer=bearer) as client:
                    return await import_file(client, source, tenant, from_line, watching)

            source.next_line = from_line
            try:
                done = run_here(transfer())
            except KeyboardInterrupt:
                progress.stop()
                complain(f"interrupted; resume with --from-line {source.next_line}")
                raise typer.Exit(EXIT_INTERRUPTED) from None
            except SidecarError as error:
                if source.next_line == from_line:
                    raise
                message = f"{error.message}; resume with --from-line {source.next_line}"
                raise retold(error, message) from error
        typer.echo(_imported(done))


@commands.command("export")
def export(
    *,
    url: UrlOption,
    file: Annotated[
        str, typer.Argument(help="Where to; .gz is compressed; - is standard output.")
    ] = "-",
    tenant: Annotated[str, typer.Option(help="Which tenant.")] = "default",
    all_tenants: Annotated[
        bool, typer.Option("--all-tenants", help="Every tenant, instead of one.")
    ] = False,
    key_file: KeyOption = None,
    wait: WaitOption = 60,
) -> None:
    """Write all relationships of a tenant to a file, sorted, one per line."""
    with one_line():
        from sidecar.commands.bulk import Sidecar, Watching, bearer_of, check_url, export_file
        from sidecar.core.relationship import check_tenant

        check_tenant(tenant)
        check_url(url)
        bearer = bearer_of("--key-file", key_file)
        with progress_of(count_bar()) as progress:
            task = progress.add_task("relationships", total=None)
            watching = Watching(advance=lambda count: progress.update(task, completed=count))

            async def transfer() -> str:
                async with Sidecar(url, wait_s=wait, warn=complain, bearer=bearer) as client:
                    chosen = None if all_tenants else tenant
                    done = await export_file(client, file, chosen, watching)
                return (
                    f"exported {done.relationships:,} relationships of {done.tenants} "
                    f"tenant{'' if done.tenants == 1 else 's'} in {done.seconds:.1f} s"
                )

            summary = run_here(transfer())
        # Standard output may be the export itself.
        typer.echo(summary, err=True)


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
