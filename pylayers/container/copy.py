"""Copy a file or a directory between two places that are held by descriptors, by docker cp's rules."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path, PurePosixPath

from pylayers._native import copyup, tarscan, unpack
from pylayers.errors import IntegrityError, InvalidInput
from pylayers.record import record
from pylayers.store.entry import FLAG_OPAQUE, FLAG_WHITEOUT, EntryTable
from pylayers.volume.rootpath import locate, open_beneath

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# Attributes that say something of the machine or the file system instead of the file.
MACHINES_OWN = ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.", "trusted.SGI_ACL_", "security.selinux")

Owner = tuple[int, int]


@record
class Source:
    """Say what is copied: an O_PATH descriptor (the caller closes it), its name, and whether only what is in it."""

    descriptor: int
    name: str
    contents: bool

    @property
    def is_directory(self) -> bool:
        """Tell whether it is a directory."""
        return stat.S_ISDIR(os.fstat(self.descriptor).st_mode)


@record
class Target:
    """Say where a copy goes: the name in an open directory (the caller closes it); "" is the directory itself."""

    descriptor: int
    name: str


def find_source(root_fd: int, path: str, *, follow: bool) -> Source:
    """Find what is to be copied inside a root. "/." at the end means a directory's content. Raises OSError."""
    contents = path == "." or path.endswith("/.")
    must_be_directory = contents or path.endswith("/")
    found = locate(root_fd, path, follow_last=follow or must_be_directory)
    if found.missing:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    descriptor = open_beneath(root_fd, found.path, os.O_PATH, follow_last=False)
    name = PurePosixPath(path).name
    source = Source(descriptor, name if name not in ("", "..") else found.path.rpartition("/")[2], contents)
    if must_be_directory and not source.is_directory:
        os.close(descriptor)
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    return source


def find_target(root_fd: int, path: str, source: Source) -> Target:
    """Find where a source goes: into an existing directory by its name, else to the path itself. Raises OSError.

    The path's parent must exist; a path that ends in "/" must be a directory unless a directory is copied there.
    """
    found = locate(root_fd, path)
    if not found.missing:
        descriptor = open_beneath(root_fd, found.path, os.O_PATH, follow_last=False)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return Target(descriptor, "" if source.contents or not source.name else source.name)
        os.close(descriptor)
        if source.is_directory:
            raise NotADirectoryError(errno.ENOTDIR, "cannot copy a directory to a file", path)
        if path.endswith(("/", "/.")):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return Target(open_beneath(root_fd, "/".join(found.existing[:-1]), os.O_PATH), found.existing[-1])
    if len(found.missing) > 1 or (path.endswith(("/", "/.")) and not source.is_directory):
        raise FileNotFoundError(errno.ENOENT, "no such directory", path)
    return Target(open_beneath(root_fd, "/".join(found.existing), os.O_PATH), found.missing[0])


def copy_into(source: Source, target: Target, owner: Owner | None) -> None:
    """Copy a source to a target: directories merge, other things replace what is there but no directory.

    owner: whom everything will belong to (None: whom it belongs to now). Raises OSError with filename; a directory's
    copy that fails stays as far as it came.
    """
    parent = os.open(f"/proc/self/fd/{target.descriptor}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if source.is_directory:
            _copy_directory(source.descriptor, parent, target.name, owner)
        else:
            _copy_other(source.descriptor, parent, target.name, owner)
    finally:
        os.close(parent)


def _copy_directory(descriptor: int, parent: int, name: str, owner: Owner | None) -> None:
    if name:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "cannot overwrite a file with a directory", name) from None
    into = os.open(name or ".", _DIRECTORY, dir_fd=parent)
    try:
        readable = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Where only a directory's content is copied, the one it goes to stays what it is.
            copyup.copy_tree(readable, into, owner=owner, replace=True, top_metadata=bool(name))
        finally:
            os.close(readable)
    finally:
        os.close(into)


def _copy_other(descriptor: int, parent: int, name: str, owner: Owner | None) -> None:
    """Copy what is no directory under another name first, so that what it replaces stays until it is whole."""
    found = os.fstat(descriptor)
    try:
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise IsADirectoryError(errno.EISDIR, "cannot overwrite a directory with a file", name)
    except FileNotFoundError:
        pass
    partial = f".pylayers-{os.getpid()}-{os.urandom(6).hex()}"
    try:
        _make_other(descriptor, found, parent, partial)
        uid, gid = owner if owner is not None else (found.st_uid, found.st_gid)
        os.chown(partial, uid, gid, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(partial, stat.S_IMODE(found.st_mode), dir_fd=parent)
            _copy_xattrs(descriptor, parent, partial)
        os.utime(partial, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=parent, follow_symlinks=False)
        os.rename(partial, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial, dir_fd=parent)
        raise


def _make_other(descriptor: int, found: os.stat_result, parent: int, name: str) -> None:
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink("", dir_fd=descriptor), name, dir_fd=parent)
    elif stat.S_ISREG(found.st_mode):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(f"/proc/self/fd/{descriptor}", "rb", buffering=0) as reading:
            writing = os.open(name, flags, 0o600, dir_fd=parent)
            try:
                copyup.copy_file(reading.fileno(), writing, os.fstat(reading.fileno()).st_size)
            finally:
                os.close(writing)
    else:
        os.mknod(name, stat.S_IFMT(found.st_mode) | 0o600, found.st_rdev, dir_fd=parent)


def _copy_xattrs(descriptor: int, parent: int, name: str) -> None:
    made = os.open(name, _LOOK, dir_fd=parent)
    try:
        source, target = f"/proc/self/fd/{descriptor}", f"/proc/self/fd/{made}"
        try:
            names = os.listxattr(source)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            names = []
        for each in names:
            os.setxattr(target, each, os.getxattr(source, each))
    finally:
        os.close(made)


def read_xattrs(path: Path) -> list[tuple[str, str]]:
    """Read what a tar should have of a file's extended attributes; bytes that are no UTF-8 are surrogates."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return []
    kept = [name for name in names if not name.startswith(MACHINES_OWN)]
    values = (os.getxattr(path, name, follow_symlinks=False) for name in kept)
    return [(name, value.decode("utf-8", "surrogateescape")) for name, value in zip(kept, values, strict=True)]


def extract(tar_fd: int, size_bytes: int, directory_fd: int) -> None:
    """Unpack a plain tar below an open directory, replacing what is there. Raises IntegrityError, OSError."""
    import mmap

    if size_bytes == 0:
        raise InvalidInput("the tar on stdin is empty")
    with mmap.mmap(tar_fd, size_bytes, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
        try:
            records, heap = tarscan.scan(view)
        except tarscan.TarFormatError as error:
            message = f"malformed tar at byte {error.offset}: {error}"
            raise IntegrityError(message, offset=error.offset) from error
    table = EntryTable(records, heap)
    for entry in table:
        if entry.flags & (FLAG_WHITEOUT | FLAG_OPAQUE):
            path = os.fsdecode(table.path(entry))
            raise InvalidInput(f"a member of the tar, whose name begins with .wh., would be a deletion of {path!r}")
    unpack.unpack(directory_fd, tar_fd, records, heap, unpack.WHITEOUT_APPLY)
