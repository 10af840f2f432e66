"""`pylayers system`: info, df, prune, check, rebuild."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pylayers.cli.command import format_option
from pylayers.cli.form import confirm, print_one, print_rows, shorten, show_size, write_table
from pylayers.cli.session import Session

if TYPE_CHECKING:
    from pylayers.engine import Engine
    from pylayers.engine.system import UsageRow

USAGE_TITLES = ("TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE")


@click.command()
@click.option("-f", "--format", "form", metavar="FORMAT", help="'json' or a template such as '{{.Driver}}'.")
@click.pass_obj
def info(session: Session, form: str | None) -> None:
    """Describe the data root, the machine and what was chosen on it."""
    with session.open() as engine:
        found = engine.system.info()
    if form is not None:
        print_one(found, form)
        return
    for name, value in found.items():
        if isinstance(value, dict):
            click.echo(f"{name}:")
            for inner, told in value.items():
                click.echo(f"  {inner}: {told}")
        else:
            click.echo(f"{name}: {value}")


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="Show each thing by itself.")
@format_option
@click.pass_obj
def df(session: Session, verbose: bool, form: str | None) -> None:
    """Show what takes how much disk space, and how much of it a prune would free."""
    with session.open() as engine:
        if verbose and form is None:
            show_all(engine)
            return
        rows = engine.system.usage()
    print_rows(
        USAGE_TITLES,
        [
            {
                "Type": row.kind,
                "TotalCount": row.total,
                "Active": row.active,
                "Size": show_size(row.size_bytes),
                "Reclaimable": show_reclaimable(row),
                "SizeBytes": row.size_bytes,
                "ReclaimableBytes": row.reclaimable_bytes,
            }
            for row in rows
        ],
        form,
    )


def show_reclaimable(row: UsageRow) -> str:
    """Return the bytes that can be freed, with their share."""
    share = f" ({100 * row.reclaimable_bytes // row.size_bytes}%)" if row.size_bytes else ""
    return show_size(row.reclaimable_bytes) + share


def show_all(engine: Engine) -> None:
    """Print docker's df -v: a table for each kind."""
    from pylayers.cli.container import show_containers
    from pylayers.cli.image import show_images
    from pylayers.volume.volumes import disk_bytes

    click.echo("Images space usage:\n")
    show_images(engine)
    click.echo("\nContainers space usage:\n")
    show_containers(engine)
    click.echo("\nLocal Volumes space usage:\n")
    volumes = [
        (volume.name, str(len(engine.containers.using_volume(volume.name))), show_size(disk_bytes(volume.path)))
        for volume in engine.volumes.list()
    ]
    write_table([("VOLUME NAME", "LINKS", "SIZE"), *volumes])
    steps = list(engine.store.metadata.steps.walk())
    layers = engine.store.layers
    total = 0
    lines: list[tuple[str, str, str]] = []
    for step in steps:
        kept = step.diff_id is not None and layers.exists(step.diff_id)
        size_bytes = layers.size_bytes(step.diff_id) if step.diff_id is not None and kept else 0
        total += size_bytes
        lines.append((shorten(step.key), shorten(step.diff_id or "") or "-", show_size(size_bytes)))
    click.echo(f"\nBuild cache usage: {show_size(total)}\n")
    write_table([("CACHE ID", "LAYER", "SIZE"), *lines])


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Remove every image that no container uses.")
@click.option("--volumes", is_flag=True, help="Remove unused anonymous volumes as well.")
@click.option("-f", "--force", is_flag=True, help="Don't ask.")
@click.pass_obj
def prune(session: Session, everything: bool, volumes: bool, force: bool) -> None:
    """Remove stopped containers, unused images and the build cache."""
    if not force:
        lines = ["all stopped containers"]
        if volumes:
            lines.append("all anonymous volumes not used by at least one container")
        unused = "all images without at least one container associated to them"
        lines.append(unused if everything else "all dangling images")
        lines.append("all build cache")
        confirm(["WARNING! This will remove:", *(f"  - {line}" for line in lines), ""], "system prune")
    from pylayers.cli.image import list_removed

    with session.open() as engine:
        result = engine.system.prune(everything=everything, volumes=volumes)
    for title, names in (
        ("Deleted Containers", result.containers),
        ("Deleted Images", list_removed(result.untagged, result.images)),
        ("Deleted Volumes", result.volumes),
    ):
        if names:
            click.echo(f"{title}:\n" + "\n".join(names) + "\n")
    click.echo(f"Total reclaimed space: {show_size(result.freed_bytes)}")


@click.command()
@click.option("--repair", is_flag=True, help="Mend or remove what is damaged.")
@format_option
@click.pass_obj
def check(session: Session, repair: bool, form: str | None) -> int:
    """Compare everything stored with its digests; leave with 6 when something is wrong and stays so."""
    from pylayers.errors import IntegrityError

    with session.open() as engine:
        problems = engine.system.check(repair=repair)
    if form is None and not problems:
        click.echo("no problems found")
        return 0
    rows = [
        {
            "Kind": problem.kind,
            "Subject": problem.subject,
            "Problem": problem.message,
            "Result": "repaired" if problem.repaired else "open",
        }
        for problem in problems
    ]
    print_rows(("KIND", "SUBJECT", "PROBLEM", "RESULT"), rows, form)
    return 0 if all(problem.repaired for problem in problems) else IntegrityError.exit_code


@click.command()
@click.pass_obj
def rebuild(session: Session) -> None:
    """Make the database again from the files; the build cache starts empty."""
    with session.open() as engine:
        engine.system.rebuild()
        images = len(engine.images.list())
    click.echo(f"database rebuilt: {images} image{'' if images == 1 else 's'}")
