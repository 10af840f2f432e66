"""`pylayers build --check`: findings in docker's form."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pylayers.build.check import CheckResult


def show_check(result: CheckResult) -> int:
    """Print what the checks found, an error on stderr; return 1 for any finding, as docker does."""
    lines: list[str] = []
    if result.warnings or result.error is None:
        lines.append(f"Check complete, {count_warnings(len(result.warnings))}")
    for one in result.warnings:
        lines += ["", f"WARNING: {one.rule} - {one.url}", one.message, one.excerpt]
    if lines:
        sys.stdout.write("\n".join(lines) + "\n")
    if result.error is not None:
        prefix = "" if result.error.span is None else f"{result.error.span}: "
        told = [f"ERROR: {result.error.message.removeprefix(prefix)}"]
        told += [result.error.excerpt] if result.error.excerpt else []
        told += [f"hint: {result.error.hint}"] if result.error.hint else []
        sys.stdout.flush()
        sys.stderr.write("\n".join(told) + "\n")
    return 0 if result.passed else 1


def count_warnings(count: int) -> str:
    """Say how many warnings there are."""
    if count == 0:
        return "no warnings found."
    return "1 warning has been found!" if count == 1 else f"{count} warnings have been found!"
