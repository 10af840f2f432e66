"""`pylayers inspect`: everything known of images, containers and volumes, as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from pylayers.cli.form import print_one
from pylayers.cli.session import Session
from pylayers.errors import InvalidInput, NotFound, PylayersError

if TYPE_CHECKING:
    from pylayers.engine import Engine
    from pylayers.volume.volumes import Volume

KINDS = ("container", "image", "volume")  # in docker's order of search

names_argument = click.argument("names", metavar="NAME...", nargs=-1, required=True)
form_option = click.option("-f", "--format", "form", metavar="FORMAT", help="'json' or a template such as '{{.Id}}'.")

size_option = click.option("-s", "--size", "sizes", is_flag=True, help="Count what containers take on disk.")


@click.command()
@names_argument
@form_option
@size_option
@click.option("--type", "kind", type=click.Choice(KINDS), help="Look for this kind only.")
@click.pass_obj
def inspect(session: Session, names: tuple[str, ...], form: str | None, sizes: bool, kind: str | None) -> int:
    """Show everything known of images, containers and volumes."""
    return show(session, names, form, KINDS if kind is None else (kind,), sizes=sizes)


@click.command(name="inspect")
@names_argument
@form_option
@click.pass_obj
def inspect_image(session: Session, names: tuple[str, ...], form: str | None) -> int:
    """Show everything known of images."""
    return show(session, names, form, ("image",))


@click.command(name="inspect")
@names_argument
@form_option
@size_option
@click.pass_obj
def inspect_container(session: Session, names: tuple[str, ...], form: str | None, sizes: bool) -> int:
    """Show everything known of containers."""
    return show(session, names, form, ("container",), sizes=sizes)


def show(
    session: Session, names: Sequence[str], form: str | None, kinds: Sequence[str], *, sizes: bool = False
) -> int:
    """Print what is found, as one array or by a template, and tell what isn't."""
    from pylayers.cli.failure import report

    found: list[dict[str, Any]] = []
    code = 0
    failures: list[PylayersError] = []
    with session.open() as engine:
        for name in names:
            try:
                one = find(engine, name, kinds)
                found.append({**one, **count_sizes(engine, one)} if sizes and "HostConfig" in one else one)
            except PylayersError as error:
                failures.append(error)
    if form is None:
        print_one(found, "json")
    else:
        for one in found:
            print_one(one, form, indent=None)
    for failure in failures:
        failed = report(failure)
        code = code or failed
    return code


def count_sizes(engine: Engine, container: dict[str, Any]) -> dict[str, int]:
    """Return docker's two sizes of a container."""
    size = engine.containers.size(container["Id"])
    return {"SizeRw": size.own_bytes, "SizeRootFs": size.root_bytes}


def find(engine: Engine, name: str, kinds: Sequence[str]) -> dict[str, Any]:
    """Return the first thing of that name. Raises NotFound; what is found but ambiguous or damaged is told as such."""
    for kind in kinds:
        try:
            return FINDERS[kind](engine, name)
        except NotFound:
            continue
        except InvalidInput:
            if len(kinds) == 1:
                raise
    what = kinds[0] if len(kinds) == 1 else "object"
    raise NotFound(f"no such {what}: {name}")


def find_container(engine: Engine, name: str) -> dict[str, Any]:
    """Return a container in docker's shape."""
    return engine.containers.inspect(name)


def find_image(engine: Engine, name: str) -> dict[str, Any]:
    """Return an image in docker's shape."""
    from pylayers.cli.image import familiar
    from pylayers.engine.inspect import describe_image

    values = describe_image(engine.images.get(name))
    return {**values, "RepoTags": [familiar(reference) for reference in values["RepoTags"]]}


def find_volume(engine: Engine, name: str) -> dict[str, Any]:
    """Return a volume in docker's shape."""
    return describe_volume(engine.volumes.inspect(name))


def describe_volume(volume: Volume) -> dict[str, Any]:
    """Return a volume in docker's shape."""
    return {
        "CreatedAt": volume.created,
        "Driver": "local",
        "Labels": dict(volume.labels),
        "Mountpoint": str(volume.path),
        "Name": volume.name,
        "Options": {},
        "Scope": "local",
        "Anonymous": volume.anonymous,
    }


FINDERS: dict[str, Callable[[Any, str], dict[str, Any]]] = {
    "container": find_container,
    "image": find_image,
    "volume": find_volume,
}
