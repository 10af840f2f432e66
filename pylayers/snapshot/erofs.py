"""erofs: layers are mounted from their own tars through EROFS index images; nothing is unpacked.

The layout is overlay2's. A layer that was applied lies in `<id>/layer/<n>/` (the highest n uppermost, all of them below
`diff`): `layer.tar`, a hard link to the stored layer's; `layer.idx`, its entry table; `layer.erofs`, the image that the
kernel `erofs` makes of the table; `link`, its short name; `settled`, the ctime of `diff` at that moment, by which an
untouched `diff` is known. `merged-<n>.erofs` is one image over the tars of this layer and of all n - 1 below it, so
that a mount of many layers needs few lowers.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pylayers.errors import DriverError, PylayersError
from pylayers.oci.digest import digest_hex
from pylayers.record import record
from pylayers.snapshot.catalog import Record
from pylayers.snapshot.default import DefaultSnapshotter, translated
from pylayers.snapshot.imagemount import open_image
from pylayers.snapshot.lower import LowerStack
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.snapshotter import Changes, Mount, Probe, SnapshotKind, Usage
from pylayers.snapshot.stack import StackSnapshotter, overlay_options, read_chain
from pylayers.store.entry import FLAG_IMPLICIT, FLAG_WHITEOUT, TableBuilder
from pylayers.store.file import remove_tree, sync_path
from pylayers.store.index import open_index, write_index
from pylayers.store.layer import Layer
from pylayers.store.row import Entry

IMAGE, TAR, INDEX = "layer.erofs", "layer.tar", "layer.idx"
# Above so many lowers they are merged: each costs a mount some 0.2 ms and every look-up a step; overlayfs takes 500.
MOST_LOWERS = 32


@record
class Lower:
    """One lower of a mount: a directory (no devices), or an image over its devices."""

    path: str
    devices: tuple[str, ...] = ()


class Driver(StackSnapshotter):
    """Keep snapshots as overlay layers, those of images as EROFS indexes over their tars."""

    name = "erofs"

    # -- hooks -------------------------------------------------------------------------------------------------

    def _own(self, directory: Path) -> list[str]:
        layers = [f"l/{(place / 'link').read_text()}" for place in reversed(_layers(directory))]
        if layers and not any(os.scandir(directory / "diff")) and _is_settled(directory):
            return layers
        return [*super()._own(directory), *layers]

    def _make(self, directory: Path, record: Record, parent: Record | None) -> None:
        super()._make(directory, record, parent)
        if parent is not None:
            self._merge(read_chain(directory, record))

    def _flush(self, directory: Path) -> None:
        """Write the notes beside the layers as well: tars and images are on the disk."""
        for place in _layers(directory):
            for path in (place / "settled", place / "link", place, place.parent):
                sync_path(path)
        super()._flush(directory)

    def _discard(self, directory: Path) -> None:
        super()._discard(directory)
        for link in (*directory.glob("layer/*/link"), *directory.glob("new-*/link")):
            self._unlink(link)

    def _mounts(self, record: Record) -> list[Mount]:
        directory = self.catalog.directory(record)
        lowers = [Lower(str(place / IMAGE), (str(place / TAR),)) for place in reversed(_layers(directory))]
        lowers += self._stack(self._chain(record))
        view = record.kind is SnapshotKind.VIEW
        upper, work = str(directory / "diff"), str(directory / "work")
        if not lowers:
            return [Mount("bind", source=upper, readonly=view)]
        if view and len(lowers) == 1:
            if lowers[0].devices:
                return [Mount("erofs", source=lowers[0].path, devices=(lowers[0].devices,), readonly=True)]
            return [Mount("bind", source=lowers[0].path, readonly=True)]
        paths, devices = tuple(lower.path for lower in lowers), tuple(lower.devices for lower in lowers)
        if view:
            return [Mount("overlay", lowers=paths, devices=devices, options=self._options, readonly=True)]
        return [Mount("overlay", lowers=paths, devices=devices, upper=upper, work=work, options=self._options)]

    # -- the protocol ------------------------------------------------------------------------------------------

    def usage(self, key: str) -> Usage:
        """Count a snapshot's own files, and of its layers what the store does not hold too. Raises NotFound."""
        own = super().usage(key)
        size_bytes = own.size_bytes
        for place in _layers(self.catalog.directory(self.catalog.get(key))):
            found = [entry.stat() for entry in os.scandir(place)]
            size_bytes += sum(one.st_blocks * 512 for one in found if one.st_nlink == 1)
        return Usage(size_bytes, own.inodes)

    def apply(self, key: str, layer: Layer) -> None:
        """Index a layer over its tar below an active snapshot that nobody wrote to; else unpack it.

        A layer that EROFS can't show over its tar (sparse files whose data isn't at multiples of 512 bytes, attributes
        of more than 64 KiB) is unpacked as well. The tar is hard-linked, so it must not change; it is copied from
        another file system.
        """
        record = self._active(key)
        directory = self.catalog.directory(record)
        if not any(os.scandir(directory / "diff")):
            with translated(f"apply layer {layer.diff_id} to snapshot {key!r}"):
                if self._index(record, directory, layer):
                    return
        super().apply(key, layer)

    def adopt(self, name: str, key: str, layer: Layer) -> None:
        """Commit the layer's index instead of the files that it was made from."""
        parent = self._active(key).parent
        fresh = f"{key}.adopt.{os.urandom(8).hex()}"
        self.prepare(fresh, parent, lasting=False)
        try:
            self.apply(fresh, layer)
            self.commit(name, fresh)
        except BaseException:
            self.remove(fresh)
            raise
        self.remove(key)

    def changes(self, key: str) -> Changes:
        """Return a snapshot's changes, by walking its upper where no layer was applied to it."""
        record = self._changeable(key)
        if _layers(self.catalog.directory(record)):
            return DefaultSnapshotter.changes(self, key)
        return super().changes(key)

    # -- inside ------------------------------------------------------------------------------------------------

    @contextmanager
    def _below(self, record: Record) -> Iterator[LowerStack]:
        own = [Lower(str(place / IMAGE), (str(place / TAR),)) for place in
               reversed(_layers(self.catalog.directory(record)))]  # fmt: skip
        with ExitStack() as stack:
            paths: list[Path | str] = []
            for lower in [*own, *self._stack(self._chain(record))]:
                if lower.devices:
                    descriptor = open_image(lower.path, lower.devices)
                    stack.callback(os.close, descriptor)
                    paths.append(f"/proc/self/fd/{descriptor}/.")  # the name itself is a symlink
                else:
                    paths.append(lower.path)
            yield LowerStack(paths)

    def _stack(self, links: list[str]) -> list[Lower]:
        """Resolve short names, topmost first, as far as the first image that stands for all that follow."""
        lowers: list[Lower] = []
        places = [self._place(link) for link in links]
        for number, place in enumerate(places):
            if place.endswith("/diff"):
                lowers.append(Lower(place))
                continue
            rest = len(places) - number
            merged = f"{place}/merged-{rest}.erofs"
            if rest > 1 and os.path.exists(merged):
                return [*lowers, Lower(merged, tuple(f"{below}/{TAR}" for below in reversed(places[number:])))]
            lowers.append(Lower(f"{place}/{IMAGE}", (f"{place}/{TAR}",)))
        return lowers

    def _place(self, link: str) -> str:
        """Resolve a short name; without a stat of every part, as chains have hundreds of them."""
        return f"{self.root}/{os.readlink(f'{self.root}/{link}')[3:]}"

    def _chain(self, record: Record) -> list[str]:
        """List the short names of what lies below a snapshot, topmost first."""
        return [] if record.parent_id is None else read_chain(self.catalog.directory(record), record)

    def _merge(self, links: list[str]) -> None:
        """Make one image of the lowest layers where there are many lowers; directories above them stay their own."""
        if len(self._stack(links)) <= MOST_LOWERS:
            return
        from pylayers._native import erofs, tardiff

        places = [Path(self._place(link)) for link in links]
        first = max((at + 1 for at, place in enumerate(places) if place.name == "diff"), default=0)
        run = places[first:][::-1]
        if not 1 < len(run) <= erofs.MOST_DEVICES:
            return  # directories only: as many as overlayfs takes
        tables = [open_index(place / INDEX).table for place in run]
        records, heap = tardiff.merge([(table.records, table.heap) for table in tables])
        try:
            with _fresh(run[-1] / f"merged-{len(run)}.erofs") as descriptor:
                erofs.write(descriptor, records, heap, [os.stat(place / TAR).st_size for place in run])
        except erofs.NotMappable as error:
            raise DriverError(f"cannot merge {len(run)} layers into one image: {error}") from error

    def _index(self, record: Record, directory: Path, layer: Layer) -> bool:
        """Lay an index beside a snapshot's files; False for a layer that has to be unpacked."""
        import tempfile

        from pylayers._native import erofs
        from pylayers.snapshot.layerimage import give_metadata, settle_table

        number = len(_layers(directory))
        hidden = Path(tempfile.mkdtemp(prefix="new-", dir=directory))
        try:
            diff = directory / "diff"
            table = settle_table(layer.table, diff, lambda: self._below(record))
            with _fresh(hidden / IMAGE) as descriptor:
                erofs.write(descriptor, table.records, table.heap, [layer.size_bytes])
            _link_tar(layer, hidden / TAR)
            _link_index(layer, hidden / INDEX)
            root = table.entry(0)
            if not root.flags & FLAG_IMPLICIT:
                give_metadata(diff, root, table.xattrs(root))
            (hidden / "settled").write_text(str(os.stat(diff).st_ctime_ns))
            (hidden / "link").write_text(self._link(f"{record.id}/layer/{number}"))
            (directory / "layer").mkdir(mode=0o700, exist_ok=True)
            os.rename(hidden, directory / "layer" / str(number))
            return True
        except erofs.NotMappable:
            return False
        finally:
            if hidden.exists():
                self._unlink(hidden / "link")
                remove_tree(hidden)


