"""Mount EROFS index images over the tars that hold their data, by themselves and as lowers of an overlay.

An image is mounted from its file where the kernel can (Linux 6.12), else through loop devices that the kernel frees
with the mount. Below an overlay the image's own mount is never in the mount table: the overlay keeps it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from pylayers._native import sysmount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath

# fsconfig takes strings of at most 255 bytes; "device=" isn't among them.
LONGEST_PATH_BYTES = 255
ON_FILES, ON_LOOPS = "files", "loops"
# What this kernel was seen to do. A race only tries twice.
_seen: dict[str, bool] = {}


def open_image(image: str, devices: Sequence[str], backing: str | None = None) -> int:
    """Mount an EROFS image read-only and return a descriptor of its detached mount, which ends with it.

    backing says how (ON_FILES, ON_LOOPS); None tries files first. Raises OSError with the kernel's words.
    """
    if backing == ON_LOOPS or (backing is None and _seen.get("needs loops")):
        return _open_on_loops(image, devices)
    try:
        return _open_on_files(image, devices)
    except OSError as error:
        if backing == ON_FILES or error.errno != errno.ENOTBLK:
            raise
    opened = _open_on_loops(image, devices)
    _seen["needs loops"] = True
    return opened


def mount_image(image: str, devices: Sequence[str], target: StrPath) -> None:
    """Mount an EROFS image at a directory."""
    descriptor = open_image(image, devices)
    try:
        sysmount.move_mount(descriptor, -100, os.fsencode(target))
    finally:
        os.close(descriptor)


def mount_over_images(
    lowers: Sequence[str],
    devices: Sequence[tuple[str, ...]],
    upper: str,
    work: str,
    target: StrPath,
    options: Sequence[str],
    readonly: bool,
) -> None:
    """Mount an overlay some of whose lowers are EROFS images: those with devices."""
    encoded = [os.fsencode(option) for option in options]
    with ExitStack() as stack:
        opened: list[bytes | int] = []
        for lower, behind in zip(lowers, devices, strict=True):
            if behind:
                descriptor = open_image(lower, behind)
                stack.callback(os.close, descriptor)
                opened.append(descriptor)
            else:
                opened.append(os.fsencode(lower))
        place = os.fsencode(target)
        if not _seen.get("needs mount points"):
            try:
                sysmount.mount_overlay(opened, os.fsencode(upper), os.fsencode(work), place, encoded, readonly)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        with _attached(opened) as paths:
            sysmount.mount_overlay(paths, os.fsencode(upper), os.fsencode(work), place, encoded, readonly)
        _seen["needs mount points"] = True


@contextmanager
def _attached(lowers: Sequence[bytes | int]) -> Iterator[list[bytes | int]]:
    """Give detached mounts a place for as long as an older kernel needs to take them into an overlay."""
    import tempfile
    from pathlib import Path

    with ExitStack() as stack:
        paths: list[bytes | int] = []
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pylayers-lower-")))
        for number, lower in enumerate(lowers):
            if not isinstance(lower, int):
                paths.append(lower)
                continue
            place = folder / str(number)
            place.mkdir()
            sysmount.move_mount(lower, -100, os.fsencode(place))
            stack.callback(sysmount.unmount, os.fsencode(place), sysmount.MNT_DETACH)
            paths.append(os.fsencode(place))
        yield paths


def _open_on_files(image: str, devices: Sequence[str]) -> int:
    with ExitStack() as stack:
        names = [_name(path, stack) for path in (image, *devices)]
        return sysmount.fsmount(b"erofs", names[0], [b"device=" + name for name in names[1:]], True)


def _open_on_loops(image: str, devices: Sequence[str]) -> int:
    from pylayers.snapshot.loop import attach_loop

    with ExitStack() as stack:
        names = []
        for path in (image, *devices):
            descriptor, name = attach_loop(path)
            stack.callback(os.close, descriptor)
            names.append(os.fsencode(name))
        return sysmount.fsmount(b"erofs", names[0], [b"device=" + name for name in names[1:]], True)


def _name(path: str, stack: ExitStack) -> bytes:
    """Name a file in few enough bytes for fsconfig."""
    encoded = os.fsencode(path)
    if len(encoded) <= LONGEST_PATH_BYTES:
        return encoded
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return b"/proc/self/fd/%d" % descriptor
