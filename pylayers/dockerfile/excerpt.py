"""Source lines around a place, as docker shows them below an error or a warning."""

from __future__ import annotations

from pylayers.dockerfile.text import replace_surrogates
from pylayers.errors import SourceSpan

RULE = "-" * 20
LINE_LENGTH = 400
ROWS = 200


class Excerpts:
    """Show lines of one file."""

    def __init__(self, content: bytes) -> None:
        self._lines = content.decode("utf-8", "replace").removeprefix("\ufeff").split("\n")

    def show(self, span: SourceSpan) -> str:
        """Return the lines of a span and a few around it, the span's marked; empty for a place outside the file."""
        lines = self._lines
        first, last = span.line, min(max(span.end_line or span.line, span.line), len(lines))
        if not 1 <= first <= len(lines):
            return ""
        around = 2 if last == first else 1
        # Docker counts lines to both sides together: at an end of the file the other side gets no more than usual.
        shown = range(max(1, first - around), min(len(lines), last + around) + 1)
        rows = [f" {at:3d} | {'>>>' if first <= at <= last else '   '} {cut(lines[at - 1])}" for at in shown[:ROWS]]
        if len(shown) > ROWS:
            rows.append(f"     | ... {len(shown) - ROWS} more lines")
        return "\n".join((f"{span.file}:{first}", RULE, *rows, RULE))


def excerpt(content: bytes, span: SourceSpan) -> str:
    """Return the lines of a span and a few around it, the span's marked; empty for a place outside the file."""
    return Excerpts(content).show(span)


def cut(line: str) -> str:
    """Return a line fit for showing."""
    text = line.rstrip("\r")
    shown = text if len(text) <= LINE_LENGTH else text[:LINE_LENGTH] + "…"
    fit = "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in shown)
    return replace_surrogates(fit)
