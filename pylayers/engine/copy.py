"""Copy files into and out of containers, running or not (docker cp)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pylayers.container import copy
from pylayers.container.record import RUNNING, ContainerSpec, load_spec, load_state, locked
from pylayers.errors import InvalidInput, NotFound, PermissionDenied, Unsupported, translate_os_error
from pylayers.snapshot.mount import mount, mounted, unmount
from pylayers.snapshot.snapshotter import Mount, Snapshotter
from pylayers.volume.rootpath import locate, open_beneath

if TYPE_CHECKING:
    from pylayers.engine import Engine

CONTAINER_ROOT = (0, 0)
PIECE_BYTES = 1 << 20
XATTR_RECORD = "SCHILY.xattr."
_OPEN_ROOT = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def copy_from(
    engine: Engine,
    directory: str,
    driver: Snapshotter,
    path: str,
    target: Path | str | IO[bytes],
    archive: bool,
    follow: bool,
) -> None:
    """Copy a container's file or directory to the host, or as a tar to a stream."""
    try:
        with open_root(engine, directory, driver) as root_fd:
            try:
                source = copy.find_source(root_fd, path, follow=follow)
            except FileNotFoundError as error:
                name = load_spec(directory).name
                raise NotFound(
                    f"could not find the file {path} in container {name}", hint=f"look with: pylayers diff {name}"
                ) from error
            try:
                if isinstance(target, (Path, str)):
                    owner = None if archive else (os.geteuid(), os.getegid())
                    place_on_host(source, os.fspath(target), owner)
                else:
                    write_tar(engine, source, target)
            finally:
                os.close(source.descriptor)
    except OSError as error:
        raise translate_os_error(error, f"copy {path} from the container") from error


def copy_to(
    engine: Engine,
    directory: str,
    driver: Snapshotter,
    source: Path | str | IO[bytes],
    path: str,
    archive: bool,
    follow: bool,
) -> None:
    """Copy a file or directory of the host into a container, or unpack a tar from a stream there."""
    try:
        with open_root(engine, directory, driver) as root_fd:
            if isinstance(source, (Path, str)):
                place_in_container(root_fd, os.fspath(source), path, follow, None if archive else CONTAINER_ROOT)
            else:
                unpack_stream(engine, root_fd, source, path)
    except OSError as error:
        raise translate_os_error(error, f"copy to {path} in the container") from error


def place_on_host(source: copy.Source, path: str, owner: copy.Owner | None) -> None:
    """Copy a container's source to a path of the host."""
    host_fd = os.open("/", _OPEN_ROOT)
    try:
        target = copy.find_target(host_fd, absolute(path), source)
    finally:
        os.close(host_fd)
    try:
        copy.copy_into(source, target, owner)
    finally:
        os.close(target.descriptor)


def place_in_container(root_fd: int, source: str, path: str, follow: bool, owner: copy.Owner | None) -> None:
    """Copy a path of the host into an open root."""
    host_fd = os.open("/", _OPEN_ROOT)
    try:
        found = copy.find_source(host_fd, absolute(source), follow=follow)
    finally:
        os.close(host_fd)
    try:
        target = copy.find_target(root_fd, path, found)
        try:
            refuse_readonly(target.descriptor, path)
            copy.copy_into(found, target, owner)
        finally:
            os.close(target.descriptor)
    finally:
        os.close(found.descriptor)


def absolute(path: str) -> str:
    """Return a path of the host from its root; what its end says stays."""
    return path if path.startswith("/") else f"{os.getcwd()}/{path}"


def refuse_readonly(descriptor: int, path: str) -> None:
    """Raise PermissionDenied for a place that is mounted read-only."""
    if os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
        raise PermissionDenied(f"{path} is read-only in the container", hint="copy to a place that can be written")


