"""Start a runtime before its config.json is there: a FIFO lies in that place, at which the runtime waits."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat

from pylayers.container.bundle import CONFIG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath

PIPE_BYTES = 64 << 10


class Feed:
    """Hold the place of one config.json until `give`; from then on it is a plain file."""

    def __init__(self, bundle: StrPath) -> None:
        self._path = path = f"{bundle}/{CONFIG}"
        self._scratch = f"{bundle}/.{CONFIG}"
        self._rest = b""
        self._given = False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.mkfifo(path, 0o600)
        # For reading too: neither does this open wait for the runtime, nor the runtime's for anything but content.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def prepare(self, content: bytes) -> None:
        """Write a configuration down, for nobody to see yet. Raises OSError."""
        self._rest = content
        with open(self._scratch, "wb") as file:
            file.write(content)

    def give(self) -> None:
        """Let the runtime go on. It may open the file for the first time only now, or several times. Raises OSError."""
        os.replace(self._scratch, self._path)
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


def make_feed(bundle: StrPath) -> Feed | None:
    """Make the FIFO; None where the file system has none, so that a runtime has to be started later. Raises OSError."""
    try:
        return Feed(bundle)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            return None
        raise


def wake_reader(bundle: StrPath) -> None:
    """Let a runtime end that still waits at a FIFO whose monitor was killed: it finds it empty."""
    path = f"{bundle}/{CONFIG}"
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISFIFO(os.stat(path).st_mode):
            return
        with contextlib.suppress(OSError):  # ENXIO: nobody waits
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        os.unlink(path)
