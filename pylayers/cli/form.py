"""How results are written: docker's tables, JSON lines and simple templates, sizes, ages and short ids."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Sequence

from pylayers.errors import InvalidInput, PylayersError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

GAP = "   "
SIZE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_FIELD = r"\{\{\s*(json\s+)?(\.[A-Za-z0-9_.]*)\s*\}\}"
_ESCAPES = {"\\t": "\t", "\\n": "\n"}


def print_rows(titles: Sequence[str], rows: Sequence[dict[str, Any]], form: str | None = None) -> None:
    """Print rows as a table whose titles are made of the keys' (docker's) words, as JSON lines or by a template."""
    if form is not None and form != "table":
        for row in rows:
            print_one(row, form, indent=None)
        return
    cells = [[str(value) for value in row.values()][: len(titles)] for row in rows]
    write_table([list(titles), *cells])


def write_table(lines: Sequence[Sequence[str]]) -> None:
    """Write columns, each as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        text = GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        sys.stdout.write(text.rstrip() + "\n")


def print_one(values: Any, form: str, *, indent: int | None = 4) -> None:
    """Print one object as JSON or by a template. Raises InvalidInput for a template that isn't understood."""
    if form == "json":
        sys.stdout.write(json.dumps(values, indent=indent, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(fill_template(form, values) + "\n")


def fill_template(template: str, values: Any) -> str:
    """Replace {{.Field}}, {{.Outer.Inner}} and {{json .Field}}; nothing else of Go's templates is understood."""
    literal = re.sub(_FIELD, "", template)
    if "{{" in literal or "}}" in literal or "{{" not in template:
        raise InvalidInput(
            f"format {template!r} is not understood",
            hint="use table, json or fields such as '{{.Name}}' or '{{json .}}'",
        )
    for escape, letter in _ESCAPES.items():
        template = template.replace(escape, letter)

    def fill(match: re.Match[str]) -> str:
        found = pick_field(values, match[2])
        if match[1]:
            return json.dumps(found, ensure_ascii=False)
        if isinstance(found, bool):
            return str(found).lower()
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)

    return re.sub(_FIELD, fill, template)


def pick_field(values: Any, path: str) -> Any:
    """Return the value at a dotted path; "." is everything. Raises InvalidInput."""
    for name in filter(None, path.split(".")):
        if not isinstance(values, dict) or name not in values:
            known = f"known here: {', '.join(values)}" if isinstance(values, dict) else None
            raise InvalidInput(f"there is no field {path}", hint=known)
        values = values[name]
    return values


def show_size(size_bytes: float) -> str:
    """Write a size as docker does: three digits, powers of 1000."""
    value = float(size_bytes)
    unit = SIZE_UNITS[0]
    for larger in SIZE_UNITS[1:]:
        if value < 999.5:
            break
        value /= 1000
        unit = larger
    return f"{value:.3g}{unit}"


def show_duration(seconds: float) -> str:
    """Write how long something takes as docker does: "About a minute", "3 days"."""
    count = int(seconds)
    if count < 1:
        return "Less than a second"
    steps = ((60, 1, "second"), (3600, 60, "minute"), (48 * 3600, 3600, "hour"), (14 * 86400, 86400, "day"),
             (60 * 86400, 7 * 86400, "week"), (730 * 86400, 30 * 86400, "month"))  # fmt: skip
    found = [(unit_seconds, name) for limit, unit_seconds, name in steps if count < limit]
    unit_seconds, name = found[0] if found else (365 * 86400, "year")
    amount = count // unit_seconds
    if amount == 1 and name in ("minute", "hour"):
        return "About a minute" if name == "minute" else "About an hour"
    return f"{amount} {name}{'' if amount == 1 else 's'}"


def show_ago(created_s: float) -> str:
    """Write how long ago a moment was."""
    return f"{show_duration(max(0.0, time.time() - created_s))} ago"


def read_moment(text: str) -> float | None:
    """Read RFC 3339 as seconds after 1970; None for what isn't one."""
    from pylayers.container.logs import parse_time

    if not re.match(r"\d{4}-\d\d-\d\d", text):
        return None
    try:
        return parse_time(text) / 1e9
    except InvalidInput:
        return None


def shorten(digest: str) -> str:
    """Return the twelve digits that docker shows of an id."""
    return digest.removeprefix("sha256:")[:12]


def clip(text: str, width: int) -> str:
    """Cut a text at width with an ellipsis."""
    return text if len(text) <= width else text[: width - 1] + "…"


def confirm(warning: Iterable[str], what: str) -> None:
    """Ask as docker's prunes do. Raises PylayersError unless the answer is yes."""
    sys.stdout.write("\n".join(warning) + "\nAre you sure you want to continue? [y/N] ")
    sys.stdout.flush()
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        sys.stdout.write("\n")
    if answer.strip().lower() not in ("y", "yes"):
        raise PylayersError(f"{what} has been cancelled", hint="answer y, or give --force")
