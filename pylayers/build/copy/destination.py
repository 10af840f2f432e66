"""Where a COPY or ADD goes (made absolute, and followed through a tree's symlinks), and what it makes of metadata."""

from __future__ import annotations

import stat
from collections.abc import Callable

from pylayers.errors import InvalidInput
from pylayers.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.build.copy.filemode import Change

SYMLINK_LIMIT = 255  # as many as BuildKit follows

Look = Callable[[bytes], tuple[int, bytes] | None]  # a path's st_mode and symlink target; None where nothing is


@record
class Destination:
    """Where a COPY goes: `path` as given, made absolute, no leading slash; `as_directory` when it ends in one."""

    path: str
    as_directory: bool

    @property
    def shown(self) -> str:
        """Return what step keys have of it."""
        return self.path + ("/" if self.as_directory else "")


@record
class Ownership:
    """Say what --chown and --chmod make of copied rows; -1 keeps the source's."""

    uid: int = -1
    gid: int = -1
    mode: int = -1  # an octal --chmod
    changes: tuple[Change, ...] = ()  # a symbolic --chmod

    @property
    def parent_mode(self) -> int:
        """Return the mode of directories that a copy has to make: BuildKit makes them under an umask of 022."""
        return 0o755 if self.mode < 0 else self.mode & 0o755

    @property
    def digest_name(self) -> str:
        """Return the stat cache's name for a digest under this --chmod; a walk's key says what was walked."""
        return f"content {self.mode:o} {self.changes!r}" if self.changes or self.mode >= 0 else "content"

    def finish(self, records: bytearray) -> None:
        """Apply what graft() doesn't know: symbolic modes."""
        if self.changes:
            from pylayers.build.copy.filemode import change_rows

            change_rows(records, self.changes)


def place_destination(destination: str, working_dir: str) -> Destination:
    """Make a COPY destination absolute."""
    as_directory = destination.endswith("/") or destination.rsplit("/", 1)[-1] in (".", "..")
    path = destination if destination.startswith("/") else f"{working_dir.rstrip('/')}/{destination}"
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if parts:
                parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return Destination("/".join(parts), as_directory)


def resolve_path(path: bytes, look: Look) -> bytes:
    """Follow every symlink of a path, the last component's too, inside the root; what is missing is taken as written.

    Raises InvalidInput after too many symlinks, or when the path leads through something that is no directory.
    """
    pending = [name for name in reversed(path.split(b"/")) if name not in (b"", b".")]
    done: list[bytes] = []
    links = 0
    while pending:
        name = pending.pop()
        if name == b"..":
            del done[-1:]
            continue
        done.append(name)
        found = look(b"/".join(done))
        if found is None:
            continue
        mode, target = found
        if stat.S_ISLNK(mode):
            links += 1
            if links > SYMLINK_LIMIT:
                raise InvalidInput(f"too many symbolic links in /{path.decode(errors='replace')}")
            done = [] if target.startswith(b"/") else done[:-1]
            pending += [name for name in reversed(target.split(b"/")) if name not in (b"", b".")]
        elif pending and not stat.S_ISDIR(mode):
            here = b"/".join(done).decode(errors="replace")
            raise InvalidInput(f"cannot copy below /{here}: it is not a directory")
    return b"/".join(done)
