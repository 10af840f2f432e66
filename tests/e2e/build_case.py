"""What the build tests share: an engine on a fresh root, a base image made here, contexts written in one call."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

from pylayers.build.event import BuildResult
from pylayers.engine import Engine
from tests.e2e.busybox_rootfs import fill

Member = tuple[str, bytes | None, dict[str, object]]  # name, content (None: no file), TarInfo attributes
BASE: tuple[Member, ...] = (
    ("etc", None, {"type": tarfile.DIRTYPE, "mode": 0o755}),
    ("etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n", {}),
    ("etc/group", b"root:x:0:\napp:x:1001:\nstaff:x:50:\n", {}),
    ("opt", None, {"type": tarfile.DIRTYPE, "mode": 0o750, "uid": 7, "gid": 8, "mtime": 77}),
    ("usr/lib", None, {"type": tarfile.DIRTYPE, "mode": 0o755}),
    ("lib", None, {"type": tarfile.SYMTYPE, "linkname": "usr/lib"}),
)


def make_tar(members: tuple[Member, ...] = BASE) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content, attributes in members:
            member = tarfile.TarInfo(name)
            member.mtime = 1_000_000_000
            for attribute, value in attributes.items():
                setattr(member, attribute, value)
            if content is not None:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content or b""))
    return stream.getvalue()


def open_with_base(root: Path) -> Engine:
    """Open an engine whose store has the image `base`."""
    engine = Engine.open(root, driver="overlay2" if os.geteuid() == 0 else "vfs")
    engine.images.import_(io.BytesIO(make_tar()), "base")
    return engine


def open_with_busybox(root: Path, scratch: Path, driver: str = "overlay2", runtime: str = "runc") -> Engine:
    """Open an engine whose store has a runnable image `busybox`."""
    engine = Engine.open(root, driver=driver, runtime=runtime)
    engine.images.import_(io.BytesIO(tar_busybox(scratch)), "busybox", changes=['CMD ["sh"]'])
    return engine


def tar_busybox(scratch: Path) -> bytes:
    rootfs = fill(scratch / "rootfs")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(rootfs, ".")
    return stream.getvalue()


def write(directory: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files, all stamped well in the past, so that none is racy."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    settle(directory)
    return directory


def settle(directory: Path) -> None:
    for path in (directory, *directory.rglob("*")):
        os.utime(path, (1_600_000_000, 1_600_000_000), follow_symlinks=False)


def statuses(result: BuildResult) -> list[str]:
    return [f"{step.step.instruction.split()[0]} {step.status.value}" for step in result.steps]


def members(engine: Engine, result: BuildResult, layer: int = -1) -> dict[str, tarfile.TarInfo]:
    """Read one layer's tar with the standard library."""
    with tarfile.open(engine.store.layers.open(result.diff_ids[layer]).make_whole()) as tar:
        return {member.name: member for member in tar.getmembers()}


def content(engine: Engine, result: BuildResult, name: str, layer: int = -1) -> bytes:
    with tarfile.open(engine.store.layers.open(result.diff_ids[layer]).make_whole()) as tar:
        stream = tar.extractfile(name)
        assert stream is not None
        return stream.read()


def leftovers(root: Path) -> list[str]:
    """List what a failed step could have left: half-made files, snapshots of builds, mounts."""
    found = [str(path) for path in (root / "tmp").rglob("*") if not path.is_dir() and path.suffix != ".lock"]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(root) in line]
    found += [str(path) for path in root.rglob("build-*")]
    return found
