"""Start a runtime before its config.json is there: a FIFO lies in that place, at which the runtime waits."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
from pathlib import Path

from pylayers.container.bundle import CONFIG

PIPE_BYTES = 64 << 10


class Feed:
    """Hold the place of one config.json until `give`; from then on it is a plain file."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._scratch = bundle / f".{CONFIG}"
        self._rest = b""
        self._given = False
        path = bundle / CONFIG
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
        # For reading too: neither does this open wait for the runtime, nor the runtime's for anything but content.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def prepare(self, content: bytes) -> None:
        """Write a configuration down, for nobody to see yet. Raises OSError."""
        self._rest = content
        self._scratch.write_bytes(content)

    def give(self) -> None:
        """Let the runtime go on. It may open the file for the first time only now, or several times. Raises OSError."""
        self._scratch.replace(self._bundle / CONFIG)
        self._given = True
        if len(self._rest) > PIPE_BYTES:
            with contextlib.suppress(OSError):  # else it goes in pieces
                fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, len(self._rest))
        self.advance()

    def advance(self) -> bool:
        """Pass on what there is room for, and the end once all of it was read; whether that is done.

        To be called again until then, or until the runtime is up.
        """
        if self._fd >= 0 and self._given:
            if self._rest:
                with contextlib.suppress(BlockingIOError):
                    self._rest = self._rest[os.write(self._fd, self._rest) :]
            else:
                poll = select.poll()
                poll.register(self._fd, select.POLLIN)
                if not poll.poll(0):
                    self.close()
        return self._fd < 0

    def close(self) -> None:
        """Let go of the FIFO; harmless when that was done."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def make_feed(bundle: Path) -> Feed | None:
    """Make the FIFO; None where the file system has none, so that a runtime has to be started later. Raises OSError."""
    try:
        return Feed(bundle)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            return None
        raise


def wake_reader(bundle: Path) -> None:
    """Let a runtime end that still waits at a FIFO whose monitor was killed: it finds it empty."""
    path = bundle / CONFIG
    if path.is_fifo():
        with contextlib.suppress(OSError):  # ENXIO: nobody waits
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        path.unlink(missing_ok=True)
