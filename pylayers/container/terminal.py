"""Pseudo-terminals: receive a container's from its runtime, make the caller's raw, keep their sizes equal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios
import tty
from collections.abc import Iterator

SIZE = struct.Struct("HHHH")
SOCKET_NAME = "console.sock"


class ConsoleSocket:
    """Listen for the master side of a container's terminal, in a directory whose path may be of any length."""

    def __init__(self, directory: str) -> None:
        import socket

        self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET_NAME, dir_fd=self._directory)
        # A socket's path has at most 108 bytes; ours goes through /proc, where the runtime can follow it too.
        self.path = f"/proc/{os.getpid()}/fd/{self._directory}/{SOCKET_NAME}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(self.path)
        self._socket.listen(1)

    def receive(self) -> int:
        """Take the master's descriptor that a runtime has sent; the caller closes it."""
        import socket

        self._socket.settimeout(10)
        connection, _ = self._socket.accept()
        with connection:
            connection.settimeout(10)
            _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
        if not descriptors:
            raise OSError("the runtime sent no terminal")
        os.set_inheritable(descriptors[0], False)
        return descriptors[0]

    def close(self) -> None:
        """Close and remove the socket."""
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET_NAME, dir_fd=self._directory)
        os.close(self._directory)


def size(descriptor: int) -> tuple[int, int] | None:
    """Return a terminal's rows and columns; None for anything else."""
    try:
        rows, columns, _, _ = SIZE.unpack(fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(SIZE.size)))
    except OSError:
        return None
    return rows, columns


def copy_size(source_fd: int, target_fd: int) -> None:
    """Give one terminal the size of another; anything that isn't a terminal is left alone."""
    with contextlib.suppress(OSError):
        packed = fcntl.ioctl(source_fd, termios.TIOCGWINSZ, bytes(SIZE.size))
        fcntl.ioctl(target_fd, termios.TIOCSWINSZ, packed)


@contextlib.contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Hold a terminal in raw mode; a descriptor that isn't one is left alone."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSADRAIN)  # the default would throw away what was typed ahead
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
