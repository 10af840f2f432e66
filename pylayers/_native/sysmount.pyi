from collections.abc import Sequence

MS_RDONLY: int
MS_NOSUID: int
MS_NODEV: int
MS_NOEXEC: int
MS_REMOUNT: int
MS_BIND: int
MS_REC: int
MS_PRIVATE: int
MS_SLAVE: int
MNT_DETACH: int
CLONE_NEWNS: int

def mount(source: bytes, target: bytes, fstype: bytes, flags: int = 0, options: bytes = b"") -> None:
    """Call mount(2). Raises OSError with the target as filename."""

def unmount(target: bytes, flags: int = 0) -> None:
    """Call umount2(2)."""

def mount_overlay(
    lowers: Sequence[bytes | int],
    upper: bytes,
    work: bytes,
    target: bytes,
    options: Sequence[bytes] = (),
    readonly: bool = False,
) -> None:
    """Mount overlayfs through fsopen/fsconfig (lowerdir+ where the kernel has it, Linux 6.7), else through mount(2).

    lowers is topmost first, each a path or (Linux 6.13) a descriptor of a directory, from Linux 6.15 of a detached
    mount too; an older kernel's refusal is EINVAL. upper and work empty make a read-only mount. Paths with ',' or ':'
    work. options are `key=value` or `flag`. With many lowers on an old kernel the page-size limit of mount(2) is an
    OSError(E2BIG). The kernel's own words from the fs context log are in the OSError's text.
    """

def fsmount(fstype: bytes, source: bytes, options: Sequence[bytes] = (), readonly: bool = False) -> int:
    """Make a file system (fsopen, fsconfig, fsmount) and return a descriptor of its detached mount.

    The mount ends with the descriptor unless move_mount attaches it or an overlay takes it. A source or a value of
    an option has at most 255 bytes. Raises OSError with the kernel's own words.
    """

def unshare(flags: int) -> None:
    """Call unshare(2)."""

def setns(fd: int, flags: int = 0) -> None:
    """Call setns(2)."""

def open_tree(directory_fd: int, path: bytes, clone: bool = False, recursive: bool = False) -> int:
    """Call open_tree(2); the caller closes the returned descriptor."""

def move_mount(mount_fd: int, directory_fd: int, path: bytes) -> None:
    """Attach a detached mount at path."""

def become_subreaper() -> None:
    """Make this process the parent of its orphaned descendants (prctl). Raises OSError."""

def sync_file_system(descriptor: int) -> None:
    """Write all of a descriptor's file system to the disk (syncfs). Releases the GIL. Raises OSError."""

def has_x32() -> bool:
    """Tell whether the kernel runs programs of the x32 ABI; False on other machines than x86-64."""