def _layers(directory: Path) -> list[Path]:
    """List the places of the layers that were applied to a snapshot, lowest first."""
    try:
        numbers = sorted(map(int, os.listdir(directory / "layer")))
    except FileNotFoundError:
        return []
    return [directory / "layer" / str(number) for number in numbers]


def _is_settled(directory: Path) -> bool:
    """Tell whether nobody changed the top of a snapshot since its last layer was applied."""
    settled = (_layers(directory)[-1] / "settled").read_text()
    return os.stat(directory / "diff").st_ctime_ns == int(settled)


@contextmanager
def _fresh(path: Path) -> Iterator[int]:
    """Give a file that appears under its name, and synced, only when the block ends well."""
    hidden = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
        os.fsync(descriptor)  # a torn image would show wrong files, and nothing would tell
        os.rename(hidden, path)
    except BaseException:
        hidden.unlink()
        raise
    finally:
        os.close(descriptor)


def _link_tar(layer: Layer, target: Path) -> None:
    """Give a layer's tar another name; on another file system, a copy."""
    try:
        os.link(layer.tar_path, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
            raise
        from pylayers._native import copyup

        source = layer.open_tar()
        try:
            copy = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                copyup.copy_file(source, copy, layer.size_bytes)
                os.fsync(copy)
            finally:
                os.close(copy)
        finally:
            os.close(source)


def _link_index(layer: Layer, target: Path) -> None:
    """Keep a layer's table beside its image: another name for the store's file, where that is one."""
    beside = layer.tar_path.with_name(INDEX)
    try:
        os.link(beside, target)
        return
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOENT):
            raise
    with open(target, "xb") as file:
        write_index(
            file.fileno(),
            layer.table.records,
            layer.table.heap,
            b"",
            size_bytes=layer.size_bytes,
            diff_hex=digest_hex(layer.diff_id),
        )


def probe(directory: Path) -> Probe:
    """Mount an overlay over a directory and an image over a file inside a directory; nothing is left behind."""
    import tempfile

    scratch = Path(tempfile.mkdtemp(prefix=".probe-", dir=directory))
    try:
        return _probe_in(scratch)
    except PylayersError as error:
        return Probe(False, _explain(str(error)))
    except OSError as error:
        return Probe(False, _explain(f"{error.strerror or error} on an EROFS image inside {directory}"))
    finally:
        remove_tree(scratch)


def _probe_in(scratch: Path) -> Probe:
    from pylayers._native import erofs

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
    with _fresh(scratch / "image") as descriptor:
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
