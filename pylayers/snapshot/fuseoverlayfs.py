"""fuse-overlayfs: overlay2's layout, shown by a program instead of the kernel: for user namespaces and old kernels.

The program marks what it deletes as overlayfs does where it may (as root), else by `.wh.NAME` files.
An opaque directory has the attribute and, beside it, the entries `.wh..wh..opq` and `.wh..opq`, which nobody sees.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from pylayers._native import walk
from pylayers.diff.namespace import in_user_namespace
from pylayers.diff.whiteout import convert_upper
from pylayers.errors import PylayersError
from pylayers.record import replace
from pylayers.snapshot.catalog import Record
from pylayers.snapshot.default import translated
from pylayers.snapshot.fusemount import PROGRAM, TYPE, find_program, is_served
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.namedmark import PREFIX, convert_names
from pylayers.snapshot.snapshotter import Changes, Mount, Probe
from pylayers.snapshot.stack import StackSnapshotter
from pylayers.snapshot.upper import find_upper_changes
from pylayers.store.file import remove_tree

ENDING_TRIES = 100


class Driver(StackSnapshotter):
    """Keep snapshots as overlay layers that the fuse-overlayfs program shows."""

    name = "fuse-overlayfs"
    reserved_prefix = PREFIX

    def __init__(self, root: Path) -> None:
        """Open the driver's directory; in a user namespace opaque directories are marked by the user's attributes."""
        super().__init__(root)
        if in_user_namespace():
            self.user_marks = True

    def _mounts(self, record: Record) -> list[Mount]:
        mounts = super()._mounts(record)
        return [replace(one, type=TYPE, options=()) if one.type == "overlay" else one for one in mounts]

    def _refuse_mounted(self, directory: str, record: Record) -> None:
        # The mount table doesn't name the upper, the program's command line does; it ends shortly after its mount.
        for _ in range(ENDING_TRIES):
            if not is_served(record.id):
                break
            time.sleep(0.01)
        else:
            self._refuse(record)
        StackSnapshotter._refuse_mounted(self, directory, record)

    def changes(self, key: str) -> Changes:
        """Return the changes of an active or committed snapshot, by walking only its upper."""
        record = self._changeable(key)
        with translated(f"find the changes of snapshot {key!r}"):
            descriptor = os.open(self._content(record), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                records, heap = walk.walk(descriptor, xattrs=True)
                convert_upper(records, heap)
                records = convert_names(records, heap)
                with self._below(record) as below:
                    return find_upper_changes(records, heap, descriptor, below)
            except BaseException:
                os.close(descriptor)
                raise


def probe(directory: Path) -> Probe:
    """Mount two lowers inside a directory and change them; nothing is left behind."""
    if find_program() is None:
        return Probe(False, f"no {PROGRAM} program on the PATH")
    if not Path("/dev/fuse").exists():
        return Probe(False, "no /dev/fuse")
    scratch = Path(tempfile.mkdtemp(prefix=".probe-", dir=directory))
    try:
        for name in ("l1", "l2", "upper", "work"):
            (scratch / name).mkdir()
        (scratch / "l1" / "one").write_bytes(b"1")
        (scratch / "l2" / "two").write_bytes(b"2")
        one = Mount(
            TYPE,
            lowers=(str(scratch / "l1"), str(scratch / "l2")),
            upper=str(scratch / "upper"),
            work=str(scratch / "work"),
        )
        with mounted([one], scratch) as merged:
            if (merged / "one").read_bytes() + (merged / "two").read_bytes() != b"12":
                return Probe(False, f"{PROGRAM} shows other files than its lowers have")
            (merged / "two").unlink()
            (merged / "three").write_bytes(b"3")
            if sorted(os.listdir(merged)) != ["one", "three"]:
                return Probe(False, f"{PROGRAM} does not show its own changes")
        return Probe(True)
    except (PylayersError, OSError) as error:
        return Probe(False, f"{PROGRAM} inside {directory}: {error}")
    finally:
        remove_tree(scratch)
