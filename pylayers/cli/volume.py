"""`pylayers volume`."""

from __future__ import annotations

import click

from pylayers.cli.command import format_option
from pylayers.cli.failure import perform_each
from pylayers.cli.form import confirm, print_rows, show_size
from pylayers.cli.inspect import describe_volume, form_option, names_argument, show
from pylayers.cli.option import read_pairs
from pylayers.cli.session import Session
from pylayers.errors import Unsupported

TITLES = ("DRIVER", "VOLUME NAME")


@click.command()
@click.argument("name", required=False)
@click.option("-d", "--driver", default="local", help="Only local exists.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Label the volume.")
@click.pass_obj
def create(session: Session, name: str | None, driver: str, labels: tuple[str, ...]) -> None:
    """Create a volume, or leave the one of that name as it is; print its name."""
    if driver != "local":
        raise Unsupported(f"volume driver {driver!r} is not supported", hint="leave out --driver")
    with session.open() as engine:
        click.echo(engine.volumes.create(name, read_pairs(labels) if labels else None).name)


@click.command()
@click.option("-q", "--quiet", is_flag=True, help="Show names only.")
@format_option
@click.pass_obj
def ls(session: Session, quiet: bool, form: str | None) -> None:
    """List volumes."""
    with session.open() as engine:
        volumes = engine.volumes.list()
    if quiet:
        for volume in volumes:
            click.echo(volume.name)
        return
    rows = [{"Driver": "local", "Name": volume.name, **describe_volume(volume)} for volume in volumes]
    print_rows(TITLES, rows, form)


@click.command()
@names_argument
@form_option
@click.pass_obj
def inspect(session: Session, names: tuple[str, ...], form: str | None) -> int:
    """Show everything known of volumes."""
    return show(session, names, form, ("volume",))


@click.command()
@names_argument
@click.option("-f", "--force", is_flag=True, help="A volume that doesn't exist is no error.")
@click.pass_obj
def rm(session: Session, names: tuple[str, ...], force: bool) -> int:
    """Remove volumes with their data."""

    def remove(name: str) -> None:
        if engine.volumes.remove(name, force=force):
            click.echo(name)

    with session.open() as engine:
        return perform_each(names, remove)


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Remove named volumes as well.")
@click.option("-f", "--force", is_flag=True, help="Don't ask.")
@click.pass_obj
def prune(session: Session, everything: bool, force: bool) -> None:
    """Remove anonymous volumes that no container uses (-a: named ones too)."""
    kind = "all volumes" if everything else "anonymous local volumes"
    if not force:
        confirm([f"WARNING! This will remove {kind} not used by at least one container."], "volume prune")
    with session.open() as engine:
        names, freed_bytes = engine.volumes.prune(everything=everything)
    if names:
        click.echo("Deleted Volumes:\n" + "\n".join(names) + "\n")
    click.echo(f"Total reclaimed space: {show_size(freed_bytes)}")
