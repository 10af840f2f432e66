"""What a tree looks like: each path with everything that two engines could do differently."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

Entry = dict[str, object]
Tree = dict[str, Entry]
TYPES = {
    stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo", stat.S_IFCHR: "char",
    stat.S_IFBLK: "block", stat.S_IFSOCK: "socket",
}  # fmt: skip
SHOWN_BYTES = 120  # contents up to this size are kept as they are: the recorded files stay readable
HIDDEN_XATTRS = ("trusted.overlay.", "security.selinux")


def read_tree(root: Path, started_ns: int) -> Tree:
    """Read a directory's tree. A time after `started_ns` is told as "now"."""
    found: Tree = {}
    inodes: dict[tuple[int, int], str] = {}
    pending = [root]
    while pending:
        path = pending.pop()
        name = "/" + str(path.relative_to(root)) if path != root else "/"
        status = path.lstat()
        entry: Entry = {
            "type": TYPES[stat.S_IFMT(status.st_mode)],
            "mode": f"{stat.S_IMODE(status.st_mode):04o}",
            "owner": f"{status.st_uid}:{status.st_gid}",
            "mtime": "now" if status.st_mtime_ns >= started_ns else format_time(status.st_mtime_ns),
        }
        if stat.S_ISLNK(status.st_mode):
            del entry["mode"]
            entry["target"] = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            entry["content"] = read_content(path)
        elif status.st_rdev:
            entry["device"] = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False).hex()
            for key in os.listxattr(path, follow_symlinks=False)
            if not key.startswith(HIDDEN_XATTRS)
        }
        if xattrs:
            entry["xattrs"] = xattrs
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            inode = (status.st_dev, status.st_ino)
            inodes[inode] = min(name, inodes.get(inode, name))
            entry["inode"] = inode
        found[name] = entry
        if stat.S_ISDIR(status.st_mode):
            pending += path.iterdir()
    return dict(sorted((name, name_hard_links(name, entry, inodes)) for name, entry in found.items()))


def name_hard_links(name: str, entry: Entry, inodes: dict[tuple[int, int], str]) -> Entry:
    """Replace an inode by the name of the first of its paths; a path that is alone has none."""
    inode = entry.pop("inode", None)
    if isinstance(inode, tuple) and inodes[inode] != name:
        entry["hard"] = inodes[inode]
    return entry


def format_time(time_ns: int) -> str:
    """Return seconds with nine digits, without the zeros at the end."""
    return f"{time_ns // 10**9}.{time_ns % 10**9:09d}".rstrip("0").rstrip(".")


def read_content(path: Path) -> str:
    """Return a small text itself, else its size and digest."""
    content = path.read_bytes()
    if len(content) <= SHOWN_BYTES:
        try:
            return content.decode()
        except UnicodeDecodeError:
            pass
    return f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()[:32]}"


def compare_with_base(tree: Tree, base: Tree) -> dict[str, object]:
    """Return what a tree has other than its base: the same for every busybox, and short."""
    changed = {name: entry for name, entry in tree.items() if base.get(name) != entry}
    removed = sorted(name for name in base if name not in tree)
    if tree and len(removed) > len(base) // 2:  # FROM scratch: nothing of the base was ever there
        removed = []
    return {"tree": changed, "removed": removed}
