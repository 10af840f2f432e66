"""Remove a container's files, and what a crash left mounted or running."""

from __future__ import annotations

import contextlib
import os

from pylayers.container.feed import wake_reader
from pylayers.container.launch import delete_from_runtime
from pylayers.container.record import CONFIG, RUNNING, ContainerSpec, load_spec, load_state, locked
from pylayers.errors import Conflict, translate_os_error
from pylayers.snapshot import mount as snapshot_mount
from pylayers.store.file import remove_file, remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath


def remove(directory: StrPath, *, force: bool = False) -> ContainerSpec:
    """Remove a container and return its spec: the engine drops its snapshot, and with -v its anonymous volumes.

    Raises NotFound, Conflict for a running one unless force (which kills it).
    """
    spec = load_spec(directory)
    if load_state(directory).status == RUNNING:
        if not force:
            raise Conflict(
                f"cannot remove container {spec.name or spec.id[:12]}: container is running",
                hint="stop the container before removing or force remove (rm --force)",
            )
        from pylayers.container.stop import kill

        with contextlib.suppress(Conflict):
            kill(directory, "SIGKILL")
    if not os.path.exists(directory):  # --rm has removed it
        return spec
    with locked(directory):
        clean_leftovers(directory, spec)
        delete_directory(directory)
    return spec


def clean_leftovers(directory: StrPath, spec: ContainerSpec) -> None:
    """Unmount and forget what a monitor that died has left; the container itself isn't running."""
    wake_reader(f"{directory}/bundle")
    detach_mounts(directory)
    if os.path.exists(f"{directory}/runtime"):
        delete_from_runtime(directory, spec)


def detach_mounts(directory: StrPath) -> None:
    """Unmount what lies in a container's directory, whoever uses it. Raises Conflict, OSError."""
    for point in snapshot_mount.mount_points_below(directory):
        snapshot_mount.unmount(point, detach=True)


def delete_unmade(directory: StrPath) -> None:
    """Delete the directory of what isn't a container yet, with what a monitor that was started ahead has left."""
    detach_mounts(directory)
    delete_directory(directory)


def delete_directory(directory: StrPath) -> None:
    """Delete a container's directory; config.json goes first, so that a crash leaves no half container.

    Refuses (Conflict) while anything is mounted in it: deleting would empty the snapshot.
    """
    if snapshot_mount.mount_points_below(directory):
        raise Conflict(f"{directory} has something mounted in it")
    try:
        remove_file(f"{directory}/{CONFIG}", durable=False)
        wake_reader(f"{directory}/bundle")
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(f"{directory}/bundle/rootfs")
        remove_tree(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise translate_os_error(error, f"remove container {os.path.basename(directory)[:12]}") from error
