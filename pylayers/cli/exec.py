"""`pylayers exec`."""

from __future__ import annotations

import click

from pylayers.cli.command import ContainerCommand
from pylayers.cli.run import check_terminal, read_environment_file, resolve_environment
from pylayers.cli.session import Session


class ExecCommand(ContainerCommand):
    """End the options at the container's name; a wrong command line leaves with 2 as elsewhere."""

    usage_exit_code = 2


@click.command(cls=ExecCommand)
@click.option("-d", "--detach", is_flag=True, help="Run in the background.")
@click.option("-e", "--env", "environment", multiple=True, metavar="NAME[=VALUE]", help="Set a variable.")
@click.option("--env-file", "environment_files", multiple=True, metavar="FILE", help="Read variables from a file.")
@click.option("-i", "--interactive", is_flag=True, help="Pass stdin.")
@click.option("-t", "--tty", "terminal", is_flag=True, help="Give it a terminal.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="User, by name or id.")
@click.option("-w", "--workdir", "working_dir", default="", metavar="DIR", help="Working directory.")
@click.option("--privileged", is_flag=True, help="Give it every capability.")
@click.argument("container")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def exec_(
    session: Session,
    container: str,
    command: tuple[str, ...],
    detach: bool,
    environment: tuple[str, ...],
    environment_files: tuple[str, ...],
    interactive: bool,
    terminal: bool,
    user: str,
    working_dir: str,
    privileged: bool,
) -> int:
    """Run a command in a running container; leave with its exit code."""
    if terminal and interactive and not detach:
        check_terminal()
    files = [entry for path in environment_files for entry in read_environment_file(path)]
    with session.open() as engine:
        return engine.containers.exec(
            container,
            command,
            environment=resolve_environment([*files, *environment]),
            working_dir=working_dir,
            user=user,
            terminal=terminal,
            interactive=interactive,
            detach=detach,
            privileged=privileged,
        )
