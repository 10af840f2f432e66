"""A volume is filled from the layers' tars with just what the image, mounted, shows at that path."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylayers.engine import Engine
from pylayers.errors import NoSpace
from pylayers.snapshot.mount import mounted
from pylayers.volume.initialise import MARKER, initialise, initialise_from_layers
from tests.oracle.test_copyup import describe

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounts an image")]

ACL = struct.pack("<IHHIHHIHHIHHIHHI", 2, 1, 6, 0xFFFFFFFF, 2, 5, 77, 4, 4, 0xFFFFFFFF, 16, 5, 0xFFFFFFFF, 32, 0,
                  0xFFFFFFFF)  # fmt: skip
CAPABILITY = struct.pack("<IIIII", 0x02000000, 0x400, 0, 0, 0)


def make_tree(top: Path) -> None:
    """Make one of everything below top/data, and something outside that it is linked with."""
    data = top / "data"
    (data / "deep" / "er").mkdir(parents=True)
    (data / "gone").mkdir()
    (data / "gone" / "file").write_text("not for long")
    (data / "replaced").write_text("a file")
    (data / "small").write_bytes(b"s" * 5000)
    (data / "large").write_bytes(os.urandom(700_001))
    (data / "larger").write_bytes(os.urandom(9 << 20))
    (data / "empty").touch()
    (data / "deep" / "er" / "name").write_text("one inode")
    os.link(data / "deep" / "er" / "name", data / "another name")
    (top / "outside").write_bytes(b"linked from inside" * 40_000)
    os.link(top / "outside", data / "linked")
    os.link(top / "outside", data / "zlinked")
    (data / "symlink").symlink_to("../outside")
    with (data / "sparse").open("wb") as file:
        file.truncate(3 << 20)
        file.seek(1 << 20)
        file.write(os.urandom(300_000))
    os.mkfifo(data / "fifo")
    os.mknod(data / "device", stat.S_IFCHR | 0o620, os.makedev(1, 3))
    os.setxattr(data / "small", "user.note", b"kept")
    os.setxattr(data / "small", "system.posix_acl_access", ACL)
    os.setxattr(data / "deep", "system.posix_acl_default", ACL)
    os.chown(data / "large", 1234, 5678)
    os.setxattr(data / "large", "security.capability", CAPABILITY)
    os.chmod(data / "empty", 0o4755)
    (top / "way").symlink_to("data/deep/..")
    os.chown(data, 3, 4)
    os.chmod(data, 0o2750)


def change_tree(top: Path) -> None:
    """Change it, for a second layer."""
    data = top / "data"
    subprocess.run(["rm", "-r", str(data / "gone"), str(data / "replaced")], check=True)
    (data / "replaced").mkdir()
    (data / "replaced" / "now").write_text("a directory")
    (data / "upper").write_bytes(os.urandom(400_000))
    os.link(data / "upper", data / "deep" / "upper too")
    with (data / "larger").open("r+b") as file:
        file.write(b"changed")
    os.chmod(data / "deep" / "er", 0o1711)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    tree = tmp_path / "tree"
    tree.mkdir()
    make_tree(tree)
    tar = tmp_path / "base.tar"
    subprocess.run(["tar", "--sparse", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-C", str(tree),
                    "-cf", str(tar), "."], check=True)  # fmt: skip
    with Engine.open(tmp_path / "root") as engine:
        engine.images.import_(tar, "base")
        container = engine.containers.create("base", ["true"])
        with mounted(engine.driver().mounts(container.id)) as top:
            change_tree(top)
        assert engine.images.commit(container.id, "app") == engine.images.get("app")
        engine.containers.remove(container.id)
        yield engine


def fill_both(engine: Engine, tmp_path: Path, target: str) -> tuple[Path, Path, bool, bool]:
    places = tmp_path / "mounted" / "_data", tmp_path / "extracted" / "_data"
    for place in places:
        place.mkdir(parents=True)
    container = engine.containers.create("app", ["true"])
    with mounted(engine.driver().mounts(container.id)) as top:
        root = os.open(top, os.O_PATH | os.O_DIRECTORY)
        one = initialise(places[0], root, target)
        os.close(root)
    engine.containers.remove(container.id)
    layers = [engine.store.layers.open(diff_id) for diff_id in engine.images.get("app").config.diff_ids]
    assert len(layers) == 2
    return (*places, one, initialise_from_layers(places[1], layers, target))


@pytest.mark.parametrize("target", ["/data", "data/", "/way", "/", "/data/deep", "/data/replaced"])
def test_it_is_what_the_mounted_image_shows(engine: Engine, tmp_path: Path, target: str) -> None:
    copied, extracted, one, other = fill_both(engine, tmp_path, target)
    assert one and other  # noqa: PT018
    assert describe(extracted) == describe(copied)
    for name in ("data/sparse", "sparse"):
        if (extracted / name).exists():
            assert (extracted / name).stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("target", ["/nowhere", "/data/gone", "/data/small", "/data/small/below", "/data/symlink"])
def test_where_there_is_no_directory_nothing_is_filled(engine: Engine, tmp_path: Path, target: str) -> None:
    copied, extracted, one, other = fill_both(engine, tmp_path, target)
    assert not one and not other  # noqa: PT018
    assert list(copied.iterdir()) == list(extracted.iterdir()) == []


def test_a_full_disk_leaves_an_empty_volume(engine: Engine, tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "none", str(place)], check=True)
    try:
        data = place / "volume" / "_data"
        data.mkdir(parents=True)
        layers = [engine.store.layers.open(diff_id) for diff_id in engine.images.get("app").config.diff_ids]
        with pytest.raises(NoSpace):
            initialise_from_layers(data, layers, "/data")
        assert list(data.iterdir()) == []
        assert not (data.parent / MARKER).exists()
    finally:
        subprocess.run(["umount", str(place)], check=True)
