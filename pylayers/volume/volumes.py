"""Named volumes: volumes/<name>/volume.json beside volumes/<name>/_data.

A volume exists when its volume.json does; that file is written last (atomically) and removed first, so that a crash
leaves either a whole volume or a folder that the next create or prune cleans up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from pylayers.errors import Conflict, IntegrityError, NotFound, translate_os_error
from pylayers.record import field, record
from pylayers.store.file import remove_tree, sync_path
from pylayers.volume.parse import check_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath

RECORD = "volume.json"
RECORD_LIMIT_BYTES = 1 << 20

# Answers which containers use a volume.
Users = Callable[[str], Iterable[str]]


@record
class Volume:
    """Describe one volume."""

    name: str
    path: Path  # its _data directory
    created: str  # RFC 3339
    labels: Mapping[str, str] = field(default_factory=dict)
    anonymous: bool = False


class VolumeStore:
    """Keep the volumes below one directory; needs no database."""

    def __init__(self, directory: StrPath) -> None:
        self.directory = Path(directory)

    def create(self, name: str | None = None, labels: Mapping[str, str] | None = None) -> Volume:
        """Create a volume, or return the existing one of that name; name None makes an anonymous one.

        Crash-safe. Raises InvalidInput for the name, Conflict when it exists with other labels, NoSpace,
        PermissionDenied.
        """
        anonymous = name is None
        if name is None:
            name = os.urandom(32).hex()
        check_name(name)
        try:
            existing = self.inspect(name)
        except NotFound:
            pass
        else:
            if labels is not None and dict(labels) != dict(existing.labels):
                raise Conflict(f"a volume named {name} already exists with other labels")
            return existing
        from datetime import UTC, datetime  # here, as most containers have no volume

        folder = self.directory / name
        volume = Volume(name, folder / "_data", datetime.now(UTC).isoformat(), dict(labels or {}), anonymous)
        try:
            volume.path.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._write(volume)
        except OSError as error:
            raise translate_os_error(error, f"create volume {name}") from error
        return volume

    def _write(self, volume: Volume) -> None:
        content = json.dumps(
            {
                "name": volume.name,
                "created": volume.created,
                "labels": dict(volume.labels),
                "anonymous": volume.anonymous,
            }
        )
        folder = volume.path.parent
        scratch = folder / f"{RECORD}.{os.getpid()}.{os.urandom(4).hex()}"
        try:
            with scratch.open("x", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(folder / RECORD)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        for place in (folder, self.directory):
            sync_path(place)

    def inspect(self, name: str) -> Volume:
        """Return one volume. Raises NotFound, IntegrityError for an unreadable record."""
        check_name(name)
        path = self.directory / name / RECORD
        try:
            with path.open("rb") as file:
                record = json.loads(file.read(RECORD_LIMIT_BYTES))
            return Volume(
                name, path.parent / "_data", str(record["created"]), dict(record["labels"]), bool(record["anonymous"])
            )
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"no such volume: {name}", hint="pylayers volume ls") from None
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{path} is damaged: {error}") from error

    def walk(self) -> Iterator[Volume]:
        """Yield the volumes by name; a folder without a record is no volume."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.directory) if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return
        for name in names:
            if (self.directory / name / RECORD).exists():
                yield self.inspect(name)

    def remove(self, name: str, *, in_use: Users, force: bool = False) -> bool:
        """Remove a volume with its data. Raises NotFound (unless force) and Conflict while containers use it."""
        try:
            volume = self.inspect(name)
        except NotFound:
            if force:
                return False
            raise
        users = sorted(in_use(name))
        if users:
            raise Conflict(
                f"remove {name}: volume is in use - [{', '.join(users)}]",
                hint=f"remove the container first: pylayers rm {users[0]}",
            )
        self._delete(volume)
        return True

    def prune(self, *, in_use: Users, everything: bool = False) -> tuple[list[str], int]:
        """Remove unused anonymous volumes (everything=True: named ones too); return their names and bytes freed."""
        removed: list[str] = []
        freed_bytes = 0
        for volume in list(self.walk()):
            if (volume.anonymous or everything) and not any(True for _ in in_use(volume.name)):
                freed_bytes += disk_bytes(volume.path)
                self._delete(volume)
                removed.append(volume.name)
        return removed, freed_bytes

    def _delete(self, volume: Volume) -> None:
        folder = volume.path.parent
        try:
            (folder / RECORD).unlink(missing_ok=True)
            sync_path(folder)
            remove_tree(folder)
        except OSError as error:
            raise translate_os_error(error, f"remove volume {volume.name}") from error


def disk_bytes(directory: Path) -> int:
    """Count the disk space below a directory, hard links once."""
    total = 0
    seen: set[tuple[int, int]] = set()
    waiting = [os.fspath(directory)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif status.st_nlink > 1:
                    if (status.st_dev, status.st_ino) in seen:
                        continue
                    seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total
