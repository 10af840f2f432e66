"""What verbs share: --format, and kinds of verbs that leave with docker's exit codes."""

from __future__ import annotations

from typing import Any

import click

from pylayers.errors import ContainerError, PylayersError

CONTAINER_USAGE_EXIT_CODE = 125

format_option = click.option(
    "--format", "form", metavar="FORMAT", help="'table', 'json' or a template such as '{{.ID}}'."
)


class ContainerCommand(click.Command):
    """Leave with docker's 125 for a wrong command line, and end the options at the image's or container's name."""

    usage_exit_code = CONTAINER_USAGE_EXIT_CODE
    allow_interspersed_args = False


class RunCommand(ContainerCommand):
    """Leave with 125 for every failure of ours, so that it isn't taken for the container's own exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ContainerError:
            raise
        except PylayersError as error:
            error.exit_code = CONTAINER_USAGE_EXIT_CODE
            raise
