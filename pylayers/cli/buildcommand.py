"""`pylayers build` as a click command, for help, errors and unusual command lines: see buildline."""

from __future__ import annotations

from typing import Any

import click

from pylayers.cli.build import build as perform_build
from pylayers.cli.buildline import FLAG, MANY, OPTIONS, Option
from pylayers.cli.session import Session


def make_option(option: Option) -> click.Option:
    """Return an option of the table as click has it."""
    return click.Option(
        [*option.flags, option.name],
        help=option.help,
        metavar=option.metavar,
        is_flag=option.kind == FLAG,
        multiple=option.kind == MANY,
        type=click.Choice(option.choices) if option.choices else None,
        default=option.default if option.kind != FLAG else False,
        show_default=option.default is not None,
        envvar=option.variable,
    )


@click.pass_obj
def take(session: Session, /, **given: Any) -> int:
    """Build with what click has read."""
    return perform_build(session, **given)


build = click.Command(
    "build",
    params=[click.Argument(["context"], default="."), *map(make_option, OPTIONS)],
    callback=take,
    help=perform_build.__doc__,
    no_args_is_help=False,
)
