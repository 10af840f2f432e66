"""The list of cases in which pylayers differs from BuildKit, with the reasons: difference.txt."""

from __future__ import annotations

from pathlib import Path

PATH = Path(__file__).with_name("difference.txt")


def read_differences() -> dict[str, str]:
    """Return the reason of each listed case, by topic/name. Raises ValueError for a line without one."""
    found: dict[str, str] = {}
    for line in PATH.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, bar, reason = (part.strip() for part in line.partition("|"))
        if not bar or not reason or name in found:
            raise ValueError(f"{PATH.name}: {line!r} is no case with a reason of its own")
        found[name] = reason
    return found
