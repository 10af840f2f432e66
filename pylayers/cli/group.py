"""The verbs by name, with their short help, so that neither a verb nor --help imports another verb's module."""

from __future__ import annotations

import importlib
from typing import Any

import click

from pylayers.cli.session import Session


class Verb:
    """Say where a verb lives: module of pylayers.cli and attribute. No dataclass: those cost milliseconds to import."""

    __slots__ = ("attribute", "help", "module")

    def __init__(self, module: str, attribute: str, help: str) -> None:
        self.module = module
        self.attribute = attribute
        self.help = help


IMAGE = {
    "build": Verb("buildcommand", "build", "Build an image from a Dockerfile"),
    "history": Verb("image", "history", "Show the steps of an image"),
    "import": Verb("image", "import_", "Make an image from a root file system's tar"),
    "inspect": Verb("inspect", "inspect_image", "Show everything known of images"),
    "load": Verb("image", "load", "Load images from a docker-archive"),
    "ls": Verb("image", "images", "List images"),
    "prune": Verb("image", "prune", "Remove unused images"),
    "rm": Verb("image", "rmi", "Remove images"),
    "save": Verb("image", "save", "Write images to a tar archive"),
    "tag": Verb("image", "tag", "Give an image another name"),
}
CONTAINER = {
    "commit": Verb("container", "commit", "Make an image from a container's changes"),
    "cp": Verb("copy", "cp", "Copy files between a container and the host"),
    "create": Verb("runcommand", "create", "Create a container without starting it"),
    "diff": Verb("container", "diff", "List what a container changed"),
    "exec": Verb("exec", "exec_", "Run a command in a running container"),
    "inspect": Verb("inspect", "inspect_container", "Show everything known of containers"),
    "kill": Verb("container", "kill", "Send a signal to containers"),
    "logs": Verb("container", "logs", "Show what a container wrote"),
    "ls": Verb("container", "ps", "List containers"),
    "prune": Verb("container", "prune", "Remove all stopped containers"),
    "rm": Verb("container", "rm", "Remove containers"),
    "run": Verb("runcommand", "run", "Create and start a container from an image"),
    "start": Verb("container", "start", "Start stopped containers"),
    "stop": Verb("container", "stop", "Stop running containers"),
    "wait": Verb("container", "wait", "Wait for containers to end and print their exit codes"),
}
VOLUME = {
    "create": Verb("volume", "create", "Create a volume"),
    "inspect": Verb("volume", "inspect", "Show everything known of volumes"),
    "ls": Verb("volume", "ls", "List volumes"),
    "prune": Verb("volume", "prune", "Remove unused volumes"),
    "rm": Verb("volume", "rm", "Remove volumes"),
}
SYSTEM = {
    "check": Verb("system", "check", "Compare everything stored with its digests"),
    "df": Verb("system", "df", "Show what takes how much disk space"),
    "info": Verb("system", "info", "Describe the data root and this machine"),
    "prune": Verb("system", "prune", "Remove what nothing needs"),
    "rebuild": Verb("system", "rebuild", "Make the database again from the files"),
}
DRIVER = {
    "ls": Verb("driver", "ls", "List the storage drivers and whether they work here"),
    "migrate": Verb("driver", "migrate", "Move containers and images to another storage driver"),
    "probe": Verb("driver", "probe", "Try one storage driver"),
}
ROOT = {
    "build": IMAGE["build"],
    "container": Verb("group", "container", "Manage containers"),
    **{name: CONTAINER[name] for name in CONTAINER if name not in ("inspect", "ls", "prune")},
    "driver": Verb("group", "driver", "Look at the storage drivers"),
    "history": IMAGE["history"],
    "image": Verb("group", "image", "Manage images"),
    "images": IMAGE["ls"],
    "import": IMAGE["import"],
    "info": SYSTEM["info"],
    "inspect": Verb("inspect", "inspect", "Show everything known of images, containers and volumes"),
    "load": IMAGE["load"],
    "ps": CONTAINER["ls"],
    "rmi": IMAGE["rm"],
    "save": IMAGE["save"],
    "system": Verb("group", "system", "Look after the data root"),
    "tag": IMAGE["tag"],
    "version": Verb("version", "version", "Show the version"),
    "volume": Verb("group", "volume", "Manage volumes"),
}
SYNONYMS = {"list": "ls", "remove": "rm"}


class VerbGroup(click.Group):
    """Find verbs in a table, and import a verb's module when it is called."""

    def __init__(self, name: str, table: dict[str, Verb], **options: Any) -> None:
        super().__init__(name, **options)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs' names."""
        return sorted(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a verb; None for an unknown one."""
        name = cmd_name if cmd_name in self.table else SYNONYMS.get(cmd_name, "")
        verb = self.table.get(name)
        if verb is None:
            return None
        found = getattr(importlib.import_module(f"pylayers.cli.{verb.module}"), verb.attribute)
        if not isinstance(found, click.Command):
            raise TypeError(f"pylayers.cli.{verb.module}.{verb.attribute} is no command")
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb of a command line. Raises UsageError that names near ones."""
        word = args[0]
        found = self.get_command(ctx, word)
        if found is not None:
            return word, found, args[1:]
        if word.startswith("-"):
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches

        near = get_close_matches(word, self.table, 1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise click.UsageError(f"no such command: {ctx.command_path} {word}{meant}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs' short help from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.table[name].help) for name in sorted(self.table)])


SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.pass_context
def take_globals(
    context: click.Context, root: str | None, driver: str | None, runtime: str | None, debug: bool
) -> None:
    """Keep the global options for the verb."""
    context.obj = Session(root, driver, runtime, debug)


def show_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Print the version and leave."""
    if value and not context.resilient_parsing:
        from pylayers.cli.version import VERSION

        click.echo(f"pylayers {VERSION}")
        context.exit()


root = VerbGroup(
    "pylayers",
    ROOT,
    callback=take_globals,
    context_settings=SETTINGS,
    help="Build, store, mount and run container images without a daemon.",
    params=[
        click.Option(["--root"], metavar="DIR", help="Data root (default: $PYLAYERS_ROOT, else the usual place)."),
        click.Option(["--driver"], metavar="NAME", help="Storage driver (default: $PYLAYERS_DRIVER, else the best)."),
        click.Option(["--runtime"], metavar="NAME", help="OCI runtime (default: $PYLAYERS_RUNTIME, else one found)."),
        click.Option(["-D", "--debug"], is_flag=True, help="Show a traceback with an error."),
        click.Option(
            ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=show_version,
            help="Show the version.",
        ),
    ],
)
image = VerbGroup("image", IMAGE, help="Manage images.")
container = VerbGroup("container", CONTAINER, help="Manage containers.")
volume = VerbGroup("volume", VOLUME, help="Manage volumes.")
system = VerbGroup("system", SYSTEM, help="Look after the data root.")
driver = VerbGroup("driver", DRIVER, help="Look at the storage drivers.")
