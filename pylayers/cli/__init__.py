"""The command line. Nothing heavy is imported here: see `group` for how the verbs are found."""

from __future__ import annotations

import gc
import os
import sys

from pylayers.thread import is_alone

# A short command frees nothing worth collecting, and a long one spends its memory in the kernels: collections while
# the modules are loaded would cost a tenth of an unchanged rebuild.
GARBAGE_THRESHOLD = 100_000
INTERRUPT_EXIT_CODE = 130


def main() -> None:
    """Run this process's command line and end it with the exit code."""
    gc.set_threshold(GARBAGE_THRESHOLD, 10, 10)
    try:
        from pylayers.cli.failure import discard, run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before run() could look for it
        os._exit(INTERRUPT_EXIT_CODE)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            discard(stream)
    if not is_alone():
        sys.exit(code)  # waits for them
    # Everything is closed: taking the interpreter down module by module would be the longest part of a short command.
    os._exit(code)
