"""erofs keeps the rules of every driver, and some of its own."""

from __future__ import annotations

import io
import itertools
import os
import random
import shutil
import stat
import struct
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from pylayers.errors import NoSpace, Unsupported
from pylayers.snapshot import erofs, imagemount, lowertable
from pylayers.snapshot.lower import read_xattrs
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.snapshotter import Mount, Snapshotter
from pylayers.store.entry import FLAG_SPARSE, TableBuilder
from pylayers.store.file import sync_path
from pylayers.store.layer import Layer
from pylayers.store.row import Entry
from tests.conformance.crash_suite import CrashSuite
from tests.conformance.foreign_suite import ForeignSuite
from tests.conformance.stage import Stage, scanned, write


def small_tar(path: Path, **members: bytes) -> Layer:
    """Write a tar of some files."""
    with tarfile.open(path, "w") as out:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return scanned(path)


def pile(stage: Stage, count: int, *, deleting: bool = True) -> str:
    """Stack layers: every one has a file of its own, writes `last`, and deletes the file of the one before it."""
    parent = None
    for number in range(count):
        members = {f"f{number}": b"%d" % number, "last": b"%d" % number}
        if number and deleting:
            members[f".wh.f{number - 1}"] = b""
        layer = small_tar(stage.scratch / f"{number}.tar", **members)
        key = stage.apply_to_sibling(layer, parent)
        stage.driver.commit(f"n{number}", key)
        parent = f"n{number}"
    return f"n{count - 1}"


