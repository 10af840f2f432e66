"""A root with a container that changed its files in every way, and what can be seen of a container's files."""

from __future__ import annotations

import io
import os
import stat
import struct
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blake3 import blake3

from pylayers._native import filehash, tardiff, walk
from pylayers.container.record import load_spec
from pylayers.engine import Engine
from pylayers.engine.container import Container
from pylayers.snapshot.mount import mounted
from pylayers.store.entry import EntryTable
from tests.conformance.stage import remove_tree

MOMENT_NS = 1_600_000_000_123_456_789
# Version 3 of a file capability: cap_net_raw permitted, for root user 0 (linux/capability.h).
CAPABILITY = struct.pack("<IIIIII", 0x02000001, 1 << 13, 0, 0, 0, 0)[:20]
# user:1234:rwx beside owner, group, mask and other (linux/posix_acl_xattr.h).
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, identity)
    for tag, permissions, identity in (
        (0x01, 6, 0xFFFFFFFF), (0x02, 7, 1234), (0x04, 4, 0xFFFFFFFF), (0x10, 7, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF)
    )
)  # fmt: skip


def import_base(engine: Engine) -> None:
    """Make an image of two layers, the upper by a container's commit."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("etc", "opt", "opt/deep", "opt/deep/er", "var", "gone"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o755, 1_500_000_000
            tar.addfile(folder)
        names = ("etc/passwd", "etc/kept", "opt/deep/er/1", "opt/2", "gone/a", "gone/b", "var/f", "x")
        for at, name in enumerate(names):
            file = tarfile.TarInfo(name)
            file.size, file.mode, file.mtime = at * 1000, 0o644, 1_500_000_000
            tar.addfile(file, io.BytesIO(os.urandom(file.size)))
        link = tarfile.TarInfo("opt/linked")
        link.type, link.linkname = tarfile.LNKTYPE, "opt/2"
        tar.addfile(link)
    buffer.seek(0)
    engine.images.import_(buffer, "first")
    made = engine.containers.create("first", ["true"])
    with mounted_root(engine, made) as top:
        (top / "second").write_bytes(b"layer")
        (top / "etc" / "kept").unlink()
    engine.images.commit(made.id, "base")
    engine.containers.remove(made.id)


def change(top: Path) -> None:
    """Change a container's files: every type, attribute and mark that a layer can carry."""
    (top / "x").unlink()
    remove_tree(top / "gone")
    remove_tree(top / "opt" / "deep")
    (top / "opt" / "deep").mkdir(mode=0o700)
    (top / "opt" / "deep" / "new").write_bytes(b"behind an opaque mark")
    remove_tree(top / "var")
    (top / "var").write_bytes(b"was a directory")
    (top / "second").unlink()
    (top / "second").mkdir()
    (top / "second" / "inside").symlink_to("/nowhere/at all")
    with (top / "opt" / "2").open("ab") as file:
        file.write(b"more")
    os.link(top / "opt" / "2", top / "another name")
    (top / "private").write_bytes(os.urandom(200_000))
    os.chmod(top / "private", 0)
    os.chown(top / "private", 4_000_000_000, 77)
    (top / "tool").write_bytes(b"#!/bin/sh\n")
    os.chown(top / "tool", 1000, 1001)
    os.chmod(top / "tool", 0o6755)
    (top / "able").write_bytes(b"ping")
    os.setxattr(top / "able", "security.capability", CAPABILITY)
    os.setxattr(top / "able", "user.note", b"\0binary\xff")
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        with suppress(OSError):  # some kernels' ext4 and overlayfs have no ACLs
            os.setxattr(top / "etc", name, ACL)
    with (top / "holes").open("wb") as file:
        file.seek(48 << 20)
        file.write(b"data after a hole")
        file.truncate(64 << 20)
    os.mkfifo(top / "fifo", 0o620)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (Path(os.fsdecode(os.fsencode(top) + b"/odd \xff\n name"))).write_bytes(b"odd")
    os.chmod(top, 0o1755)
    for at, path in enumerate(sorted(top.rglob("*"))):
        os.utime(path, ns=(MOMENT_NS + at, MOMENT_NS + at), follow_symlinks=False)
    os.utime(top, ns=(MOMENT_NS, MOMENT_NS))


@contextmanager
def mounted_root(engine: Engine, container: Container) -> Iterator[Path]:
    """Mount a container's root as its start would."""
    spec = load_spec(engine.root / "containers" / container.id)
    with mounted(spec.rootfs) as top:
        yield top


def describe(top: Path) -> tuple[bytes, dict[str, object]]:
    """Return a tree's digest, and all that a program could see of each entry but its inode number."""
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        records, heap = walk.walk(descriptor, xattrs=True)
        rows = [row for row, entry in enumerate(EntryTable(records, heap)) if stat.S_ISREG(entry.mode)]
        filehash.hash_files(descriptor, records, heap, struct.pack(f"={len(rows)}I", *rows), blake3)
    finally:
        os.close(descriptor)
    digest = tardiff.tree_digest(records, heap, blake3)
    seen: dict[str, object] = {}
    groups: dict[tuple[int, int], list[str]] = {}
    for path in [top, *top.rglob("*")]:
        found = path.lstat()
        name = str(path.relative_to(top))
        if stat.S_ISREG(found.st_mode):
            groups.setdefault((found.st_dev, found.st_ino), []).append(name)
        seen[name] = (
            oct(found.st_mode), found.st_uid, found.st_gid, found.st_rdev, found.st_mtime_ns,
            found.st_size if stat.S_ISREG(found.st_mode) else 0,
            blake3(path.read_bytes()).hexdigest() if stat.S_ISREG(found.st_mode) else "",
            os.readlink(path) if path.is_symlink() else "",
            {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
                if not key.startswith("trusted.SGI_ACL_")  # xfs's own name of an ACL
            },
        )  # fmt: skip
    seen["links"] = sorted(sorted(names) for names in groups.values() if len(names) > 1)
    seen["holes are holes"] = os.stat(top / "holes").st_blocks * 512 < 8 << 20 if "holes" in seen else None
    return digest, seen


def look(engine: Engine, container: Container) -> tuple[bytes, dict[str, object]]:
    """Describe a container's files."""
    with mounted_root(engine, container) as top:
        return describe(top)
