"""Where a COPY or ADD goes: its destination made absolute, and followed through the symlinks of a tree."""

from __future__ import annotations

import stat
from collections.abc import Callable

from pylayers.errors import InvalidInput
from pylayers.record import record

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
