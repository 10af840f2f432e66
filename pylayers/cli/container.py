"""Verbs about containers that exist: start, stop, kill, wait, rm, ps, logs, diff, commit, container prune."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pylayers.cli.buildcommand import make_option
from pylayers.cli.command import format_option
from pylayers.cli.commit import OPTIONS as COMMIT_OPTIONS
from pylayers.cli.commit import commit as perform_commit
from pylayers.cli.failure import perform_each
from pylayers.cli.form import (
    clip,
    confirm,
    print_rows,
    read_moment,
    show_ago,
    show_duration,
    show_size,
)
from pylayers.cli.session import Session
from pylayers.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from pylayers.engine import Engine
    from pylayers.engine.container import Container

names_argument = click.argument("names", metavar="CONTAINER...", nargs=-1, required=True)


@click.command()
@names_argument
@click.option("-a", "--attach", is_flag=True, help="Stay for its output and its exit code.")
@click.option("-i", "--interactive", is_flag=True, help="Attach as well; stdin is passed if it was created with -i.")
@click.pass_obj
def start(session: Session, names: tuple[str, ...], attach: bool, interactive: bool) -> int:
    """Start stopped containers."""
    attach = attach or interactive
    if attach and len(names) > 1:
        raise InvalidInput("you cannot start and attach multiple containers at once")

    def begin(name: str) -> None:
        engine.containers.start(name)
        click.echo(name)

    with session.open() as engine:
        if attach:
            return engine.containers.attach(names[0])
        return perform_each(names, begin)


@click.command()
@names_argument
@click.option("-t", "--time", "--timeout", "timeout_s", type=click.IntRange(min=0), metavar="SECONDS",
              help="How long to wait before it is killed (default: what it was created with).")  # fmt: skip
@click.pass_obj
def stop(session: Session, names: tuple[str, ...], timeout_s: int | None) -> int:
    """Stop running containers: ask first, kill later."""

    def end(name: str) -> None:
        engine.containers.stop(name, timeout_s)
        click.echo(name)

    with session.open() as engine:
        return perform_each(names, end)


@click.command()
@names_argument
@click.option("-s", "--signal", default="KILL", show_default=True, help="Signal, by name or number.")
@click.pass_obj
def kill(session: Session, names: tuple[str, ...], signal: str) -> int:
    """Send a signal to containers."""

    def send(name: str) -> None:
        engine.containers.kill(name, signal)
        click.echo(name)

    with session.open() as engine:
        return perform_each(names, send)


@click.command()
@names_argument
@click.pass_obj
def wait(session: Session, names: tuple[str, ...]) -> int:
    """Wait for containers to end, and print their exit codes."""
    with session.open() as engine:
        return perform_each(names, lambda name: click.echo(engine.containers.wait(name)))


@click.command()
@names_argument
@click.option("-f", "--force", is_flag=True, help="Kill it first if it runs.")
@click.option("-v", "--volumes", is_flag=True, help="Remove its anonymous volumes as well.")
@click.pass_obj
def rm(session: Session, names: tuple[str, ...], force: bool, volumes: bool) -> int:
    """Remove containers."""

    def remove(name: str) -> None:
        try:
            engine.containers.remove(name, force=force, volumes=volumes)
        except NotFound:
            if force:
                return
            raise
        click.echo(name)

    with session.open() as engine:
        return perform_each(names, remove)


PS_TITLES = ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES")


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Show those that don't run, too.")
@click.option("-q", "--quiet", is_flag=True, help="Show ids only.")
@click.option("--no-trunc", is_flag=True, help="Show whole ids and commands.")
@click.option("-s", "--size", "sizes", is_flag=True, help="Count what each takes on disk.")
@format_option
@click.pass_obj
def ps(session: Session, everything: bool, quiet: bool, no_trunc: bool, sizes: bool, form: str | None) -> None:
    """List containers."""
    with session.open() as engine:
        containers = engine.containers.list(everything=everything)
        rows = [describe_row(container, no_trunc=no_trunc) for container in containers]
        # docker, too, counts when a template asks for it.
        if not quiet and (sizes or (form is not None and ".Size" in form)):
            for row, container in zip(rows, containers, strict=True):
                row["Size"] = show_sizes(engine, container.id)
    if quiet:
        for container in containers:
            click.echo(container.id if no_trunc else container.id[:12])
        return
    print_rows((*PS_TITLES, "SIZE") if sizes else PS_TITLES, rows, form)


def show_sizes(engine: Engine, container_id: str) -> str:
    """Return docker's words for what a container takes; "" when it is removed meanwhile."""
    try:
        size = engine.containers.size(container_id)
    except NotFound:
        return ""
    return f"{show_size(size.own_bytes)} (virtual {show_size(size.root_bytes)})"


