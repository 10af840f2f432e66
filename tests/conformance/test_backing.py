"""Drivers are refused by name on file systems that they cannot work on; the real ones, where this kernel has them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pylayers.errors import DriverError
from pylayers.snapshot import backing, select
from pylayers.snapshot.mount import mount, unmount
from pylayers.snapshot.snapshotter import Mount

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for mounts")
OVERLAY_DRIVERS = ("erofs", "overlay2", "overlay")


@pytest.fixture(autouse=True)
def no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(select.DRIVER_VARIABLE, raising=False)


@contextmanager
def made(directory: Path, kind: str, command: list[str], options: str = "loop") -> Iterator[Path]:
    """Mount a new file system made by a command line, or skip where this kernel can't."""
    image, point = directory / "image", directory / "point"
    point.mkdir()
    with open(image, "wb") as file:
        file.truncate(320 << 20)
    subprocess.run([*command, str(image)], check=True, capture_output=True)
    done = subprocess.run(["mount", "-t", kind, "-o", options, image, point], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this kernel does not mount it: {done.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)
        image.unlink()


def reasons(root: Path) -> dict[str, str]:
    return {one.name: one.probe.reason for one in select.list_drivers(root) if not one.probe.usable}


@needs_root
def test_overlay_on_overlay(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    lower, upper, work = (str(tmp_path / name) for name in ("lower", "upper", "work"))
    one = Mount("overlay", lowers=(lower,), upper=upper, work=work)
    try:
        mount([one], tmp_path / "merged")
    except DriverError as error:
        pytest.skip(f"no overlayfs over the tests' directory: {error}")
    root = tmp_path / "merged" / "root"
    try:
        assert backing.find_file_system(root.parent) == "overlay"
        found = reasons(root)
        for name in OVERLAY_DRIVERS:
            if name in select.MODULES:
                assert f"on overlay, which cannot hold {name}'s writable layers" in found[name]
        assert select.choose_driver(root) not in OVERLAY_DRIVERS
        with pytest.raises(DriverError, match="overlay2 was asked for but does not work: the data root is on overlay,"):
            select.choose_driver(root, "overlay2")
    finally:
        unmount(tmp_path / "merged")


@needs_root
@pytest.mark.parametrize(
    ("kind", "command", "remedy"),
    [
        ("xfs", ["mkfs.xfs", "-q", "-f", "-m", "crc=0", "-n", "ftype=0"], "mkfs.xfs -n ftype=1"),
        ("ext4", ["mkfs.ext4", "-q", "-F", "-O", "^filetype"], "mkfs.ext4 -O filetype"),
    ],
)
def test_directories_without_types(tmp_path: Path, kind: str, command: list[str], remedy: str) -> None:
    """xfs without ftype needs its old format (crc=0), which many kernels no longer mount; ext4 shows the same."""
    with made(tmp_path, kind, command) as root:
        assert not backing.shows_types(root)
        found = reasons(root)
        assert remedy in found["overlay2"]
        assert f"the {kind} of the data root" in found["overlay2"]
        assert "vfs" not in found
        assert select.choose_driver(root) not in (*OVERLAY_DRIVERS, "fuse-overlayfs")
        assert os.listdir(root / "tmp") == []


@needs_root
@pytest.mark.parametrize(
    ("kind", "command"),
    [("xfs", ["mkfs.xfs", "-q", "-f"]), ("ext4", ["mkfs.ext4", "-q", "-F"]), ("btrfs", ["mkfs.btrfs", "-q"])],
)
def test_file_systems_that_serve(tmp_path: Path, kind: str, command: list[str]) -> None:
    with made(tmp_path, kind, command) as root:
        assert backing.find_file_system(root) == kind
        assert backing.shows_types(root)
        assert backing.refuse_backing("overlay2", root) == ""


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs"])
def test_network_file_systems_are_named(kind: str) -> None:
    """What mount tables call them; no server runs here, so the words alone are tested."""
    for driver in backing.UNION_DRIVERS:
        rootless = backing.refuse_kind(driver, kind, rootless=True)
        assert f"network file system {kind}" in rootless
        assert driver in rootless
    assert f"network file system {kind}" in backing.refuse_kind("overlay2", kind, rootless=False)
    assert backing.refuse_kind("fuse-overlayfs", kind, rootless=False) == ""
    assert backing.refuse_kind("vfs", kind, rootless=True) == ""


def test_a_mount_inside_another_counts(tmp_path: Path) -> None:
    assert backing.find_file_system(Path("/proc/self")) == "proc"
    assert backing.find_file_system(Path("/")) != "unknown"
    assert backing.shows_types(tmp_path)


@needs_root
def test_rootless_is_seen_in_a_user_namespace() -> None:
    assert not backing.is_rootless()
    script = "from pylayers.snapshot.backing import is_rootless; raise SystemExit(0 if is_rootless() else 1)"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True,
    )  # fmt: skip
    if "unshare" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
