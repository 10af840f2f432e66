"""Try whether the kernel's overlayfs does what drivers need, with its upper in a directory."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pylayers.diff.overlaymark import is_whiteout
from pylayers.errors import PylayersError
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.snapshotter import Mount, Probe
from pylayers.snapshot.stack import overlay_options
from pylayers.store.file import remove_tree


def try_overlay(directory: Path, *, linking: bool = False) -> Probe:
    """Mount an overlay of two lowers inside a directory and change it; linking=True: a hard link too.

    Nothing is left behind.
    """
    scratch = Path(tempfile.mkdtemp(prefix=".probe-", dir=directory))
    try:
        if linking:
            (scratch / "file").touch()
            os.link(scratch / "file", scratch / "link")
        return _try_in(scratch, overlay_options())
    except PylayersError as error:
        return Probe(False, str(error))
    except OSError as error:
        return Probe(False, f"{error.strerror or error} on an overlay inside {directory}")
    finally:
        remove_tree(scratch)


def _try_in(scratch: Path, options: Sequence[str]) -> Probe:
    for name in ("l1", "l2", "upper", "work"):
        (scratch / name).mkdir()
    (scratch / "l2" / "hidden").write_bytes(b"")
    os.mknod(scratch / "l1" / "hidden", stat.S_IFCHR, os.makedev(0, 0))
    (scratch / "l2" / "seen").write_bytes(b"below")
    (scratch / "l2" / "tree").mkdir()
    overlay = Mount(
        "overlay",
        lowers=(str(scratch / "l1"), str(scratch / "l2")),
        upper=str(scratch / "upper"),
        work=str(scratch / "work"),
        options=tuple(options),
    )
    with mounted([overlay], scratch) as merged:
        if (merged / "hidden").exists() or (merged / "seen").read_bytes() != b"below":
            return Probe(False, "overlayfs here does not honour whiteouts")
        (merged / "seen").unlink()
        (merged / "tree").rmdir()
        (merged / "tree").mkdir()
    mark = os.lstat(scratch / "upper" / "seen")
    if not is_whiteout(mark.st_mode, os.major(mark.st_rdev), os.minor(mark.st_rdev)):
        return Probe(False, "overlayfs here marks deleted files in a way this driver does not know")
    if os.getxattr(scratch / "upper" / "tree", "trusted.overlay.opaque") != b"y":
        return Probe(False, "overlayfs here marks opaque directories in a way this driver does not know")
    return Probe(True)
