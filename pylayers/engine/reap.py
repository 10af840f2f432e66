"""Find what containers that were to remove themselves (--rm) have left behind.

Their records aren't flushed to the disk, so a power cut may leave any part of one: a record without a directory, a
directory without a record, an empty config.json.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

from pylayers.container.record import CONFIG, LOCK, RUNNING, boot_id, load_spec, load_state
from pylayers.errors import NotFound
from pylayers.store.file import read_text, write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.store.holder import ContainerRecord

# A record without its directory is a container that removed itself; a younger one may be about to be made.
REAP_AFTER_NS = 60 * 1_000_000_000
CONTAINER_LABEL = "pylayers.container"  # of an anonymous volume: whose it is
SWEPT = ".swept"  # holds the boot for which the directories were looked through


def find_forgotten(parent: str, records: Iterable[ContainerRecord]) -> Iterator[str]:
    """Yield the ids of records whose container is gone; one lstat a record."""
    oldest_ns = time.time_ns() - REAP_AFTER_NS
    for record in records:
        if record.created_ns < oldest_ns and not is_made(f"{parent}/{record.id}"):
            yield record.id


def find_ended(parent: str) -> Iterator[str]:
    """Yield the ids of an earlier boot's --rm containers, as docker does when its daemon starts; once a boot."""
    marker, boot = f"{parent}/{SWEPT}", boot_id()
    try:
        if read_text(marker) == boot:
            return
    except FileNotFoundError:
        pass
    booted_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    with os.scandir(parent) as entries:
        folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    for folder in folders:
        if folder.stat(follow_symlinks=False).st_mtime < booted_s and _is_over(folder.path):
            yield folder.name
    write_file(marker, boot.encode(), durable=False)


def find_unmade(parent: str) -> Iterator[str]:
    """Yield the ids of directories that were to become containers, whose caller and monitor have both been killed."""
    oldest_s = time.time() - REAP_AFTER_NS / 1e9
    with os.scandir(parent) as entries:
        folders = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    for folder in folders:
        if is_made(folder):
            continue
        with suppress(FileNotFoundError):  # nobody has begun to start it, or it has gone
            descriptor = os.open(f"{folder}/{LOCK}", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                dead = os.fstat(descriptor).st_mtime < oldest_s
            except BlockingIOError:
                dead = False
            finally:
                os.close(descriptor)
            if dead:
                yield os.path.basename(folder)


def is_made(directory: str) -> bool:
    """Tell whether a container's directory holds a container."""
    try:
        return os.stat(f"{directory}/{CONFIG}").st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_over(directory: str) -> bool:
    try:
        return load_spec(directory).remove_on_exit and load_state(directory).status != RUNNING
    except NotFound:
        return True
