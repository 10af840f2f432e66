"""The marks that overlayfs leaves in an upper directory: attributes of its own, and whiteouts."""

from __future__ import annotations

import stat

OVERLAY_PREFIXES = (b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs.")
OPAQUE_NAMES = tuple(prefix + b"opaque" for prefix in OVERLAY_PREFIXES)


def is_whiteout(mode: int, rdev_major: int, rdev_minor: int) -> bool:
    """Tell whether a directory entry is overlayfs's whiteout: a character device 0:0."""
    return stat.S_ISCHR(mode) and rdev_major == 0 and rdev_minor == 0
