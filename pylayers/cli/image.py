"""Verbs about images: import, images, history, tag, rmi, image prune, save, load."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pylayers.cli.command import format_option
from pylayers.cli.form import (
    clip,
    confirm,
    print_rows,
    read_moment,
    shorten,
    show_ago,
    show_size,
)
from pylayers.cli.session import Session
from pylayers.errors import InvalidInput

if TYPE_CHECKING:
    from pylayers.engine import Engine
    from pylayers.engine.image import Removal
    from pylayers.image.view import Image
    from pylayers.oci.reference import Reference

NONE = "<none>"


def familiar(reference: str) -> str:
    """Return a stored reference as people write it."""
    from pylayers.oci.reference import Reference

    return Reference.parse(reference).familiar


def created_at(image: Image) -> float:
    """Return when an image was made; where its config has the epoch of reproducible builds, when it was stored."""
    return (read_moment(image.config.created) or 0) or image.built_ns / 1e9


@click.command()
@click.argument("source", metavar="FILE|-")
@click.argument("name", required=False)
@click.option("-c", "--change", "changes", multiple=True, metavar="INSTRUCTION", help="Apply a Dockerfile instruction.")
@click.option("-m", "--message", default="", help="Comment in the image's history.")
@click.pass_obj
def import_(session: Session, source: str, name: str | None, changes: tuple[str, ...], message: str) -> None:
    """Make an image of one layer from a root file system's tar, plain or compressed; - is stdin."""
    with session.open() as engine:
        tar = sys.stdin.buffer if source == "-" else Path(source)
        click.echo(engine.images.import_(tar, name, changes=changes, message=message).id)


@click.command()
@click.argument("name", required=False)
@click.option("-a", "--all", "everything", is_flag=True, help="Accepted for docker's sake: there are no hidden images.")
@click.option("-q", "--quiet", is_flag=True, help="Show ids only.")
@click.option("--no-trunc", is_flag=True, help="Show whole ids.")
@format_option
@click.pass_obj
def images(
    session: Session, name: str | None, everything: bool, quiet: bool, no_trunc: bool, form: str | None
) -> None:
    """List images, all or those of one repository."""
    with session.open() as engine:
        rows = image_rows(engine, name, no_trunc=no_trunc)
    if quiet:
        for image_id in dict.fromkeys(row["ID"] for row in rows):
            click.echo(image_id)
        return
    print_rows(IMAGE_TITLES, rows, form)


IMAGE_TITLES = ("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE")


def image_rows(engine: Engine, name: str | None = None, *, no_trunc: bool = False) -> list[dict[str, Any]]:
    """Return one row for each name, and one for each image without a name."""
    from pylayers.oci.reference import Reference

    wanted = None if name is None else Reference.parse(name)
    rows: list[dict[str, Any]] = []
    for image in sorted(engine.images.list(), key=created_at, reverse=True):
        for reference in image.references or ("",):
            parsed = Reference.parse(reference) if reference else None
            if wanted is not None and (parsed is None or not covers(wanted, parsed)):
                continue
            created = created_at(image)
            rows.append(
                {
                    "Repository": NONE if parsed is None else parsed.familiar_name,
                    "Tag": (parsed.tag if parsed is not None else None) or NONE,
                    "ID": image.id if no_trunc else shorten(image.id),
                    "CreatedSince": show_ago(created),
                    "Size": show_size(image.size_bytes),
                    "Digest": image.digest,
                    "CreatedAt": image.config.created,
                    "SizeBytes": image.size_bytes,
                }
            )
    return rows


def covers(wanted: Reference, found: Reference) -> bool:
    """Tell whether a reference is of the repository, and has the tag, that is asked for."""
    return found.name == wanted.name and wanted.tag in (None, found.tag)


@click.command()
@click.argument("name", metavar="IMAGE")
@click.option("--no-trunc", is_flag=True, help="Show whole ids and instructions.")
@click.option("-q", "--quiet", is_flag=True, help="Show ids only.")
@format_option
@click.pass_obj
def history(session: Session, name: str, no_trunc: bool, quiet: bool, form: str | None) -> None:
    """Show the steps of an image, newest first."""
    with session.open() as engine:
        lines = engine.images.history(name)
        image = engine.images.get(name)
    stored = created_at(image)
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines):
        image_id = (image.id if no_trunc else shorten(image.id)) if number == 0 else "<missing>"
        created_by = " ".join(line.created_by.split())
        rows.append(
            {
                "ID": image_id,
                "CreatedSince": show_ago((read_moment(line.created) or 0) or stored),
                "CreatedBy": created_by if no_trunc else clip(created_by, 45),
                "Size": show_size(line.size_bytes),
                "Comment": line.comment,
                "CreatedAt": line.created,
                "DiffID": line.diff_id or "",
                "SizeBytes": line.size_bytes,
            }
        )
    if quiet:
        for row in rows:
            click.echo(row["ID"])
        return
    print_rows(("IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"), rows, form)


