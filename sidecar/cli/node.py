"""The commands of one node on this machine: run, demo, check-config, reset."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.cli.common import (
    ConfigOption,
    NodeOption,
    one_line,
    reload_on_hangup,
    run_here,
    stop_on_signals,
)
from sidecar.core.topology import ReplicationStrategy

if TYPE_CHECKING:
    from sidecar.config import Config


commands = typer.Typer()


@commands.command()
def run(config: ConfigOption = None, node: NodeOption = None) -> None:
    """Run one node in the foreground until SIGTERM or Ctrl-C; SIGHUP reloads its topology."""
    with one_line():
        from sidecar.config import load

        settings = load(config, node=node, environ=os.environ)
        from sidecar.app import run_node
        from sidecar.reload import Reading

        def read() -> "Config":
            # Also where it was the only one of its region, and is no more.
            return load(config, node=settings.node, environ=os.environ)

        async def serve() -> None:
            reading = Reading(read, reload_on_hangup())
            await run_node(settings, stop=stop_on_signals(), reading=reading)

        run_here(serve())


@commands.command()
def demo(
    regions: Annotated[int, typer.Option(help="How many regions, one node each.")] = 2,
    data_dir: Annotated[Path, typer.Option(help="Where the nodes keep their data.")] = Path(
        "./data"
    ),
    base_port: Annotated[
        int, typer.Option(help="Node i, from 0: app at base+10i, peer +1, admin +2.")
    ] = 8080,
    strategy: Annotated[
        ReplicationStrategy, typer.Option(help="Who takes writes; a primary is the first region.")
    ] = ReplicationStrategy.ACTIVE_ACTIVE,
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Keep the data in a temporary folder instead.")
    ] = False,
) -> None:
    """Run several regions on this machine until Ctrl-C."""
    with one_line():
        from sidecar.commands.demo import data_folder, plan, run_demo

        plan(regions, base_port, data_dir)
        with data_folder(data_dir, ephemeral=ephemeral) as folder:
            nodes = plan(regions, base_port, folder)

            async def serve() -> None:
                await run_demo(
                    nodes,
                    folder,
                    stop=stop_on_signals(),
                    say=typer.echo,
                    environ=os.environ,
                    farewell="removes their data" if ephemeral else "keeps their data",
                    strategy=strategy,
                )

            run_here(serve())


@commands.command("check-config")
def check_config(
    file: Annotated[Path, typer.Argument(help="The YAML file.")], node: NodeOption = None
) -> None:
    """Say what a configuration file means, and what `run` would refuse of it."""
    with one_line():
        from sidecar.api.answers import Answers
        from sidecar.config import load
        from sidecar.rules import custom_script, rules_of
        from sidecar.security.guard import Guard

        settings = load(file, node=node, environ=os.environ)
        for line in _meaning(settings):
            typer.echo(line)
        # What the files of `security` hold is not shown, but must be of use.
        Guard(settings, Answers(settings.this_node))
        custom = custom_script(settings)
        if custom is not None:
            from sidecar.store.trial import try_on_embedded

            count = run_here(try_on_embedded(custom, rules_of(settings, custom)))
            typer.echo(f"custom script        {custom.file}: sound for {count} sets of siblings")
        for remark in settings.remarks():
            typer.echo(f"note: {remark}")


@commands.command()
def reset(
    config: ConfigOption = None,
    node: NodeOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it, only say what.")] = False,
) -> None:
    """Delete all data of a stopped node: it comes back empty and gets all from the others."""
    with one_line():
        from sidecar.commands.reset import reset_node
        from sidecar.config import load

        run_here(
            reset_node(load(config, node=node, environ=os.environ), is_sure=yes, say=typer.echo)
        )


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
    from sidecar.security.settings import SecuritySettings

    yield f"security             {(config.security or SecuritySettings()).in_words}"
    yield f"store                {config.redis.safe_url}"
    if config.database is not None:
        yield f"database             {config.database.dialect} at {config.database.url}"
