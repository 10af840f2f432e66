"""At the end of a run: which storage driver was tried where."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from tests.kernels import standing

# The file of a driver's conformance suite names the driver. TestBranches shows aufs's files without aufs.
SUITE = re.compile(r"tests/conformance/test_([a-z0-9]+)\.py::Test(?!\w*Quota|Branches)")
NO_DRIVERS = {"backing", "migrate", "quota", "reflink"}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print a line for each driver whose suite was chosen."""
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            found = SUITE.match(report.nodeid)
            if found and found[1] not in NO_DRIVERS:
                counts.setdefault(found[1], Counter())[outcome] += 1
    lines = {
        driver: f"this kernel: {', '.join(f'{number} {outcome}' for outcome, number in sorted(count.items()))}"
        for driver, count in counts.items()
        if count["passed"] or count["failed"]
    }
    for what, where in standing.STANDINGS.items():
        lines.setdefault(what, where)
    for driver in counts:
        lines.setdefault(driver, "not run: see the skips above")
    if lines:
        terminalreporter.section("where each storage driver was tried")
        for driver, where in sorted(lines.items()):
            terminalreporter.write_line(f"{driver}: {where}")
