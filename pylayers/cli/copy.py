"""`pylayers cp`."""

from __future__ import annotations

import sys

import click

from pylayers.cli.session import Session
from pylayers.errors import InvalidInput


def split_place(text: str) -> tuple[str, str]:
    """Split CONTAINER:PATH; the container is "" for a path of the host, which may hold a colon after a slash or dot."""
    if text.startswith(("/", ".")):
        return "", text
    container, colon, path = text.partition(":")
    return (container, path) if colon and "/" not in container else ("", text)


@click.command()
@click.option("-a", "--archive", is_flag=True, help="Keep user and group ids.")
@click.option("-L", "--follow-link", "follow", is_flag=True, help="Follow a symlink at the end of SOURCE.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing of what was copied.")
@click.argument("source", metavar="[CONTAINER:]SOURCE|-")
@click.argument("target", metavar="[CONTAINER:]TARGET|-")
@click.pass_obj
def cp(session: Session, source: str, target: str, archive: bool, follow: bool, quiet: bool) -> None:
    """Copy files between a container and the host; "-" is a tar on stdin or stdout.

    "SOURCE/." copies a directory's content without the directory itself.
    """
    from_container, from_path = split_place(source)
    to_container, to_path = split_place(target)
    if from_container and to_container:
        raise InvalidInput("copying between containers is not supported", hint="copy to the host in between")
    if not from_container and not to_container:
        raise InvalidInput("one of SOURCE and TARGET must be CONTAINER:PATH")
    if not (from_path if from_container else to_path):
        raise InvalidInput("the path inside the container must not be empty")
    with session.open() as engine:
        if from_container:
            out = sys.stdout.buffer if target == "-" else to_path
            if target == "-" and sys.stdout.isatty():
                raise InvalidInput("refusing to write a tar to a terminal", hint="send it to a file or a pipe")
            engine.containers.copy_from(from_container, from_path, out, archive=archive, follow=follow)
        else:
            given = sys.stdin.buffer if source == "-" else from_path
            engine.containers.copy_to(to_container, given, to_path, archive=archive, follow=follow)
    if not quiet and "-" not in (source, target):
        click.echo(f"Successfully copied to {target}", err=True)
