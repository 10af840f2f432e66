"""What `RUN --mount=type=bind` and a cache's `from` show: trees of a context, stage or image, mounted for one RUN."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pylayers._native import sysmount
from pylayers.build.base import load_base, open_local_context
from pylayers.build.cache.key import hash_fields
from pylayers.build.cache.step import CachedStep
from pylayers.build.copy.destination import Destination, Ownership
from pylayers.build.run.mount import RunMount
from pylayers.build.session import BuildSession
from pylayers.build.source.local import LocalSource, LocalTree, clean_source
from pylayers.build.state import StageState
from pylayers.errors import Conflict, NotFound, SourceSpan
from pylayers.image.unpack import unpack_layers
from pylayers.record import record
from pylayers.snapshot import mount as snapshot_mount
from pylayers.store.entry import ENTRY_SIZE_BYTES
from pylayers.volume.rootpath import open_beneath

if TYPE_CHECKING:
    from pylayers.snapshot.snapshotter import Snapshotter

MTIME_WORD = 6  # of 8 bytes
FILE_NAME = "file"  # of a single file in the layer made of it


@record(frozen=False)
class MountSource:
    """Hold what a mount shows: the layers of a tree, `path` in it, and the digest of what lies there."""

    digest: bytes
    path: str = ""
    diff_ids: tuple[str, ...] = ()
    tree: LocalTree | None = None  # of a local context: its layer is made when a RUN needs it


def open_source(
    session: BuildSession, state: StageState, mount: RunMount, span: SourceSpan, stage_index: int
) -> MountSource:
    """Open what a mount's `from` and `source` name. Raises NotFound, InvalidInput."""
    name = mount.from_name
    context = open_local_context(session, name) if name else session.context
    if context is not None:
        return open_local_source(context, mount.source, span)
    from pylayers.build.source.table import image_tree
    from pylayers.diff.merge import subtree_end
    from pylayers.diff.resolve import find_path

    origin = find_origin(session, state, name, span, stage_index)
    table = session.trees.merged(origin.diff_ids)
    found = find_path(table, os.fsencode(mount.source))
    if found.row is None:
        raise NotFound(f"{mount.source!r} not found in {name}", span=span)
    end = subtree_end(table, found.row)
    tree = image_tree(table, session.trees.layers(origin.diff_ids), found.row, end, "")
    return MountSource(tree.digest(Ownership(-1, -1)), os.fsdecode(found.path), origin.diff_ids)


def open_local_source(context: LocalSource, written: str, span: SourceSpan) -> MountSource:
    """Open a path of a local context; its files belong to root, as those that are copied."""
    path = clean_source(written)
    if not context.holds(path):
        error = context.missing(written, path)
        raise NotFound(error.message, hint=error.hint, span=span)
    tree = context.open(path)
    place = "" if tree.is_directory else FILE_NAME
    return MountSource(tree.digest(Ownership(0, 0)), place, tree=tree)


def find_origin(
    session: BuildSession, state: StageState, name: str, span: SourceSpan, stage_index: int
) -> StageState:
    """Return the latest stage of that name before this one, else the image; a number is no stage, as in BuildKit."""
    found = [index for index, stage in session.stage_names.items() if stage == name.lower() and index < stage_index]
    return session.stages[max(found)] if found else load_base(session, name, state.platform, span)


def make_layer(session: BuildSession, source: MountSource) -> str:
    """Return the diff_id of a layer that holds a local tree at its root; an equal tree's is used again."""
    from pylayers.build.copy.layout import Layout, place_tree
    from pylayers.diff.write import write_layer

    tree = source.tree
    if tree is None:
        raise NotFound("a mount's source has neither layers nor a tree")
    layout = Layout(session.trees.merged(()), Ownership(0, 0), session.epoch_s)
    if not tree.is_directory:
        tree.name = FILE_NAME
    place_tree(layout, tree, Destination("", as_directory=True))
    rows = layout.rows()
    # Times are no part of the RUN's key, but a RUN that is performed sees them.
    times = memoryview(rows.records).cast("q")[MTIME_WORD :: ENTRY_SIZE_BYTES // 8].tobytes()
    key = hash_fields("mount", (source.digest, source.path.encode(), times))
    known = session.reuse(key)
    if known is not None and known.diff_id is not None:
        return known.diff_id
    layer = write_layer(session.store, rows.records, rows.heap, rows.sources)
    rows.give_back_hashes()
    session.cache.record(key, "", "mount", "", CachedStep(layer.diff_id, layer.size_bytes))
    return layer.diff_id


def mount_source(
    session: BuildSession, driver: Snapshotter, source: MountSource, stack: ExitStack, *, writable: bool
) -> Path:
    """Mount a source's tree until the stack is closed, and return where the path lies; what is written is dropped."""
    diff_ids = source.diff_ids if source.tree is None else (make_layer(session, source),)
    return mount_layers(session, driver, diff_ids, stack, writable=writable) / source.path


def mount_layers(
    session: BuildSession, driver: Snapshotter, diff_ids: Sequence[str], stack: ExitStack, *, writable: bool
) -> Path:
    """Mount layers as one tree until the stack is closed; its snapshot goes with it."""
    for diff_id in diff_ids:
        session.hold("layer", diff_id)
    session.trees.record(tuple(diff_ids))
    parent = unpack_layers(driver, diff_ids, session.trees.layer)
    key = f"build-{uuid.uuid4().hex}"
    session.hold("snapshot", key)
    mounts = driver.prepare(key, parent, lasting=False) if writable else driver.view(key, parent)
    stack.callback(driver.remove, key)
    place = session.store.scratch("mount")
    place.mkdir(mode=0o700)
    stack.callback(place.rmdir)
    snapshot_mount.mount(mounts, place)
    stack.callback(unmount, place)
    return place


def mount_beneath(session: BuildSession, root: Path, path: str, stack: ExitStack) -> Path:
    """Mount a path of a folder that commands write into, at a place of our own, until the stack is closed.

    No symlink in it leads out of the folder, and none that comes in later does: what is mounted is what was opened.
    """
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = open_beneath(root_fd, path, os.O_PATH)
    except OSError as error:
        raise NotFound(f"{path!r} not found in the cache", hint="an earlier RUN has to make it") from error
    finally:
        os.close(root_fd)
    try:
        place = session.store.scratch("mount")
        if stat.S_ISDIR(os.fstat(found).st_mode):
            place.mkdir(mode=0o700)
            stack.callback(place.rmdir)
        else:
            place.touch(mode=0o600)
            stack.callback(place.unlink)
        sysmount.mount(b"/proc/self/fd/%d" % found, os.fsencode(place), b"", sysmount.MS_BIND)
        stack.callback(unmount, place)
    finally:
        os.close(found)
    return place


def unmount(place: Path) -> None:
    """Unmount a place, whoever still uses it."""
    try:
        snapshot_mount.unmount(place)
    except Conflict:
        snapshot_mount.unmount(place, detach=True)
