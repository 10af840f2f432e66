"""Tell by name which file systems a driver cannot keep its writable layers on, before it is tried there."""

from __future__ import annotations

import os
from pathlib import Path

from pylayers.store.mountpoint import read_mount_table, unescape

# Drivers whose writable layer is a directory of the data root that overlayfs (or aufs) writes to.
UNION_DRIVERS = frozenset({"erofs", "overlay2", "fuse-overlayfs", "aufs", "overlay"})
KERNEL_UNION_DRIVERS = UNION_DRIVERS - {"fuse-overlayfs"}
# overlayfs refuses these as its upper: names there may change or vanish behind it, or have no whiteouts.
UNION_FILE_SYSTEMS = frozenset({"overlay", "aufs", "ecryptfs", "fuse.fuse-overlayfs", "fuse.mergerfs"})
NETWORK_FILE_SYSTEMS = frozenset({
    "9p", "afs", "ceph", "cifs", "coda", "fuse.ceph", "fuse.cephfs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs",
    "fuse.rclone", "gfs2", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs",
})  # fmt: skip


def refuse_backing(driver: str, directory: Path) -> str:
    """Say why a driver cannot work on a directory's file system; "" where only a trial can tell."""
    if driver not in UNION_DRIVERS:
        return ""
    kind = find_file_system(directory)
    named = refuse_kind(driver, kind, rootless=is_rootless())
    if named:
        return named
    return "" if shows_types(directory) else explain_missing_types(kind)


def refuse_kind(driver: str, kind: str, *, rootless: bool) -> str:
    """Say why a driver cannot work on a type of file system; "" where it may."""
    if driver not in UNION_DRIVERS:
        return ""
    if driver in KERNEL_UNION_DRIVERS and kind in UNION_FILE_SYSTEMS:
        return (
            f"the data root is on {kind}, which cannot hold {driver}'s writable layers: "
            "choose a root on another file system with --root"
        )
    if kind in NETWORK_FILE_SYSTEMS and rootless:
        return (
            f"the data root is on the network file system {kind}, which gives a user no owners, devices or xattrs for "
            f"{driver}'s writable layers: choose a root on a local file system with --root"
        )
    if driver in KERNEL_UNION_DRIVERS and kind in NETWORK_FILE_SYSTEMS:
        return (
            f"the data root is on the network file system {kind}, which overlayfs does not write to: "
            "choose a root on a local file system with --root"
        )
    return ""


def explain_missing_types(kind: str) -> str:
    """Say what to do about a file system whose directories don't tell the types of their entries."""
    remedy = {
        "xfs": "it was made without ftype: make it again with mkfs.xfs -n ftype=1",
        "ext4": "it was made without filetype: make it again with mkfs.ext4 -O filetype",
    }.get(kind, "choose a root on another file system with --root")
    return f"the {kind} of the data root does not keep the types of directory entries, which overlayfs needs; {remedy}"


def shows_types(directory: Path) -> bool:
    """Tell whether listing a directory gives its entries' types (d_type), by making and removing a file in it."""
    name = f".type-{os.urandom(8).hex()}"
    path = directory / name
    path.touch()
    try:
        with os.scandir(directory) as entries:
            entry = next(entry for entry in entries if entry.name == name)
    finally:
        path.unlink()
    # Without a type this looks at the file itself, which is gone.
    return entry.is_file(follow_symlinks=False)


def find_file_system(directory: Path) -> str:
    """Name the type of the file system that holds a directory."""
    return find_mount(directory)[0]


def find_mount(directory: Path) -> tuple[str, str]:
    """Give the type and the source (a device, a dataset) of the mount that holds a directory."""
    best, best_length = ("unknown", ""), -1
    place = os.path.realpath(directory)
    for line in read_mount_table().splitlines():
        fields = line.split(" ")
        point = unescape(fields[4])
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best_length:  # the last of several at one place hides the others
            dash = fields.index("-")
            best, best_length = (fields[dash + 1], unescape(fields[dash + 2])), len(point)
    return best


def is_rootless() -> bool:
    """Tell whether this process lacks the machine's root: another user, or a user namespace of its own."""
    if os.geteuid() != 0:
        return True
    try:
        mapping = Path("/proc/self/uid_map").read_text().split()
    except OSError:
        return False
    return mapping != ["0", "0", "4294967295"]