def describe_row(container: Container, *, no_trunc: bool = False) -> dict[str, Any]:
    """Return one line of ps."""
    command = " ".join(container.arguments)
    return {
        "ID": container.id if no_trunc else container.id[:12],
        "Image": container.image,
        "Command": f'"{command if no_trunc else clip(command, 20)}"',
        "CreatedSince": show_ago(read_moment(container.created) or 0),
        "Status": show_status(container),
        "Names": container.name,
        "Size": "",
        "State": container.state,
        "CreatedAt": container.created,
        "ExitCode": container.exit_code,
        "Labels": dict(container.labels),
        "Mounts": [mount.source or mount.type for mount in container.mounts],
    }


def show_status(container: Container) -> str:
    """Return docker's words for a container's state."""
    import time

    if container.running:
        return f"Up {show_duration(time.time() - (read_moment(container.started) or time.time()))}"
    if container.state == "created":
        return "Created"
    word = "Dead" if container.state == "dead" else "Exited"
    finished = read_moment(container.finished)
    return f"{word} ({container.exit_code})" + (f" {show_ago(finished)}" if finished else "")


def show_containers(engine: Engine) -> None:
    """Print the table of all containers."""
    print_rows(PS_TITLES, [describe_row(container) for container in engine.containers.list(everything=True)])


@click.command()
@click.argument("name", metavar="CONTAINER")
@click.option("-f", "--follow", is_flag=True, help="Wait for more until the container ends.")
@click.option("-n", "--tail", default="all", show_default=True, metavar="LINES", help="Show the last lines only.")
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line was written.")
@click.option("--since", metavar="TIME", help="Show what is younger: RFC 3339, or a duration such as 10m.")
@click.pass_obj
def logs(session: Session, name: str, follow: bool, tail: str, timestamps: bool, since: str | None) -> None:
    """Show what a container wrote, each stream on its own."""
    if tail != "all" and not tail.removeprefix("-").isdecimal():
        raise InvalidInput(f"invalid --tail {tail!r}", hint="give a number or all")
    count = None if tail == "all" or int(tail) < 0 else int(tail)
    last = None
    with session.open() as engine:
        for line in engine.containers.logs(name, follow=follow, tail=count, since=since):
            stream = sys.stderr if line.stream == "stderr" else sys.stdout
            if last not in (None, stream):
                last.flush()  # one stream after the other, in the order they were written
            last = stream
            stream.write(f"{line.time} {line.text}" if timestamps else line.text)
            if follow:
                stream.flush()
        if last is not None:
            last.flush()


@click.command()
@click.argument("name", metavar="CONTAINER")
@click.pass_obj
def diff(session: Session, name: str) -> None:
    """List what a container (A)dded, (C)hanged and (D)eleted."""
    with session.open() as engine:
        changes = engine.containers.diff(name)
    sys.stdout.flush()
    for change in changes:
        sys.stdout.buffer.write(b"%s /%s\n" % (change.kind.encode(), change.path))
    sys.stdout.buffer.flush()


@click.pass_obj
def take_commit(session: Session, /, **given: Any) -> None:
    """Commit with what click has read."""
    perform_commit(session, **given)


commit = click.Command(
    "commit",
    params=[
        *map(make_option, COMMIT_OPTIONS),
        click.Argument(["container"], metavar="CONTAINER"),
        click.Argument(["name"], metavar="NAME[:TAG]", required=False),
    ],
    callback=take_commit,
    help=perform_commit.__doc__,
)


@click.command()
@click.option("-f", "--force", is_flag=True, help="Don't ask.")
@click.pass_obj
def prune(session: Session, force: bool) -> None:
    """Remove all stopped containers."""
    if not force:
        confirm(["WARNING! This will remove all stopped containers."], "container prune")
    with session.open() as engine:
        freed_bytes = engine.system.container_usage().reclaimable_bytes
        removed = engine.containers.prune()
    if removed:
        click.echo("Deleted Containers:\n" + "\n".join(removed) + "\n")
    click.echo(f"Total reclaimed space: {show_size(freed_bytes)}")