@click.command()
@click.argument("source", metavar="IMAGE")
@click.argument("name", metavar="NAME[:TAG]")
@click.pass_obj
def tag(session: Session, source: str, name: str) -> None:
    """Give an image another name."""
    with session.open() as engine:
        engine.images.tag(source, name)


@click.command()
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Remove it though stopped containers use it or it has several names.")
@click.pass_obj
def rmi(session: Session, names: tuple[str, ...], force: bool) -> int:
    """Remove names, and each image whose last name goes."""
    from pylayers.cli.failure import perform_each
    from pylayers.errors import NotFound

    def remove(name: str) -> None:
        try:
            show_removal(engine.images.remove([name], force=force))
        except NotFound:
            if not force:
                raise

    with session.open() as engine:
        return perform_each(names, remove)


def list_removed(untagged: Sequence[str], deleted: Sequence[str]) -> list[str]:
    """Return the lines by which a prune names what it removed."""
    return [*(f"untagged: {familiar(name)}" for name in untagged), *(f"deleted: {digest}" for digest in deleted)]


def show_removal(removal: Removal) -> None:
    """Print what was removed."""
    for reference in removal.untagged:
        click.echo(f"Untagged: {familiar(reference)}")
    for digest in removal.deleted:
        click.echo(f"Deleted: {digest}")


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Remove every image that no container uses.")
@click.option("-f", "--force", is_flag=True, help="Don't ask.")
@click.pass_obj
def prune(session: Session, everything: bool, force: bool) -> None:
    """Remove images without a name (-a: all that no container uses)."""
    kind = "all images without at least one container associated to them" if everything else "all dangling images"
    if not force:
        confirm([f"WARNING! This will remove {kind}."], "image prune")
    with session.open() as engine:
        removal = engine.images.prune(everything=everything)
    if removal.untagged or removal.deleted:
        click.echo("Deleted Images:\n" + "\n".join(list_removed(removal.untagged, removal.deleted)) + "\n")
    click.echo(f"Total reclaimed space: {show_size(removal.freed_bytes)}")


@click.command()
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="FILE", help="Write to a file (for oci-dir: a new or empty directory).")
@click.option(
    "--format",
    "form",
    type=click.Choice(["docker-archive", "oci-dir"]),
    default="docker-archive",
    show_default=True,
    help="A tar that docker, podman and skopeo load, or an OCI image layout.",
)
@click.pass_obj
def save(session: Session, names: tuple[str, ...], output: str | None, form: str) -> None:
    """Write images to a tar archive (to stdout by default)."""
    if form == "oci-dir":
        if output is None or len(names) != 1:
            raise InvalidInput("an OCI layout takes one image and a directory", hint="give -o DIR")
        with session.open() as engine:
            engine.images.save_layout(names[0], Path(output))
        return
    if output is None and sys.stdout.isatty():
        raise InvalidInput("cowardly refusing to save to a terminal", hint="use the -o flag or redirect")
    from pylayers.transfer.archivetar import write_output

    with session.open() as engine:
        for name in names:
            engine.images.get(name)  # before the file is touched
        write_output(output or "-", lambda descriptor: engine.images.save(names, descriptor))


@click.command()
@click.option("-i", "--input", "source", metavar="FILE", help="Read from a file instead of stdin.")
@click.option("-q", "--quiet", is_flag=True, help="Accepted for docker's sake: nothing but the result is shown.")
@click.pass_obj
def load(session: Session, source: str | None, quiet: bool) -> None:
    """Load images from a docker-archive, plain or compressed."""
    if source is None and sys.stdin.isatty():
        raise InvalidInput("requested load from stdin, but stdin is empty", hint="give -i FILE or a pipe")
    with session.open() as engine:
        for image in engine.images.load(Path(source) if source is not None else sys.stdin.buffer):
            for name, old in image.replaced:
                click.echo(
                    f"The image {familiar(name)} already exists, renaming the old one with ID {old} to empty string"
                )
            for name in image.names:
                click.echo(f"Loaded image: {familiar(name)}")
            if not image.names:
                click.echo(f"Loaded image ID: {image.id}")


def show_images(engine: Engine) -> None:
    """Print the table of all images."""
    print_rows(IMAGE_TITLES, image_rows(engine))
