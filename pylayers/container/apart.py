"""Start programs that must not see one entry of a directory of mounts.

A thread of its own copies the mount namespace, mounts a directory with the other entries in place of that one, and
starts the program; neither the process nor its other threads notice. To unmount the one entry wouldn't do: its mount
point would be left, and what is written there would stay. What is unmounted outside later goes in the copy too where
the host shares its mounts (systemd does). Elsewhere the copy would keep other containers' file systems busy for as long
as the program runs: it gives those up.
"""

from __future__ import annotations

import contextlib
import os
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from types import TracebackType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from _typeshed import StrPath

    T = TypeVar("T")

ROOTFS = "rootfs"  # a bundle's
AT_FDCWD = -100


class Apart:
    """A place to call functions in where there is no `hidden`; with "" it is here, and nothing is hidden.

    Nor are other bundles' root file systems mounted that lie below a directory. What is started there stays there.
    One thread at a time may use it.
    """

    def __init__(self, hidden: str, bundle: StrPath, below: StrPath) -> None:
        self._there = bool(hidden)
        self._rootfs = f"{bundle}/{ROOTFS}"
        self._function: Callable[[], Any] | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._asked, self._answered = allocate_lock(), allocate_lock()
        if self._there:
            self._asked.acquire()
            self._answered.acquire()
            start_new_thread(self._serve, (hidden, below))

    def call(self, function: Callable[[], T]) -> T:
        """Return what a function does there. Raises OSError where there is no such place, and what function raises."""
        if not self._there:
            return function()
        self._function = function
        self._asked.release()
        self._answered.acquire()
        result, self._result = self._result, None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def show_rootfs(self) -> None:
        """Let the bundle's root file system, which was mounted since, be seen there too. Raises OSError."""
        if not self._there:
            return
        from pylayers._native import sysmount

        path = os.fsencode(self._rootfs)
        tree = sysmount.open_tree(AT_FDCWD, path, clone=True, recursive=True)
        try:
            self.call(lambda: sysmount.move_mount(tree, AT_FDCWD, path))
        finally:
            os.close(tree)

    def close(self) -> None:
        """Give the place up; programs that run there keep theirs."""
        if self._there:
            self._there = False
            self._asked.release()

    def _serve(self, hidden: str, below: StrPath) -> None:
        failure: BaseException | None = None
        try:
            self._prepare(hidden, below)
        except BaseException as error:
            failure = error
        while True:
            self._asked.acquire()
            if not self._there:
                return
            function, self._function = self._function, None
            try:
                if failure is not None:
                    raise failure
                if function is not None:
                    self._result = function()
            except BaseException as error:
                self._error = error
            del function
            self._answered.release()

    def _prepare(self, hidden: str, below: StrPath) -> None:
        from pylayers._native import sysmount
        from pylayers.snapshot.mount import mount_points_below

        sysmount.unshare(sysmount.CLONE_NEWNS)
        sysmount.mount(b"", b"/", b"", sysmount.MS_REC | sysmount.MS_SLAVE)
        for point in mount_points_below(below):
            if os.path.basename(point) == ROOTFS and point != self._rootfs:
                with contextlib.suppress(OSError):  # gone with the one that it lay in
                    sysmount.unmount(os.fsencode(point), sysmount.MNT_DETACH)
        hide(hidden)

    def __enter__(self) -> Apart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def hide(path: str) -> None:
    """Mount a directory in place of path's parent that has its other directories and links. Raises OSError."""
    from pylayers._native import sysmount

    os.stat(path)
    parent, name = os.path.split(path)
    links: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        trees: dict[str, int] = {}
        with os.scandir(parent) as entries:
            for entry in entries:
                if entry.is_symlink():
                    links[entry.path] = os.readlink(entry.path)
                elif entry.name != name and entry.is_dir():
                    tree = sysmount.open_tree(AT_FDCWD, os.fsencode(entry.path), clone=True, recursive=True)
                    stack.callback(os.close, tree)
                    trees[entry.path] = tree
        sysmount.mount(b"pylayers", os.fsencode(parent), b"tmpfs", sysmount.MS_NOSUID, b"mode=755")
        for place, tree in trees.items():
            os.mkdir(place)
            sysmount.move_mount(tree, AT_FDCWD, os.fsencode(place))
        for place, target in links.items():
            os.symlink(target, place)
