"""Try whether the kernel shows EROFS images over other files, and takes them into an overlay."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

from pylayers._native import erofs
from pylayers.errors import PylayersError
from pylayers.snapshot.layerplace import fresh_file
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.snapshotter import Mount, Probe
from pylayers.snapshot.stack import overlay_options
from pylayers.store.entry import FLAG_WHITEOUT, TableBuilder
from pylayers.store.file import remove_tree
from pylayers.store.row import Entry


def try_images(directory: Path) -> Probe:
    """Mount an overlay over a directory and an image over a file inside a directory; nothing is left behind."""
    scratch = Path(tempfile.mkdtemp(prefix=".probe-", dir=directory))
    try:
        return _try_in(scratch)
    except PylayersError as error:
        return Probe(False, _explain(str(error)))
    except OSError as error:
        return Probe(False, _explain(f"{error.strerror or error} on an EROFS image inside {directory}"))
    finally:
        remove_tree(scratch)


def _try_in(scratch: Path) -> Probe:
    for name in ("below", "upper", "work"):
        (scratch / name).mkdir()
    (scratch / "below" / "gone").touch()
    (scratch / "below" / "seen").write_bytes(b"below")
    (scratch / "data").write_bytes(bytes(512) + b"content".ljust(512, b"\0"))
    builder = TableBuilder()
    builder.add(b"", Entry(mode=stat.S_IFDIR | 0o755))
    builder.add(b"file", Entry(mode=stat.S_IFREG | 0o644, data_offset=512, size_bytes=7))
    builder.add(b"gone", Entry(mode=stat.S_IFCHR, flags=FLAG_WHITEOUT))
    table, _ = builder.build()
    with fresh_file(scratch / "image") as descriptor:
        erofs.write(descriptor, table.records, table.heap, [1024])
    one = Mount(
        "overlay",
        lowers=(str(scratch / "image"), str(scratch / "below")),
        devices=((str(scratch / "data"),), ()),
        upper=str(scratch / "upper"),
        work=str(scratch / "work"),
        options=overlay_options(),
    )
    with mounted([one], scratch) as merged:
        if (merged / "file").read_bytes() != b"content" or (merged / "seen").read_bytes() != b"below":
            return Probe(False, "EROFS here shows other data than its device has")
        if (merged / "gone").exists():
            return Probe(False, "overlayfs here does not honour whiteouts in EROFS")
        (merged / "file").write_bytes(b"changed")
    if (scratch / "upper" / "file").read_bytes() != b"changed":
        return Probe(False, "overlayfs here does not copy up from EROFS")
    return Probe(True)


def _explain(reason: str) -> str:
    """Say what a kernel lacks, where it can be told from outside."""
    if "erofs" not in Path("/proc/filesystems").read_text().split():
        return f"the running kernel has no erofs (or its module is not loaded): {reason}"
    return reason