class TestErofs(CrashSuite, ForeignSuite):
    def open_driver(self, root: Path) -> Snapshotter:
        return erofs.Driver(root)

    def test_nothing_is_unpacked(self, stage: Stage) -> None:
        layer = small_tar(stage.scratch / "a.tar", file=b"content" * 1000)
        key = stage.apply_to_sibling(layer, None)
        stage.driver.commit("image", key)
        root = stage.scratch.parent / "root"
        directory = root / os.readlink(root / "by-name" / "image")[3:]
        assert list((directory / "diff").iterdir()) == []
        place = directory / "layer" / "0"
        assert (place / "layer.tar").samefile(layer.tar_path)
        assert (root / "l" / (place / "link").read_text()).resolve() == place
        [view] = stage.driver.view("v", "image")
        assert (view.type, view.source) == ("erofs", str(place / "layer.erofs"))
        with mounted([view], stage.scratch) as top:
            assert (top / "file").read_bytes() == b"content" * 1000
        stage.driver.remove("v")
        stage.driver.remove("image")
        assert list((root / "l").iterdir()) == []
        assert Path(layer.tar_path).exists()

    def test_lowers_are_not_in_the_mount_table(self, stage: Stage) -> None:
        image = pile(stage, 3)
        stage.driver.prepare("a", image)
        before = Path("/proc/self/mountinfo").read_text().count(" erofs ")
        with stage.mounted("a") as top:
            assert (top / "last").read_bytes() == b"2"
            assert Path("/proc/self/mountinfo").read_text().count(" erofs ") == before

    def test_adopted_changes_are_indexed(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "file", b"base"))
        key = stage.active("base", lambda top: write(top, "big", b"x" * 300_000))
        stage.driver.adopt("run", key, stage.layer_of(key))
        assert stage.driver.usage("run").size_bytes < 100_000
        with stage.viewed("run") as top:
            assert (top / "big").read_bytes() == b"x" * 300_000
            assert (top / "file").read_bytes() == b"base"
        assert [one.name for one in stage.driver.walk() if "adopt" in one.name or one.name == key] == []

    @pytest.mark.parametrize("most", [2, 5])
    def test_many_lowers_are_merged(self, stage: Stage, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        monkeypatch.setattr(erofs, "MOST_LOWERS", most)
        image = pile(stage, 12)
        stage.driver.prepare("a", image)
        [one] = stage.driver.mounts("a")
        assert len(one.lowers) <= most
        assert sum(map(len, one.devices)) == 12
        with stage.mounted("a") as top:
            assert sorted(path.name for path in top.iterdir()) == ["f11", "last"]
            assert (top / "last").read_bytes() == b"11"
            (top / "f11").unlink()
        assert stage.listed("a", image) == [("D", b"f11")]

    def test_a_merged_image_keeps_its_name_through_a_crash(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(erofs, "MOST_LOWERS", 3)
        synced: set[Path] = set()

        def record(path: str) -> None:
            synced.update(Path(path).glob("merged-*"))  # those of a directory that is synced
            sync_path(path)

        monkeypatch.setattr(erofs, "sync_path", record)
        stage.driver.prepare("a", pile(stage, 6))
        made = set((stage.scratch.parent / "root").glob("*/layer/*/merged-*"))
        assert made
        assert made <= synced

    def test_directories_above_merged_layers(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(erofs, "MOST_LOWERS", 3)
        parent = pile(stage, 6)
        for number in range(4):
            parent = stage.make(f"made{number}", parent, lambda top: write(top, f"m{number}"))  # noqa: B023
        with stage.viewed(parent) as top:
            assert sorted(path.name for path in top.iterdir()) == ["f5", "last", "m0", "m1", "m2", "m3"]

    @pytest.mark.parametrize("seed", range(8))
    def test_tables_tell_what_mounted_images_show(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, seed: int
    ) -> None:
        """The search by tables finds what a search through the images of all layers below does."""
        monkeypatch.setattr(erofs, "MOST_LOWERS", 4)
        chance = random.Random(seed)
        driver = stage.driver
        assert isinstance(driver, erofs.Driver)
        names = (b"a", b"b", b"c")
        candidates = [b"/".join(parts) for depth in range(4) for parts in itertools.product(names, repeat=depth)]
        parent, found = None, 0
        for number in range(12):
            if number % 5 == 4:
                parent = stage.make(f"n{number}", parent, lambda top: scribble(top, chance))
            else:
                key = stage.fresh("key")
                driver.prepare(key, parent)
                for at in range(chance.choice([1, 1, 2])):
                    layer = foreign_tar(stage.scratch / f"{number}-{at}.tar", chance)
                    driver.apply(key, layer)
                driver.commit(f"n{number}", key)
                parent = f"n{number}"
            key = stage.apply_to_sibling(foreign_tar(stage.scratch / f"{number}-own.tar", chance), parent)
            record = driver.catalog.get(key)
            with driver._below(record) as mounts, closing(driver._tables_below(record)) as tables:
                for path in candidates:
                    shown, sight = mounts.find(path), tables.find(path)
                    assert (shown is None) == (sight is None), path
                    if shown is not None and sight is not None:
                        found += 1
                        assert bool(shown.directories) == bool(sight.directories), path
                        seen, xattrs = tables.read(path, sight)
                        assert metadata(seen) == metadata(shown.stat), path
                        assert xattrs == read_xattrs(shown.path), path
        assert found > 50

    def test_tables_are_enough_where_nothing_has_to_be_read(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A layer that names no directories mounts none of those below unless one has them."""
        opened: list[str] = []
        real = imagemount.open_image

        def open_image(path: str, devices: tuple[str, ...]) -> int:
            opened.append(path)
            return real(path, devices)

        monkeypatch.setattr(lowertable, "open_image", open_image)
        parent = None
        for number in range(6):
            layer = small_tar(stage.scratch / f"{number}.tar", **{f"d{number % 4}/{number}": b"x"})
            key = stage.apply_to_sibling(layer, parent)
            parent = f"n{number}"
            stage.driver.commit(parent, key)
            assert len(opened) == max(0, number - 3)
        with stage.viewed("n5") as top:
            assert sorted(str(path.relative_to(top)) for path in top.glob("*/*")) == [
                "d0/0", "d0/4", "d1/1", "d1/5", "d2/2", "d3/3",
            ]  # fmt: skip

    def test_what_has_to_be_unpacked_is(self, stage: Stage) -> None:
        """A sparse file whose data isn't at multiples of 512 bytes has no place in EROFS's blocks."""
        path = stage.scratch / "sparse.tar"
        path.write_bytes(b"\0" * 512 + b"abcdef".ljust(1024, b"\0"))
        builder = TableBuilder()
        builder.add(b"", Entry(mode=0o40755))
        sparse_map = struct.pack("<4Q", 100, 3, 5000, 3)
        builder.add(
            b"holes", Entry(mode=0o100644, size_bytes=6000, data_offset=512, flags=FLAG_SPARSE), link=sparse_map
        )
        layer = Layer("sha256:" + "0" * 64, 1536, path, builder.build()[0])
        key = stage.apply_to_sibling(layer, None)
        with stage.mounted(key) as top:
            content = (top / "holes").read_bytes()
        assert content == (b"\0" * 100 + b"abc").ljust(5000, b"\0") + b"def".ljust(1000, b"\0")
        stage.driver.commit("done", key)
        assert [path.name for path in (stage.scratch.parent / "root").glob("*/diff/*")] == ["holes"]

    def test_attributes_that_no_image_can_hold(self, stage: Stage) -> None:
        """What the file system can hold is unpacked, what it can't is named."""
        for at, xattrs in enumerate(({f"user.{n}": "v" * 9000 for n in range(8)}, {"strange.x": "y"})):
            path = stage.scratch / f"{at}.tar"
            with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as out:
                member = tarfile.TarInfo("file")
                member.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in xattrs.items()}
                out.addfile(member)
            layer = scanned(path)
            try:
                (stage.scratch / "trial").touch()
                for name, value in xattrs.items():
                    os.setxattr(stage.scratch / "trial", name, value.encode())
            except OSError:
                with pytest.raises((Unsupported, NoSpace), match="set an extended attribute"):
                    stage.apply_to_sibling(layer, None)
                continue
            key = stage.apply_to_sibling(layer, None)
            with stage.mounted(key) as top:
                assert {name: os.getxattr(top / "file", name).decode() for name in os.listxattr(top / "file")} == xattrs

    def test_what_a_crash_left_beside_a_snapshot_goes_with_it(self, stage: Stage) -> None:
        stage.driver.prepare("a", None)
        root = stage.scratch.parent / "root"
        directory = root / os.readlink(root / "by-name" / "a")[3:]
        (directory / "new-left").mkdir()
        (root / "l" / "stray").symlink_to("../nowhere")
        (directory / "new-left" / "link").write_text("stray")
        layer = small_tar(stage.scratch / "a.tar", file=b"1")
        stage.driver.apply("a", layer)
        with stage.mounted("a") as top:
            assert (top / "file").read_bytes() == b"1"
        stage.driver.remove("a")
        assert list((root / "l").iterdir()) == []

    @pytest.mark.parametrize("backing", [imagemount.ON_FILES, imagemount.ON_LOOPS])
    def test_loop_devices_serve_as_well(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, backing: str
    ) -> None:
        """Kernels before 6.12 mount no files; the devices go with the mount."""
        image = pile(stage, 2)
        stage.driver.prepare("a", image)
        before = loops_in_use()
        opened: list[str] = []
        real = imagemount.open_image

        def open_image(path: str, devices: tuple[str, ...]) -> int:
            opened.append(path)
            return real(path, devices, backing)

        monkeypatch.setattr(imagemount, "open_image", open_image)
        with stage.mounted("a") as top:
            assert (top / "last").read_bytes() == b"1"
            assert len(loops_in_use() - before) == (4 if backing == imagemount.ON_LOOPS else 0)
        assert len(opened) == 2
        assert loops_in_use() <= before

    def test_kernels_that_take_no_detached_lowers(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before Linux 6.15 the images' mounts need a place while the overlay takes them."""
        image = pile(stage, 3)
        stage.driver.prepare("a", image)
        monkeypatch.setitem(imagemount._seen, "needs mount points", True)
        before = Path("/proc/self/mountinfo").read_text()
        with stage.mounted("a") as top:
            assert sorted(path.name for path in top.iterdir()) == ["f2", "last"]
        assert Path("/proc/self/mountinfo").read_text() == before

    def test_long_paths(self, stage: Stage) -> None:
        """fsconfig takes strings of 255 bytes; deeper roots go by descriptor."""
        deep = stage.scratch.joinpath(*(["deep" * 12] * 6))
        deep.mkdir(parents=True)
        driver = erofs.Driver(deep)
        driver.prepare("k", None)
        driver.apply("k", small_tar(stage.scratch / "a.tar", file=b"1"))
        driver.commit("image", "k")
        driver.prepare("a", "image")
        with mounted(driver.mounts("a"), stage.scratch) as top:
            assert (top / "file").read_bytes() == b"1"
        driver.close()

    def test_probe_tells_why_not(self, ground: Path) -> None:
        assert erofs.probe(ground).usable
        assert list(ground.iterdir()) == []
        for name in ("upper", "work", "low"):
            (ground / name).mkdir()
        place = str(ground)
        one = Mount("overlay", lowers=(f"{place}/low",), upper=f"{place}/upper", work=f"{place}/work")
        with mounted([one]) as top:
            found = erofs.probe(top)
        assert not found.usable
        assert found.reason


def foreign_tar(path: Path, chance: random.Random) -> Layer:
    """Write a random small tar: files, named and unnamed directories, whiteouts, opaque marks, devices 0:0."""
    kinds: dict[str, str] = {}

    def fill(folder: str, depth: int) -> None:
        for name in "abc":
            place = f"{folder}{name}"
            kind = chance.choice(["none", "none", "file", "gone", "device", "folder", "folder", "passed", "passed"])
            if kind in ("folder", "passed") and depth < 3:
                kinds[place] = kind
                fill(f"{place}/", depth + 1)
                if chance.random() < 0.2:
                    kinds[f"{place}/.wh..wh..opq"] = "mark"
            elif kind == "gone":
                kinds[f"{folder}.wh.{name}"] = "mark"
            elif kind in ("file", "device"):
                kinds[place] = kind

    fill("", 1)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as out:
        for name, kind in kinds.items():
            member = tarfile.TarInfo(name)
            member.mode = chance.choice([0o755, 0o700, 0o1777])
            member.uid, member.mtime = chance.randrange(9), chance.randrange(10**9)
            if kind == "folder":
                member.type = tarfile.DIRTYPE
                member.pax_headers = {"SCHILY.xattr.user.of": name} if chance.random() < 0.5 else {}
            elif kind == "device":
                member.type = tarfile.CHRTYPE
            if kind != "passed":
                out.addfile(member)
    return scanned(path)


def scribble(top: Path, chance: random.Random) -> None:
    """Change a mounted tree at random."""
    for path in sorted(top.rglob("*"), reverse=True):
        done = chance.choice(["keep", "keep", "mode", "remove"])
        if not os.path.lexists(path):
            continue  # an overlay lists devices 0:0 of a directory that merges with nothing, but shows none
        if done == "mode":
            path.chmod(chance.choice([0o750, 0o711]))
        elif done == "remove" and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
            if chance.random() < 0.5:
                path.mkdir(exist_ok=True)  # which is opaque
        elif done == "remove":
            path.unlink()
    write(top, f"a{chance.randrange(9)}")


def metadata(seen: os.stat_result) -> tuple[int, ...]:
    """Give what a directory's row takes of another one, and the size of files."""
    size = 0 if stat.S_ISDIR(seen.st_mode) else seen.st_size
    return (seen.st_mode, seen.st_uid, seen.st_gid, seen.st_mtime_ns, seen.st_rdev, size)


def loops_in_use() -> set[str]:
    """List the loop devices that have a file."""
    return {path.name for path in Path("/sys/block").glob("loop*") if (path / "loop" / "backing_file").exists()}


def test_more_layers_than_overlayfs_takes(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not erofs.probe(tmp_path).usable:
        pytest.skip("needs root and EROFS on files or loop devices")
    stage = Stage(erofs.Driver(tmp_path / "root"), tmp_path)
    image = pile(stage, 520, deleting=False)
    stage.driver.prepare("a", image)
    assert len(stage.driver.mounts("a")[0].lowers) <= erofs.MOST_LOWERS
    with stage.mounted("a") as top:
        assert len(list(top.iterdir())) == 521
        assert (top / "last").read_bytes() == b"519"
    stage.driver.close()
