"""Mount aufs branches, and keep hard links across them whole when the mount ends.

Source: aufs(5), fs/aufs/xino.c. Seen on a kernel that has it: a page holds the options of mount(2), what doesn't fit
is appended by remounts; a hard link whose names are in a lower branch stays one file only if every name is looked up
while the mount knows of it (its pseudo-links), as no auplink program is packaged any more.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from pylayers._native import sysmount
from pylayers.snapshot.snapshotter import Mount
from pylayers.store.mountpoint import read_mount_table, unescape

TYPE = "aufs"
SEPARATORS = ":,"
XINO_FOLDER = "/dev/shm"  # noqa: S108 - docker's: a file system that aufs can write to, and no disk
LONGEST_OPTIONS_BYTES = 4000  # of a page of 4096
MODULE = Path("/sys/fs/aufs")
LOWEST_LIMIT = 127
LIMITS = (32767, 1023, 511, 127)


def mount_branches(one: Mount, target: Path) -> None:
    """Mount an upper (read-write, when there is one) over lowers, topmost first. Raises OSError; nothing stays then."""
    branches = [f"{one.upper}=rw"] if one.upper else []
    branches += [f"{lower}=ro+wh" for lower in one.lowers]
    for branch in branches:
        if any(character in branch for character in SEPARATORS):
            raise OSError(errno.EINVAL, "aufs cannot use a path with ':' or ','", branch)
    # aufs makes the file of inode numbers, which must not be there yet, and drops its name at once: under one name for
    # all, two mounts at a moment would fail one of them, and a crash between the two steps every later one.
    tail = ",".join((*one.options, f"xino={XINO_FOLDER}/pylayers-{os.urandom(8).hex()}.xino"))
    first, rest = fill_option(branches, LONGEST_OPTIONS_BYTES - len(tail) - 1)
    flags = sysmount.MS_RDONLY if one.readonly else 0
    place = os.fsencode(target)
    sysmount.mount(b"none", place, TYPE.encode(), flags, os.fsencode(f"br:{first},{tail}"))
    try:
        while rest:
            # append takes one branch; several of them go into one remount while they fit.
            words: list[str] = []
            while rest and sum(map(len, words)) + len(rest[0]) + 16 < LONGEST_OPTIONS_BYTES:
                words.append(f"append:{rest.pop(0)}")
            sysmount.mount(b"none", place, TYPE.encode(), flags | sysmount.MS_REMOUNT, os.fsencode(",".join(words)))
    except BaseException:
        sysmount.unmount(place, sysmount.MNT_DETACH)
        raise


def fill_option(branches: list[str], room_bytes: int) -> tuple[str, list[str]]:
    """Join as many branches as fit, topmost first; return them and the rest. One is always taken."""
    taken, length = 1, len("br:") + len(os.fsencode(branches[0]))
    while taken < len(branches) and length + 1 + len(os.fsencode(branches[taken])) <= room_bytes:
        length += 1 + len(os.fsencode(branches[taken]))
        taken += 1
    return ":".join(branches[:taken]), branches[taken:]


def read_branch_limit() -> int:
    """Return how many branches this kernel's aufs was made for; the lowest number where it doesn't say."""
    try:
        said = (MODULE / "config").read_text()
    except OSError:
        return LOWEST_LIMIT
    for limit in LIMITS:
        if f"CONFIG_AUFS_BRANCH_MAX_{limit}=y" in said:
            return limit
    return LOWEST_LIMIT


def is_branch(directory: Path) -> bool:
    """Tell whether a directory is the writable branch of a mount, in any mount namespace: mountinfo doesn't say."""
    for branch in MODULE.glob("si_*/br0"):
        try:
            if branch.read_text().startswith(f"{directory}="):
                return True
        except OSError:  # just unmounted
            continue
    return False


def keep_links(target: Path) -> None:
    """Look every name of hard links up through an aufs mount that is about to end, so that none is torn off."""
    if not MODULE.exists() or not _is_aufs(target):
        return
    for directory, _, files in os.walk(target):
        for name in files:
            path = os.path.join(directory, name)
            try:
                if stat.S_ISREG(os.lstat(path).st_mode) and os.lstat(path).st_nlink > 1:
                    with open(path, "rb") as file:
                        file.read(1)
            except OSError:
                continue  # of no use to a link, and no reason to keep the mount


def _is_aufs(target: Path) -> bool:
    place = os.path.realpath(target)
    for line in read_mount_table().splitlines():
        fields = line.split(" ")
        if unescape(fields[4]) == place:
            found = fields[fields.index("-") + 1]
            if found == TYPE:
                return True
    return False
