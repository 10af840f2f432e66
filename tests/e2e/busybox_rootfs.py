"""A tiny root file system for tests: Debian's static busybox, a few users, and nothing that a mount point needs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pylayers.container.runtime import Runtime, find_runtime, probe_runtimes
from pylayers.errors import RuntimeMissing
from pylayers.snapshot.snapshotter import Mount

APPLETS = (
    "sh cat ls id true false sleep echo env touch mkdir rm mv ps kill "
    "pwd stty tty test chown chmod hostname head printf trap mknod"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def busybox() -> Path:
    path = shutil.which("busybox")
    if path is None:
        pytest.skip("busybox is not installed (apt-get install busybox-static)")
    if b"\0/lib64/ld-linux" in Path(path).read_bytes():
        pytest.skip("busybox is not static (apt-get install busybox-static)")
    return Path(path)


def fill(root: Path) -> Path:
    (root / "bin").mkdir(parents=True)
    (root / "etc").mkdir()
    shutil.copy(busybox(), root / "bin" / "busybox")
    for applet in APPLETS.split():
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\napp:x:1001:\naudio:x:29:app\nextra:x:77:other,app\n")
    (root / "etc" / "not-executable").write_text("text\n")
    return root


class Rootfs:
    """An overlay over the tiny root file system."""

    def __init__(self, directory: Path) -> None:
        self.lower = fill(directory / "lower")
        self.upper = directory / "upper"
        self.work = directory / "work"
        self.upper.mkdir()
        self.work.mkdir()
        self.mounts = [Mount("overlay", lowers=(str(self.lower),), upper=str(self.upper), work=str(self.work))]

    def changed(self) -> list[str]:
        return sorted(str(path.relative_to(self.upper)) for path in self.upper.rglob("*"))


def runtime(name: str) -> Runtime:
    try:
        return find_runtime(name)
    except RuntimeMissing as error:
        pytest.skip(str(error))


def usable_runtimes() -> list[str]:
    return [probe.name for probe in probe_runtimes() if probe.runtime is not None]
