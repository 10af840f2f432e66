"""The place of a layer that was applied to an erofs snapshot: `<id>/layer/<n>`, or `<n>-<P>` for a spliced one.

It holds `layer.tar`, a hard link to the stored layer's; `layer.idx`, its entry table; `layer.erofs`, the image over
them. Of a spliced layer, whose first P bytes are another layer's, `base-<P>.tar` is a hard link to that one's tar. The
place's name tells P, since a mount reads the names of hundreds of places anyway, and needs to look into none of them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from pylayers.oci.digest import digest_hex
from pylayers.record import record
from pylayers.store.file import remove_file
from pylayers.store.splice import base_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath

    from pylayers.store.layer import Layer

IMAGE, TAR, INDEX = "layer.erofs", "layer.tar", "layer.idx"
# Another file system, too many links, or a file system without any: then there is a copy.
NO_LINK = (errno.EXDEV, errno.EMLINK, errno.EPERM)


@record
class Lower:
    """One lower of a mount: a directory (no devices), or an image over its devices."""

    path: str
    devices: tuple[str, ...] = ()


@record
class Head:
    """Say what one lower is before it is put together: a directory, or the image of a layer or of several."""

    place: str  # the directory itself, or where the image lies
    count: int  # of the layers that the image stands for: this one and those below; 0 for a directory


def name_place(number: int, base_end: int) -> str:
    """Name the place of a snapshot's layer by its number, and by where its base ends (0: it has none)."""
    return f"{number}-{base_end}" if base_end else str(number)


def base_end_of(place: str) -> int:
    """Tell from a place's path where its layer's base ends; 0 for a layer that has none."""
    return int(place[place.rindex("/") + 1 :].partition("-")[2] or 0)


def devices_of(place: str) -> tuple[str, ...]:
    """Name the files behind a place's layer in the order of an image's devices."""
    end = base_end_of(place)
    return (f"{place}/{TAR}", f"{place}/{base_name(end)}") if end else (f"{place}/{TAR}",)


def lower_of(place: str) -> Lower:
    """Give a place's own image as a lower."""
    return Lower(f"{place}/{IMAGE}", devices_of(place))


def list_places(directory: StrPath) -> list[str]:
    """List the places of the layers that were applied to a snapshot, lowest first."""
    try:
        names = os.listdir(f"{directory}/layer")
    except FileNotFoundError:
        return []
    return [f"{directory}/layer/{name}" for name in sorted(names, key=lambda name: int(name.partition("-")[0]))]


def link_tars(layer: Layer, place: StrPath) -> int | None:
    """Give a layer's tar and its base other names in a place; return where the base ends, 0 for none.

    None where no links can be made; nothing is left of it.
    """
    try:
        end = _link_base(layer, place)
        os.link(layer.tar_path, f"{place}/{TAR}")
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        if layer.base is not None:
            remove_file(f"{place}/{base_name(layer.base.end_bytes)}", durable=False)
        return None
    return end


def copy_tar(layer: Layer, target: StrPath) -> None:
    """Copy a layer's tar, whole and synced, to another file system; the store's stays as it is."""
    from pylayers._native import copyup

    with ExitStack() as stack:

        def keep(descriptor: int) -> int:
            stack.callback(os.close, descriptor)
            return descriptor

        base = -1
        if layer.base is not None:
            with suppress(FileNotFoundError):  # somebody filled the tar meanwhile, after which its base goes
                base = keep(os.open(layer.base.path, os.O_RDONLY | os.O_CLOEXEC))
        source = keep(os.open(layer.tar_path, os.O_RDONLY | os.O_CLOEXEC))
        copy = keep(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        copyup.copy_file(source, copy, layer.size_bytes)
        if layer.base is not None and base >= 0:
            copyup.copy_range(base, 0, copy, 0, layer.base.end_bytes)
        os.fsync(copy)


def link_index(layer: Layer, target: StrPath) -> None:
    """Keep a layer's table beside its image: another name for the store's file, where that is one."""
    beside = os.path.join(os.path.dirname(layer.tar_path), INDEX)
    try:
        os.link(beside, target)
        return
    except OSError as error:
        if error.errno not in (*NO_LINK, errno.ENOENT):
            raise
    from pylayers.store.index import write_index

    with open(target, "xb") as file:
        write_index(
            file.fileno(),
            layer.table.records,
            layer.table.heap,
            b"",
            size_bytes=layer.size_bytes,
            diff_hex=digest_hex(layer.diff_id),
        )


@contextmanager
def fresh_file(path: StrPath) -> Iterator[int]:
    """Give a file that appears under its name, and synced, only when the block ends well."""
    folder, name = os.path.split(path)
    hidden = os.path.join(folder, f".{name}.{os.urandom(8).hex()}")
    descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
        os.fsync(descriptor)  # a torn image would show wrong files, and nothing would tell
        os.rename(hidden, path)
    except BaseException:
        os.unlink(hidden)
        raise
    finally:
        os.close(descriptor)


def _link_base(layer: Layer, place: StrPath) -> int:
    if layer.base is None:
        return 0
    end = layer.base.end_bytes
    try:
        os.link(layer.base.path, f"{place}/{base_name(end)}")
    except FileNotFoundError:
        return 0  # somebody filled the tar meanwhile, after which its base goes
    return end
