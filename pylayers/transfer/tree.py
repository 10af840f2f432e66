"""Write an image's tree, without its layers: as files in a directory, or as one tar."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from pylayers.diff.flatten import Tree, unpack_tree, write_tree_tar
from pylayers.errors import InvalidInput, translate_os_error
from pylayers.store import Store
from pylayers.store.clone import append_file


def write_directory(tree: Tree, directory: Path) -> int:
    """Write a tree below a directory, made when it is missing; return the bytes of file data written.

    Everything belongs to the caller, as in docker's local output; what else the directory holds stays.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileExistsError:
        raise InvalidInput(f"destination directory {directory} is a file") from None
    except OSError as error:
        raise translate_os_error(error, f"write {directory}") from error
    try:
        return unpack_tree(descriptor, tree) if tree.layers else 0
    finally:
        os.close(descriptor)


def write_tar(store: Store, trees: Sequence[Tree], out_fd: int) -> int:
    """Write trees as one tar to a new file or a pipe; return its size in bytes."""
    if is_fresh_file(out_fd):
        return write_tree_tar(out_fd, trees)
    scratch = store.scratch("tree")
    try:
        descriptor = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            size_bytes = write_tree_tar(descriptor, trees)
            append_file(descriptor, out_fd, size_bytes)
            return size_bytes
        finally:
            os.close(descriptor)
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise translate_os_error(error, "write the tar") from error


def is_fresh_file(descriptor: int) -> bool:
    """Tell whether a descriptor is an empty regular file that can be written at any offset."""
    import fcntl

    found = os.fstat(descriptor)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    readwrite = flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_APPEND
    return stat.S_ISREG(found.st_mode) and found.st_size == 0 and readwrite
