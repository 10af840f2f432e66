"""What may go wrong in one work without an end to the others, and how it is told."""

from __future__ import annotations

import subprocess

from peer import PeerError
from source import PrepareError
from subject import SubjectError

from pylayers.errors import PylayersError

FAILURES = (PrepareError, PeerError, SubjectError, PylayersError, OSError, subprocess.SubprocessError)
FAILED = "failed: "  # how a note of a work begins that should have been measured and wasn't


def describe_failure(work: str, error: BaseException) -> str:
    """Write the note that stands for a work, or for one side of it."""
    lines = str(error).strip().splitlines()
    shown = " ".join(lines if len(lines) < 4 else (lines[0], "…", *lines[-2:]))
    return f"{FAILED}{work}: {type(error).__name__}: {shown}"


def exit_status(notes: list[str]) -> int:
    """Return a script's exit status: 1 when something failed, with its rows written all the same."""
    return 1 if any(note.startswith(FAILED) for note in notes) else 0
