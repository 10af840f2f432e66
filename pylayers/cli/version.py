"""`pylayers version`."""

from __future__ import annotations

import click

VERSION = "0.1.0"  # pyproject.toml's; a test holds them together. Asking importlib.metadata would double the start-up


@click.command()
@click.option("--format", "form", metavar="FORMAT", help="'json' or a template such as '{{.Version}}'.")
def version(form: str | None) -> None:
    """Show the version."""
    if form is None:
        click.echo(f"pylayers {VERSION}")
        return
    import platform

    from pylayers.cli.form import print_one

    print_one({"Version": VERSION, "Python": platform.python_version(), "Arch": platform.machine()}, form)
