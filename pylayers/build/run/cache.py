"""`RUN --mount=type=cache`: folders below buildkit/cache that outlive builds.

A cache is known by its id and by what it is made with (owner, mode and the tree that it begins with). Its `lock` is
held shared by its users, or exclusively where it is theirs alone; whoever holds it exclusively may also remove the
folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from pylayers.build.cache.key import hash_fields
from pylayers.build.run.mount import LOCKED, PRIVATE, RunMount
from pylayers.errors import translate_os_error
from pylayers.record import record
from pylayers.volume.initialise import MARKER, initialise
from pylayers.volume.volumes import disk_bytes

FOLDER = "buildkit/cache"
DATA = "data"
LOCK = "lock"
POLL_SECONDS = 0.05
DIRECTORY_MODE = 0o755

Wait = Callable[[], None]  # called while another holds a cache; raises to give up


@record
class CacheUse:
    """Describe a stored cache."""

    path: Path
    size_bytes: int
    in_use: bool


def name_cache(mount: RunMount, source_digest: bytes) -> str:
    """Name a mount's cache: equal for equal ids, owners, modes and beginnings."""
    fields = (
        mount.id.encode(errors="surrogateescape"), repr((mount.uid, mount.gid, mount.mode)).encode(),
        mount.from_name.encode(errors="surrogateescape"), source_digest,
    )  # fmt: skip
    return hash_fields("cache mount", fields)[:40]


def open_cache(
    root: Path,
    mount: RunMount,
    source_digest: bytes,
    fill_from: Callable[[], Path] | None,
    wait: Wait,
    stack: ExitStack,
) -> Path:
    """Return a cache's folder, its lock held until the stack is closed; it is made and filled when missing.

    A private one that is in use gives way to another of its own; a locked one is waited for.
    """
    name = name_cache(mount, source_digest)
    try:
        (root / FOLDER).mkdir(mode=0o711, parents=True, exist_ok=True)
        number = 0
        while True:
            place = root / FOLDER / (name if not number else f"{name}-{number}")
            descriptor = enter_cache(place, mount, fill_from, None if mount.sharing == PRIVATE else wait)
            if descriptor is not None:
                break
            number += 1
        stack.callback(os.close, descriptor)
        os.utime(place / LOCK)  # when it was used last
    except OSError as error:
        raise translate_os_error(error, f"use the cache {mount.id}") from error
    return place / DATA


def enter_cache(
    place: Path, mount: RunMount, fill_from: Callable[[], Path] | None, wait: Wait | None
) -> int | None:
    """Lock a cache that is ready and return the lock's descriptor; None where another has it and there is no wait."""
    alone = mount.sharing in (LOCKED, PRIVATE)
    while True:
        making = not is_ready(place)
        descriptor = take_lock(place, exclusive=alone or making)
        if descriptor is None:
            if wait is None:
                return None
            wait()
            time.sleep(POLL_SECONDS)
            continue  # it may be ready by now: then its users share it
        try:
            if making and not is_ready(place):
                make_cache(place / DATA, mount, fill_from)
            if making and not alone:
                # Not atomic: for a moment the lock is nobody's, and a prune may take the cache.
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if is_ready(place) and is_same(descriptor, place / LOCK):
                return descriptor
        except BlockingIOError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # removed, or taken, since it was looked at


def take_lock(place: Path, *, exclusive: bool) -> int | None:
    """Take a cache's lock and return its descriptor; None where another holds it."""
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    while True:
        place.mkdir(mode=0o711, exist_ok=True)
        try:
            descriptor = os.open(place / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # removed at this moment
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            if is_same(descriptor, place / LOCK):
                return descriptor
            os.close(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None


def is_same(descriptor: int, path: Path) -> bool:
    """Tell whether an open file is still the one of its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def is_ready(place: Path) -> bool:
    """Tell whether a cache is made and filled."""
    return (place / DATA).is_dir() and not (place / MARKER).exists()


def make_cache(data: Path, mount: RunMount, fill_from: Callable[[], Path] | None) -> None:
    """Make a cache's folder, with the content that it begins with; the caller has it alone."""
    mode = DIRECTORY_MODE if mount.mode is None else mount.mode
    # Under another name until it is whole: an interrupted one is made anew.
    made = data.with_name(f"{DATA}.new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(mode=0o700)
    if fill_from is not None:
        source = os.open(fill_from(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            initialise(made, source, "/")
        finally:
            os.close(source)
    if fill_from is None or (mount.uid, mount.gid, mount.mode) != (None, None, None):
        os.chown(made, mount.uid or 0, mount.gid or 0)
        made.chmod(mode)
    made.rename(data)


def walk_caches(root: Path) -> Iterator[CacheUse]:
    """Yield every stored cache."""
    for place in list_places(root):
        descriptor = try_alone(place)
        if descriptor is not None:
            os.close(descriptor)
        yield CacheUse(place, disk_bytes(place), descriptor is None)


def prune_caches(root: Path) -> int:
    """Remove the caches that nobody uses; return the bytes freed."""
    freed_bytes = 0
    for place in list_places(root):
        descriptor = try_alone(place)
        if descriptor is None:
            continue
        try:
            size_bytes = disk_bytes(place)
            (place / LOCK).unlink()  # whoever waits for it makes the cache anew
            shutil.rmtree(place)
            freed_bytes += size_bytes
        except OSError as error:
            raise translate_os_error(error, f"remove the cache {place.name}") from error
        finally:
            os.close(descriptor)
    return freed_bytes


def list_places(root: Path) -> list[Path]:
    """List the caches' folders."""
    try:
        return sorted(path for path in (root / FOLDER).iterdir() if path.is_dir())
    except FileNotFoundError:
        return []


def try_alone(place: Path) -> int | None:
    """Take a cache's lock exclusively without waiting; None where it is in use."""
    return take_lock(place, exclusive=True)
