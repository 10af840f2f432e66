"""`pylayers driver`: which storage drivers work here, and moving from one to another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pylayers.cli.command import format_option
from pylayers.cli.failure import warn
from pylayers.cli.form import print_one, print_rows
from pylayers.cli.session import Session
from pylayers.errors import DriverError

if TYPE_CHECKING:
    from pylayers.engine.system import DriverRow

TITLES = ("NAME", "CHOSEN", "USABLE", "DATA", "REASON")


def describe(row: DriverRow) -> dict[str, Any]:
    """Return one row of driver ls."""
    return {
        "Name": row.status.name,
        "Chosen": row.chosen,
        "Usable": row.status.probe.usable,
        "HasData": row.status.has_data,
        "Reason": row.status.probe.reason,
    }


@click.command()
@format_option
@click.pass_obj
def ls(session: Session, form: str | None) -> None:
    """List the storage drivers in the order of preference; each is tried for real."""
    with session.open() as engine:
        table = engine.system.drivers()
    rows = [describe(row) for row in table.rows]
    if form in (None, "table"):
        for row in rows:
            row["Chosen"] = "*" if row["Chosen"] else ""
            row["Usable"] = "yes" if row["Usable"] else "no"
            row["HasData"] = "yes" if row["HasData"] else ""
    print_rows(TITLES, rows, form)
    if table.error is not None:
        warn(table.error.message + (f" (hint: {table.error.hint})" if table.error.hint else ""))


@click.command()
@click.argument("name")
@click.option("--format", "form", metavar="FORMAT", help="'json' or a template such as '{{.Usable}}'.")
@click.pass_obj
def probe(session: Session, name: str, form: str | None) -> int:
    """Try one storage driver; leave with 8 when it doesn't work here."""
    with session.open() as engine:
        row = describe(engine.system.probe_driver(name))
    if form is not None:
        print_one(row, form)
        return 0 if row["Usable"] else DriverError.exit_code
    if not row["Usable"]:
        raise DriverError(f"{name} does not work here: {row['Reason']}")
    click.echo(f"{name} works here")
    return 0


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.pass_obj
def migrate(session: Session, source: str, target: str) -> None:
    """Move containers and images from one storage driver to another; run it again when it was interrupted."""
    with session.open() as engine:
        done = engine.system.migrate(source, target)
    for container in done.containers:
        click.echo(container)
    counts = f"{len(done.containers)} containers, {len(done.snapshots)} image snapshots"
    click.echo(f"moved from {source} to {target}: {counts}", err=True)
