"""`pylayers build` as a click command, for help, errors and unusual command lines: see buildline."""

from __future__ import annotations

from typing import Any

import click

from pylayers.cli.build import build as perform_build
from pylayers.cli.buildline import OPTIONS
from pylayers.cli.option import FLAG, MANY, Option
from pylayers.cli.session import Session


def make_option(option: Option) -> click.Option:
    """Return an option of the table as click has it."""
    return click.Option(
        [*option.flags, option.name],
        help=option.help,
        metavar=option.metavar,
        is_flag=option.kind == FLAG,
        multiple=option.kind == MANY,
        type=choose_type(option),
        default=option.default if option.kind != FLAG else False,
        show_default=bool(option.default),
        envvar=option.variable,
    )


def choose_type(option: Option) -> click.ParamType[Any] | type | None:
    """Return what click reads a value as."""
    if option.choices:
        return click.Choice(option.choices)
    return click.IntRange(min=option.minimum) if option.minimum is not None else option.number


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