@contextmanager
def open_root(engine: Engine, directory: str, driver: Snapshotter) -> Iterator[int]:
    """Open a container's root with its mounts in it: the running process's, else mounted here for as long as it takes.

    A stopped container can't be started or removed meanwhile. tmpfs mounts are there only while it runs.
    """
    spec, state = load_spec(directory), load_state(directory)
    if state.status != RUNNING:
        with locked(directory):
            state = load_state(directory)
            if state.status != RUNNING:
                with ExitStack() as stack:
                    yield stack.enter_context(_mounted_root(engine, spec, driver))
                return
    root_fd = os.open(f"/proc/{state.pid}/root", _OPEN_ROOT)
    try:
        if os.path.samestat(os.fstat(root_fd), os.stat("/")):  # a sandbox's outer process, or one that has just ended
            raise Unsupported(
                "the running container's files can't be reached through its process", hint="stop it first, or use exec"
            )
        yield root_fd
    finally:
        os.close(root_fd)


@contextmanager
def _mounted_root(engine: Engine, spec: ContainerSpec, driver: Snapshotter) -> Iterator[int]:
    with ExitStack() as stack:
        top = stack.enter_context(mounted(driver.mounts(spec.id), engine.store.scratch("copy").parent))
        if spec.isolation.readonly:
            mount([Mount("bind", str(top), readonly=True)], top)
            stack.callback(unmount, top)
        root_fd = os.open(top, _OPEN_ROOT)
        stack.callback(os.close, root_fd)
        for one in spec.mounts:  # parents first
            if one.type != "bind":
                continue
            found = locate(root_fd, one.target)
            if found.missing or not os.path.exists(one.source):
                continue  # the container's first start makes what is missing
            place = top / found.path
            mount([Mount("bind", one.source, readonly=one.readonly)], place)
            stack.callback(unmount, place)
        yield root_fd


def write_tar(engine: Engine, source: copy.Source, out: IO[bytes]) -> None:
    """Write a source as a tar, as docker cp does: its name first, "./" for a directory's content alone.

    It is copied beside first, by descriptors: a container that swaps directories for symlinks meanwhile leads nowhere.
    Extended attributes are PAX records (SCHILY.xattr), as star, GNU tar and docker have them.
    """
    import shutil
    import tarfile

    def keep_xattrs(member: tarfile.TarInfo) -> tarfile.TarInfo:
        found = {f"{XATTR_RECORD}{key}": value for key, value in copy.read_xattrs(top / member.name)}
        member.pax_headers = {**member.pax_headers, **found}
        return member

    scratch = engine.store.scratch("copy")
    scratch.mkdir(0o700)
    try:
        into = os.open(scratch, _OPEN_ROOT)
        try:
            name = source.name or "root"
            copy.copy_into(copy.Source(source.descriptor, name, False), copy.Target(into, name), None)
        finally:
            os.close(into)
        alone = source.contents or not source.name
        top = scratch / name if alone else scratch
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=PIECE_BYTES) as tar:
            tar.add(scratch / name, "." if alone else name, filter=keep_xattrs)
    finally:
        shutil.rmtree(scratch)


def unpack_stream(engine: Engine, root_fd: int, stream: IO[bytes], path: str) -> None:
    """Unpack a tar from a stream into an existing directory of an open root."""
    import shutil

    directory_fd = open_beneath(root_fd, path, os.O_PATH)
    try:
        if not stat.S_ISDIR(os.fstat(directory_fd).st_mode):
            raise InvalidInput(f"destination {path!r} must be a directory to unpack a tar in")
        refuse_readonly(directory_fd, path)
        readable = os.open(f"/proc/self/fd/{directory_fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(directory_fd)
    scratch = engine.store.scratch("copy")
    try:
        with scratch.open("xb+") as spool:
            shutil.copyfileobj(stream, spool, PIECE_BYTES)
            spool.flush()
            copy.extract(spool.fileno(), spool.tell(), readable)
    finally:
        os.close(readable)
        scratch.unlink(missing_ok=True)
