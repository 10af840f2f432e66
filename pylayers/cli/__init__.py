"""The command line. Nothing heavy is imported here: see `group` for how the verbs are found."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line and leave with its exit code."""
    from pylayers.cli.failure import run

    sys.exit(run(sys.argv[1:] if arguments is None else arguments))
