"""`pylayers run` and `pylayers create` as click commands, for help, errors and unusual command lines: see runline."""

from __future__ import annotations

from typing import Any

import click

from pylayers.cli.buildcommand import make_option
from pylayers.cli.command import ContainerCommand
from pylayers.cli.run import create as perform_create
from pylayers.cli.run import run as perform_run
from pylayers.cli.runline import DETACH, OPTIONS
from pylayers.cli.session import Session

HELP_FLAGS = {"help_option_names": ["--help"]}  # -h is the host name's


def make_arguments() -> list[click.Parameter]:
    """Return the arguments of both verbs: an image, and a command that is not ours to read."""
    return [click.Argument(["image"]), click.Argument(["command"], nargs=-1, type=click.UNPROCESSED)]


@click.pass_obj
def take_run(session: Session, /, **given: Any) -> int:
    """Run with what click has read."""
    return perform_run(session, **given)


@click.pass_obj
def take_create(session: Session, /, **given: Any) -> None:
    """Create with what click has read."""
    perform_create(session, **given)


run = ContainerCommand(
    "run",
    params=[make_option(DETACH), *map(make_option, OPTIONS), *make_arguments()],
    callback=take_run,
    help=perform_run.__doc__,
    context_settings=HELP_FLAGS,
)
create = ContainerCommand(
    "create",
    params=[*map(make_option, OPTIONS), *make_arguments()],
    callback=take_create,
    help=perform_create.__doc__,
    context_settings=HELP_FLAGS,
)
