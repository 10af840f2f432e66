"""erofs: layers are mounted from their own tars through EROFS index images; nothing is unpacked.

The layout is overlay2's. A layer that was applied lies in `<id>/layer/<n>/`, a spliced one in `<n>-<P>/` (the highest n
uppermost, all of them below `diff`): what layerplace.py names; `link`, its short name; `settled`, the ctime of `diff`
at that moment, by which an untouched `diff` is known. `merged-<n>.erofs` is one image over the tars of this layer and
of all n - 1 below it, so that a mount of many layers needs few lowers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from pylayers.errors import DriverError
from pylayers.snapshot.catalog import Record
from pylayers.snapshot.default import DefaultSnapshotter, translated
from pylayers.snapshot.layerplace import (
    IMAGE,
    INDEX,
    TAR,
    Head,
    Lower,
    base_end_of,
    copy_tar,
    devices_of,
    fresh_file,
    link_index,
    link_tars,
    list_places,
    lower_of,
    name_place,
)
from pylayers.snapshot.lower import LowerStack
from pylayers.snapshot.snapshotter import Changes, Mount, Probe, SnapshotKind, Usage
from pylayers.snapshot.stack import StackSnapshotter, read_chain
from pylayers.store.file import read_text, remove_tree, sync_path, write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from _typeshed import StrPath

    from pylayers.snapshot.lowertable import TableStack
    from pylayers.store.layer import Layer

# Above so many lowers they are merged: each costs a mount some 0.2 ms and every look-up a step; overlayfs takes 500.
MOST_LOWERS = 32


class Driver(StackSnapshotter):
    """Keep snapshots as overlay layers, those of images as EROFS indexes over their tars."""

    name = "erofs"

    def __init__(self, root: StrPath) -> None:
        """Open the driver's directory, making it when needed, and drop what a crash left half-made."""
        super().__init__(root)
        self._places: dict[str, str] = {}  # by short name: they are random, so none means another place later

    # -- hooks -------------------------------------------------------------------------------------------------

    def _own(self, directory: str) -> list[str]:
        layers = [f"l/{read_text(f'{place}/link')}" for place in reversed(list_places(directory))]
        if layers and not any(os.scandir(f"{directory}/diff")) and _is_settled(directory):
            return layers
        return [*super()._own(directory), *layers]

    def _make(self, directory: str, record: Record, parent: Record | None) -> None:
        super()._make(directory, record, parent)
        if parent is not None:
            self._merge(read_chain(directory, record))

    def _flush(self, directory: str) -> None:
        """Write the notes beside the layers as well: tars and images are on the disk."""
        for place in list_places(directory):
            for path in (f"{place}/settled", f"{place}/link", place, os.path.dirname(place)):
                sync_path(path)
        super()._flush(directory)

    def _discard(self, directory: str) -> None:
        super()._discard(directory)
        hidden = [f"{directory}/{name}" for name in os.listdir(directory) if name.startswith("new-")]
        for place in (*list_places(directory), *hidden):
            self._unlink(f"{place}/link")

    def _mounts(self, record: Record) -> list[Mount]:
        directory = self.catalog.directory(record)
        lowers = [lower_of(place) for place in reversed(list_places(directory))]
        lowers += self._stack(self._chain(record))
        view = record.kind == SnapshotKind.VIEW
        upper, work = f"{directory}/diff", f"{directory}/work"
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
        for place in list_places(self.catalog.directory(self.catalog.get(key))):
            found = [entry.stat() for entry in os.scandir(place)]
            size_bytes += sum(one.st_blocks * 512 for one in found if one.st_nlink == 1)
        return Usage(size_bytes, own.inodes)

    def apply(self, key: str, layer: Layer) -> None:
        """Index a layer over its tar below an active snapshot that nobody wrote to; else unpack it.

        A layer that EROFS can't show over its tar (sparse files whose data isn't at multiples of 512 bytes, attributes
        of more than 64 KiB) is unpacked as well. The tar and its base are hard-linked, so what they hold must not
        change (a hole may be filled with the base's bytes); from another file system they are copied into one tar.
        """
        record = self._active(key)
        directory = self.catalog.directory(record)
        if not any(os.scandir(f"{directory}/diff")):
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
        if list_places(self.catalog.directory(record)):
            return DefaultSnapshotter.changes(self, key)
        return super().changes(key)

    # -- inside ------------------------------------------------------------------------------------------------

    @contextmanager
    def _below(self, record: Record) -> Iterator[LowerStack]:
        from pylayers.snapshot.imagemount import open_image

        own = [lower_of(place) for place in reversed(list_places(self.catalog.directory(record)))]
        with ExitStack() as stack:
            paths: list[str] = []
            for lower in [*own, *self._stack(self._chain(record))]:
                if lower.devices:
                    descriptor = open_image(lower.path, lower.devices)
                    stack.callback(os.close, descriptor)
                    paths.append(f"/proc/self/fd/{descriptor}/.")  # the name itself is a symlink
                else:
                    paths.append(lower.path)
            yield LowerStack(paths)

    def _tables_below(self, record: Record) -> TableStack:
        """Show what `_below` does without mounting every image."""
        from pylayers.snapshot.lowertable import TableStack

        links = self._chain(record)
        own = [Head(place, 1) for place in reversed(list_places(self.catalog.directory(record)))]
        return TableStack([*own, *self._heads(links)], lambda head: self._lower(head, links))

    def _stack(self, links: list[str]) -> list[Lower]:
        """Put together the lowers that short names stand for, topmost first."""
        return [self._lower(head, links) for head in self._heads(links)]

    def _heads(self, links: list[str]) -> list[Head]:
        """Resolve short names, topmost first, as far as the first image that stands for all that follow."""
        heads: list[Head] = []
        for number, link in enumerate(links):
            place = self._place(link)
            rest = len(links) - number
            if place.endswith("/diff"):
                heads.append(Head(place, 0))
            elif rest > 1 and os.path.exists(_merged_image(place, rest)):
                return [*heads, Head(place, rest)]
            else:
                heads.append(Head(place, 1))
        return heads

    def _lower(self, head: Head, links: list[str]) -> Lower:
        """Put a lower together; only one over many layers has to resolve their short names."""
        if head.count < 2:
            return lower_of(head.place) if head.count else Lower(head.place)
        places = [self._place(link) for link in reversed(links[-head.count :])]
        return Lower(_merged_image(head.place, head.count), tuple(one for place in places for one in devices_of(place)))

    def _place(self, link: str) -> str:
        """Resolve a short name; each once, and without a stat of every part, as chains have hundreds of them."""
        place = self._places.get(link)
        if place is None:
            place = self._places[link] = f"{self.root}/{os.readlink(f'{self.root}/{link}')[3:]}"
        return place

    def _chain(self, record: Record) -> list[str]:
        """List the short names of what lies below a snapshot, topmost first."""
        return [] if record.parent_id is None else read_chain(self.catalog.directory(record), record)

    def _merge(self, links: list[str]) -> None:
        """Make one image of the lowest layers where there are many lowers; directories above them stay their own."""
        if len(self._heads(links)) <= MOST_LOWERS:
            return
        from pylayers._native import erofs, tardiff
        from pylayers.store.index import open_index

        places = [self._place(link) for link in links]
        first = max((at + 1 for at, place in enumerate(places) if place.endswith("/diff")), default=0)
        run = places[first:][::-1]
        ends = [base_end_of(place) for place in run]
        if len(run) < 2 or len(run) + sum(map(bool, ends)) > erofs.MOST_DEVICES:
            return  # directories only, or as many as overlayfs takes
        tables = [open_index(f"{place}/{INDEX}").table for place in run]
        records, heap = tardiff.merge([(table.records, table.heap) for table in tables])
        try:
            with fresh_file(_merged_image(run[-1], len(run))) as descriptor:
                sizes = [os.stat(f"{place}/{TAR}").st_size for place in run]
                erofs.write(descriptor, records, heap, sizes, base_ends=ends)
        except erofs.NotMappable as error:
            raise DriverError(f"cannot merge {len(run)} layers into one image: {error}") from error
        sync_path(run[-1])  # without its name a snapshot may have more lowers than a mount takes

    def _index(self, record: Record, directory: str, layer: Layer) -> bool:
        """Lay an index beside a snapshot's files; False for a layer that has to be unpacked."""
        import tempfile
        from pathlib import Path

        from pylayers._native import erofs
        from pylayers.snapshot.layerimage import give_metadata, settle_table
        from pylayers.store.entry import FLAG_IMPLICIT

        number = len(list_places(directory))
        hidden = tempfile.mkdtemp(prefix="new-", dir=directory)
        try:
            diff = f"{directory}/diff"
            table = settle_table(layer.table, Path(diff), lambda: closing(self._tables_below(record)))
            linked = link_tars(layer, hidden)
            end = linked or 0
            with fresh_file(f"{hidden}/{IMAGE}") as descriptor:
                erofs.write(descriptor, table.records, table.heap, [layer.size_bytes], base_ends=[end])
            if linked is None:
                copy_tar(layer, f"{hidden}/{TAR}")
            link_index(layer, f"{hidden}/{INDEX}")
            root = table.entry(0)
            if not root.flags & FLAG_IMPLICIT:
                give_metadata(Path(diff), root, table.xattrs(root))
            write_text(f"{hidden}/settled", str(os.stat(diff).st_ctime_ns))
            place = name_place(number, end)
            write_text(f"{hidden}/link", self._link(f"{record.id}/layer/{place}"))
            os.makedirs(f"{directory}/layer", 0o700, exist_ok=True)
            os.rename(hidden, f"{directory}/layer/{place}")
            return True
        except erofs.NotMappable:
            return False
        finally:
            if os.path.exists(hidden):
                self._unlink(f"{hidden}/link")
                remove_tree(hidden)


def _merged_image(place: str, count: int) -> str:
    return f"{place}/merged-{count}.erofs"


def _is_settled(directory: str) -> bool:
    """Tell whether nobody changed the top of a snapshot since its last layer was applied."""
    settled = read_text(f"{list_places(directory)[-1]}/settled")
    return os.stat(f"{directory}/diff").st_ctime_ns == int(settled)


def probe(directory: Path) -> Probe:
    """Mount an overlay over a directory and an image over a file inside a directory; nothing is left behind."""
    from pylayers.snapshot.erofstrial import try_images

    return try_images(directory)
