"""SIGTERM as an exception, so that what runs is taken down before this process ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from pylayers.thread import is_main


@contextmanager
def terminable() -> Iterator[None]:
    """Turn a SIGTERM that nobody handles into SystemExit(143) inside the block.

    Does nothing in other threads than the main one (Python sets no handler there) and where there is a handler.
    """
    if (
        not is_main()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def interrupt(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
