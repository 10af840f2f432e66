"""Snapshots that hold only their own changes, shown over their parents': what the overlay-like drivers share.

`<id>/diff` has the files, `<id>/link` a short name, `l/<short name>` a symlink to the diff, `<id>/lower` the chain of
short names below, topmost first (docker's layout); an active snapshot also has `work` (overlayfs's own) and `merged`
(an empty directory to mount at), a committed one the empty file `committed`. snapshot.json is the
truth about all of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pylayers.errors import DriverError
from pylayers.snapshot.catalog import PROJECT, PROJECTS, Record
from pylayers.snapshot.default import DefaultSnapshotter, translated
from pylayers.snapshot.lower import LowerStack, copy_metadata
from pylayers.snapshot.snapshotter import Changes, Mount, SnapshotKind
from pylayers.store.file import read_text, remove_file, remove_tree, sync_path, write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath

    from pylayers.store.entry import EntryTable
    from pylayers.store.layer import Layer

OVERLAY_PARAMETERS = "/sys/module/overlay/parameters"
# Each of these would put marks into the upper that a layer tar cannot carry.
DISABLED_FEATURES = ("redirect_dir", "metacopy", "index")


class StackSnapshotter(DefaultSnapshotter):
    """Keep snapshots as overlay layers in docker's layout; the base of drivers, not one itself."""

    writable = ("diff", "work")  # the directories that a mounted active snapshot writes to
    user_marks = False  # whiteouts and opaque directories are kept in names that users may set, not in trusted ones

    def __init__(self, root: StrPath) -> None:
        """Open the driver's directory, making it when needed, and drop what a crash left half-made."""
        super().__init__(root)
        with translated(f"open the snapshots in {self.root}"):
            if not os.path.isdir(f"{self.root}/l"):
                os.makedirs(f"{self.root}/l", 0o700, exist_ok=True)
            self._sweep_limits()
        self._options = overlay_options()

    # -- hooks -------------------------------------------------------------------------------------------------

    def _make(self, directory: str, record: Record, parent: Record | None) -> None:
        write_text(f"{directory}/link", self._link(f"{record.id}/diff"))
        diff = f"{directory}/diff"
        os.mkdir(diff)
        os.chmod(diff, 0o755)  # noqa: S103 - whatever the umask
        os.mkdir(f"{directory}/work", 0o700)
        os.mkdir(f"{directory}/merged", 0o700)
        if parent is not None:
            above = self.catalog.directory(parent)
            lower = self._own(above)
            with suppress(FileNotFoundError):  # it is at the bottom
                lower.append(read_text(f"{above}/lower"))
            write_text(f"{directory}/lower", ":".join(lower))
            # The merged root shows the upper's metadata, so the upper starts with the parent's.
            top = os.fsencode(f"{above}/diff")
            copy_metadata(top, os.stat(top), os.fsencode(diff))

    def _flush(self, directory: str) -> None:
        """Write the few files of an empty snapshot to the disk; the whole file system for one with content."""
        if any(os.scandir(f"{directory}/diff")):
            super()._flush(directory)
            return
        for name in ("link", "lower", "diff"):
            if os.path.exists(f"{directory}/{name}"):
                sync_path(f"{directory}/{name}")
        sync_path(directory)
        sync_path(f"{self.root}/l")

    def _discard(self, directory: str) -> None:
        self._unlink(f"{directory}/link")
        if os.path.exists(f"{directory}/{PROJECT}"):
            from pathlib import Path

            from pylayers.snapshot.projectquota import release_project

            release_project(Path(self.root), Path(directory))

    def _seal(self, directory: str) -> None:
        os.close(os.open(f"{directory}/committed", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        for unneeded in ("work", "merged"):
            if os.path.exists(f"{directory}/{unneeded}"):
                remove_tree(f"{directory}/{unneeded}")

    def _content(self, record: Record) -> str:
        return f"{self.catalog.directory(record)}/diff"

    def _mounts(self, record: Record) -> list[Mount]:
        directory = self.catalog.directory(record)
        lowers = self._lowers(record)
        if record.kind == SnapshotKind.VIEW:
            if len(lowers) > 1:
                return [Mount("overlay", lowers=tuple(lowers), options=self._options, readonly=True)]
            return [Mount("bind", source=os.path.realpath(lowers[0]) if lowers else f"{directory}/diff", readonly=True)]
        if not lowers:
            return [Mount("bind", source=f"{directory}/diff")]
        upper, work = f"{directory}/diff", f"{directory}/work"
        return [Mount("overlay", lowers=tuple(lowers), upper=upper, work=work, options=self._options)]

    # -- shorter ways than the derived ones --------------------------------------------------------------------

    def apply(self, key: str, layer: Layer) -> None:
        """Unpack a layer straight into the upper of an active snapshot; nothing is mounted."""
        from pylayers.diff.apply import WHITEOUT_APPLY, WHITEOUT_OVERLAY, WHITEOUT_USERXATTR, apply_layer

        marks = WHITEOUT_USERXATTR if self.user_marks else WHITEOUT_OVERLAY
        record = self._active(key)
        with translated(f"apply layer {layer.diff_id} to snapshot {key!r}"):
            diff = self._content(record)
            if record.parent_id is not None:
                with self._below(record) as below:
                    self._make_implicit(layer.table, below, diff)
            descriptor = os.open(diff, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                apply_layer(descriptor, layer, marks if record.parent_id is not None else WHITEOUT_APPLY)
            finally:
                os.close(descriptor)

    def changes(self, key: str) -> Changes:
        """Return the changes of an active or committed snapshot, by walking only its upper.

        Files and directories that were copied up without a change are left out: type, mode, owner, device, xattrs,
        mtime (ns), link target and content as the parent shows them.
        """
        from pylayers._native import walk
        from pylayers.diff.whiteout import convert_upper
        from pylayers.snapshot.upper import find_upper_changes

        record = self._changeable(key)
        with translated(f"find the changes of snapshot {key!r}"):
            descriptor = os.open(self._content(record), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                records, heap = walk.walk(descriptor, xattrs=True)
                convert_upper(records, heap)
                with self._below(record) as below:
                    return find_upper_changes(records, heap, descriptor, below)
            except BaseException:
                os.close(descriptor)
                raise

    def limit(self, key: str, size_bytes: int) -> None:
        """Limit an active snapshot by a project quota of the xfs below. Raises Unsupported on any other file system."""
        from pathlib import Path

        from pylayers.snapshot.projectquota import limit_directories

        record = self._active(key)
        directory = self.catalog.directory(record)
        names = {os.path.basename(self._content(record)), *self.writable}
        with translated(f"limit snapshot {key!r}"):
            found = [name for name in names if os.path.exists(f"{directory}/{name}")]
            limit_directories(Path(self.root), Path(directory), found, size_bytes)

    # -- inside ------------------------------------------------------------------------------------------------

    def _sweep_limits(self) -> None:
        """Clear the size limits of snapshots that are gone."""
        if os.path.exists(f"{self.root}/{PROJECTS}"):
            from pathlib import Path

            from pylayers.snapshot.projectquota import sweep_projects

            sweep_projects(Path(self.root))

    def _unlink(self, path: str) -> None:
        """Drop the short name that a file holds."""
        try:
            short = read_text(path)
        except FileNotFoundError:
            return
        if short:
            remove_file(f"{self.root}/l/{short}", durable=False)

    def _link(self, place: str) -> str:
        """Make a short name for a directory of a snapshot that is about to appear."""
        while True:
            short = os.urandom(6).hex()
            try:
                os.symlink(f"../{place}", f"{self.root}/l/{short}")
            except FileExistsError:
                continue
            return short

    def _own(self, directory: str) -> list[str]:
        """Name what a committed snapshot adds to its children's lowers, topmost first."""
        return [f"l/{read_text(f'{directory}/link')}"]

    @contextmanager
    def _below(self, record: Record) -> Iterator[LowerStack]:
        """Show the layers below a snapshot without an overlay."""
        yield LowerStack([os.path.realpath(lower) for lower in self._lowers(record)])

    def _lowers(self, record: Record) -> list[str]:
        """List the layers below, topmost first, by their short names."""
        if record.parent_id is None:
            return []
        return [f"{self.root}/{link}" for link in read_chain(self.catalog.directory(record), record)]

    def _make_implicit(self, table: EntryTable, below: LowerStack, diff: str) -> None:
        """Make the directories that the layer only passes through as the parent shows them.

        Unpacking leaves an existing directory as it is; without this it would make them 0755 root, and the upper's
        metadata would hide the parent's.
        """
        from pylayers.store.entry import FLAG_IMPLICIT

        for entry in table:
            path = table.path(entry)
            if not entry.flags & FLAG_IMPLICIT or not path:
                continue
            found = below.find(path)
            if found is None or not found.directories:
                continue
            target = os.path.join(os.fsencode(diff), path)
            try:
                os.mkdir(target)
            except FileExistsError:
                continue
            copy_metadata(found.path, found.stat, target)


def read_chain(directory: str, record: Record) -> list[str]:
    """Read the short names of the layers below a snapshot with a parent, topmost first."""
    try:
        return read_text(f"{directory}/lower").split(":")
    except FileNotFoundError as error:
        raise DriverError(f"snapshot {record.name!r} has lost its list of parents ({error.filename})") from error


def overlay_options() -> tuple[str, ...]:
    """Name the mount options that switch off what a layer cannot carry, as far as this kernel knows the features.

    Where the module isn't loaded yet, every kernel since 4.19 knows them all.
    """
    if os.path.isdir(OVERLAY_PARAMETERS):
        known = set(os.listdir(OVERLAY_PARAMETERS))
    else:
        release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
        known = set(DISABLED_FEATURES) if release >= (4, 19) else set()
    return tuple(f"{feature}=off" for feature in DISABLED_FEATURES if feature in known)
