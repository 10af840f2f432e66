"""erofs mounts spliced layers from both of their files, whose bytes are never put together."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylayers._native import copyup
from pylayers._native import erofs as kernel
from pylayers.snapshot import erofs, imagemount, layerplace
from pylayers.snapshot.catalog import Catalog
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.snapshotter import Snapshotter
from pylayers.store import Store
from pylayers.store.file import sync_path
from pylayers.store.layer import Layer
from pylayers.store.splice import PAGE_BYTES, Base
from tests.conformance.conftest import loop_file_system
from tests.conformance.crash_suite import CrashSuite
from tests.conformance.foreign_suite import ForeignSuite
from tests.conformance.stage import Stage, describe, scanned
from tests.conformance.test_erofs import loops_in_use
from tests.e2e.test_reap import SHUT_DOWN, WITHOUT_LOG, remount

WRONG = b"\xa5"  # what lies where nothing may be read


class Spliced(Layer):
    """A layer whose own file has wrong bytes up to where the base ends, so that filling it writes all of them."""

    def open_tar(self) -> int:
        if self.base is not None and Path(self.base.path).exists():
            with Path(self.tar_path).open("r+b") as tar:
                tar.write(Path(self.base.path).read_bytes()[: self.base.end_bytes])
            Path(self.base.path).unlink()
        return super().open_tar()


def splice(layer: Layer) -> Layer:
    """Put the first half of a layer's tar into another file, as a rebuild does; a tar of one entry stays as it is."""
    content = Path(layer.tar_path).read_bytes()
    headers = sorted({entry.header_offset for entry in layer.table if entry.header_offset})
    if not headers:
        return layer
    end = headers[len(headers) // 2]
    name = f"{Path(layer.tar_path).name}-{os.urandom(4).hex()}"
    base, tar = (Path(layer.tar_path).with_name(f"{name}.{kind}") for kind in ("base", "tar"))
    base.write_bytes(content[:end] + WRONG * 1536)
    with tar.open("wb") as out:
        out.seek(end // PAGE_BYTES * PAGE_BYTES)
        out.write(WRONG * (end % PAGE_BYTES) + content[end:])
    return Spliced(layer.diff_id, layer.size_bytes, tar, layer.table, base=Base(base, end))


def make_tar(path: Path, **members: bytes) -> Layer:
    """Write a tar of some files."""
    with tarfile.open(path, "w") as out:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return scanned(path)


def large(name: str) -> bytes:
    """Give a file's content that tells its name in every block."""
    return name.encode().ljust(512, b".") * 40


def letters(stage: Stage, *names: str) -> Layer:
    """Write a spliced layer of some files."""
    layer = splice(make_tar(stage.scratch / f"{stage.fresh('letters')}.tar", **{name: large(name) for name in names}))
    assert layer.base is not None
    assert os.stat(layer.tar_path).st_blocks * 512 < layer.size_bytes
    return layer


def pile(stage: Stage, count: int) -> str:
    """Stack layers, each with two files of its own, one that all have, and a deletion; every third has no base."""
    parent = None
    for number in range(count):
        members = {f"a{number}": large(f"a{number}"), "all": large(f"all{number}"), f"z{number}": large(f"z{number}")}
        if number:
            members[f".wh.z{number - 1}"] = b""
        layer = make_tar(stage.scratch / f"{number}.tar", **members)
        key = stage.apply_to_sibling(layer if number % 3 == 2 else splice(layer), parent)
        stage.driver.commit(f"n{number}", key)
        parent = f"n{number}"
    assert parent is not None
    return parent


def check_pile(top: Path, count: int) -> None:
    """Read everything that a pile shows."""
    found = {path.name: path.read_bytes() for path in top.iterdir()}
    last = count - 1
    expected = {f"a{number}": large(f"a{number}") for number in range(count)}
    assert found == {**expected, "all": large(f"all{last}"), f"z{last}": large(f"z{last}")}


def place_of(stage: Stage, name: str) -> Path:
    """Find the place of a snapshot's only layer."""
    root = stage.scratch.parent / "root"
    [place] = (root / os.readlink(root / "by-name" / name)[3:] / "layer").iterdir()
    return place


def probe_clone(directory: Path) -> bool:
    """Tell whether a file system shares blocks between files."""
    with (directory / "one").open("w+b") as one, (directory / "two").open("w+b") as two:
        one.write(bytes(1 << 20))
        one.flush()
        return copyup.copy_file(one.fileno(), two.fileno(), 1 << 20) == "reflink"


class Splicing(erofs.Driver):
    """Apply every layer as a spliced one."""

    def apply(self, key: str, layer: Layer) -> None:
        super().apply(key, splice(layer))


class TestSplicedEverywhere(CrashSuite, ForeignSuite):
    """The rules of every driver, when each layer that is applied has a base. Others clone on xfs and btrfs."""

    file_systems = ("own",)

    def open_driver(self, root: Path) -> Snapshotter:
        return Splicing(root)


class TestSpliced:
    file_systems = ("own",)

    @pytest.fixture
    def stage(self, ground: Path) -> Iterator[Stage]:
        (ground / "scratch").mkdir()
        stage = Stage(erofs.Driver(ground / "root"), ground / "scratch")
        yield stage
        stage.driver.close()

    def test_both_files_are_linked_and_mounted(self, stage: Stage) -> None:
        layer = letters(stage, "a", "b", "c", "d")
        assert layer.base is not None
        stage.driver.commit("image", stage.apply_to_sibling(layer, None))
        place = place_of(stage, "image")
        end = layer.base.end_bytes
        assert place.name == f"0-{end}"
        names = ["layer.erofs", "layer.idx", "layer.tar", "link", "settled", f"base-{end}.tar"]
        assert sorted(path.name for path in place.iterdir()) == sorted(names)
        assert (place / "layer.tar").samefile(layer.tar_path)
        assert (place / f"base-{end}.tar").samefile(layer.base.path)
        root = stage.scratch.parent / "root"
        assert (root / "l" / (place / "link").read_text()).resolve() == place
        [view] = stage.driver.view("v", "image")
        assert (view.type, view.source) == ("erofs", str(place / "layer.erofs"))
        assert view.devices == ((str(place / "layer.tar"), str(place / f"base-{end}.tar")),)
        Path(layer.tar_path).unlink()  # as when the store collects both layers
        Path(layer.base.path).unlink()
        with mounted([view], stage.scratch) as top:
            assert {path.name: path.read_bytes() for path in top.iterdir()} == {name: large(name) for name in "abcd"}
        assert os.stat(place / "layer.tar").st_blocks * 512 < layer.size_bytes  # no hole was filled
        stage.driver.remove("v")
        stage.driver.remove("image")
        assert list((root / "l").iterdir()) == []

    def test_equal_to_the_plain_layer(self, stage: Stage) -> None:
        plain = make_tar(stage.scratch / "a.tar", **{f"{name}/{name}": large(name) for name in "abcdefgh"})
        stage.driver.commit("plain", stage.apply_to_sibling(plain, None))
        stage.driver.commit("spliced", stage.apply_to_sibling(splice(plain), None))
        assert describe(stage.table_of("spliced")) == describe(stage.table_of("plain"))

    def test_container_over_a_spliced_layer(self, stage: Stage) -> None:
        stage.driver.commit("image", stage.apply_to_sibling(letters(stage, "a", "b", "c", "d"), None))

        def change(top: Path) -> None:
            for name in "ad":
                with (top / name).open("r+b") as file:
                    file.write(b"changed")
            (top / "b").chmod(0o600)
            os.utime(top / "c", ns=(1, os.stat(top / "c").st_mtime_ns))

        key = stage.active("image", change)
        with stage.mounted(key) as top:
            assert [(top / name).read_bytes()[7:] for name in "ad"] == [large(name)[7:] for name in "ad"]
        assert stage.listed(key, "image") == [("C", b"a"), ("C", b"b"), ("C", b"d")]

    @pytest.mark.parametrize("most", [2, 5, 40])
    def test_merged_images(self, stage: Stage, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        monkeypatch.setattr(erofs, "MOST_LOWERS", most)
        image = pile(stage, 12)
        stage.driver.prepare("a", image)
        [one] = stage.driver.mounts("a")
        assert len(one.lowers) <= most
        assert sum(map(len, one.devices)) == 12 + 8
        with stage.mounted("a") as top:
            check_pile(top, 12)
            (top / "a5").unlink()
        assert stage.listed("a", image) == [("D", b"a5")]

    def test_bases_count_among_an_image_s_devices(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(erofs, "MOST_LOWERS", 2)
        image = pile(stage, 3)
        with monkeypatch.context() as fewer:
            fewer.setattr(kernel, "MOST_DEVICES", 4)
            stage.driver.prepare("a", image)
            assert len(stage.driver.mounts("a")[0].lowers) == 3
        stage.driver.prepare("b", image)
        assert len(stage.driver.mounts("b")[0].lowers) == 1
        for key in ("a", "b"):
            with stage.mounted(key) as top:
                check_pile(top, 3)

    @pytest.mark.parametrize("backing", [imagemount.ON_FILES, imagemount.ON_LOOPS])
    @pytest.mark.parametrize("most", [1, 9])
    def test_a_layer_s_tar_may_be_the_base_of_the_next(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, backing: str, most: int
    ) -> None:
        """One file may be two devices of an image; older kernels take loop devices, which go with the mount."""
        monkeypatch.setattr(erofs, "MOST_LOWERS", most)
        first = make_tar(stage.scratch / "first.tar", **{name: large(name) for name in "abcd"})
        last = make_tar(stage.scratch / "last.tar", **{name: large(name) for name in "abce"})
        end = max(entry.header_offset for entry in last.table)
        with Path(last.tar_path).open("r+b") as tar:
            tar.write(WRONG * end)
        last = Layer(last.diff_id, last.size_bytes, last.tar_path, last.table, base=Base(first.tar_path, end))
        stage.driver.commit("first", stage.apply_to_sibling(first, None))
        stage.driver.commit("last", stage.apply_to_sibling(last, "first"))
        real = imagemount.open_image
        monkeypatch.setattr(imagemount, "open_image", lambda path, devices: real(path, devices, backing))
        before = loops_in_use()
        stage.driver.prepare("a", "last")
        assert len(stage.driver.mounts("a")[0].lowers) == min(most, 2)
        with stage.mounted("a") as top:
            assert {path.name: path.read_bytes() for path in top.iterdir()} == {name: large(name) for name in "abcde"}
            used = (4 if most == 1 else 5) if backing == imagemount.ON_LOOPS else 0
            assert len(loops_in_use() - before) == used
        assert loops_in_use() <= before

    @pytest.mark.parametrize("refusal", [errno.EXDEV, errno.EMLINK])
    @pytest.mark.parametrize("of", ["tar", "base"])
    def test_one_copy_of_both_where_no_link_can_be_made(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, refusal: int, of: str
    ) -> None:
        whole = make_tar(stage.scratch / "whole.tar", **{name: large(name) for name in "abcd"})
        layer = splice(whole)
        assert layer.base is not None
        refused = layer.tar_path if of == "tar" else layer.base.path
        real = os.link

        def link(source: Path | str, target: Path | str) -> None:
            if str(source) == str(refused):
                raise OSError(refusal, os.strerror(refusal), str(source))
            real(source, target)

        with monkeypatch.context() as patched:
            patched.setattr(os, "link", link)
            stage.driver.commit("image", stage.apply_to_sibling(layer, None))
        place = place_of(stage, "image")
        assert place.name == "0"
        assert not list(place.glob("base-*"))
        assert (place / "layer.tar").read_bytes() == Path(whole.tar_path).read_bytes()
        with stage.viewed("image") as top:
            assert {path.name: path.read_bytes() for path in top.iterdir()} == {name: large(name) for name in "abcd"}
        assert os.stat(layer.tar_path).st_blocks * 512 < layer.size_bytes

    @pytest.mark.parametrize("linked", [True, False])
    def test_a_tar_that_was_filled_meanwhile(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, linked: bool
    ) -> None:
        """Another process filled the hole, after which the base is gone; this one had opened the layer before."""
        layer = letters(stage, "a", "b", "c", "d")
        assert layer.base is not None
        with Path(layer.tar_path).open("r+b") as tar:
            tar.write(Path(layer.base.path).read_bytes()[: layer.base.end_bytes])
        Path(layer.base.path).unlink()
        if not linked:
            monkeypatch.setattr(layerplace, "link_tars", lambda layer, place: None)
            monkeypatch.setattr(erofs, "link_tars", lambda layer, place: None)
        stage.driver.commit("image", stage.apply_to_sibling(layer, None))
        place = place_of(stage, "image")
        assert place.name == "0"
        assert (place / "layer.tar").samefile(layer.tar_path) is linked
        with stage.viewed("image") as top:
            assert {path.name: path.read_bytes() for path in top.iterdir()} == {name: large(name) for name in "abcd"}

    def test_filling_the_store_s_tar_changes_nothing(self, stage: Stage) -> None:
        layer = letters(stage, "a", "b", "c", "d")
        assert layer.base is not None
        stage.driver.commit("image", stage.apply_to_sibling(layer, None))
        with stage.viewed("image") as top:
            assert (top / "a").read_bytes() == large("a")
            with Path(layer.tar_path).open("r+b") as tar:
                tar.write(Path(layer.base.path).read_bytes()[: layer.base.end_bytes])
            Path(layer.base.path).unlink()
            assert {path.name: path.read_bytes() for path in top.iterdir()} == {name: large(name) for name in "abcd"}

    def test_a_commit_flushes_the_names_of_both_files(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """The files themselves are on the disk since the store took them."""
        key = stage.apply_to_sibling(letters(stage, "a", "b", "c", "d"), None)
        synced: list[Path] = []
        monkeypatch.setattr(erofs, "sync_path", lambda path: (synced.append(Path(path)), sync_path(path)))
        real = Catalog.commit

        def commit(catalog: Catalog, *arguments: Any) -> None:
            assert {place, place.parent} <= set(synced)
            real(catalog, *arguments)

        place = place_of(stage, key)
        monkeypatch.setattr(Catalog, "commit", commit)
        stage.driver.commit("image", key)
        assert place_of(stage, "image") == place

    def test_a_layer_as_the_store_keeps_it(self, stage: Stage) -> None:
        """Made by the store, adopted, shown without being filled, and shown still when both layers are deleted."""
        first = make_tar(stage.scratch / "first.tar", **{name: large(name) for name in "abcd"})
        second = make_tar(stage.scratch / "second.tar", **{name: large(name) for name in "abce"})
        end = max(entry.header_offset for entry in second.table)
        with Store.open(stage.scratch / "store") as store:
            if probe_clone(stage.scratch):
                pytest.skip("this file system clones, so its layers have no bases")
            layers = []
            for one in (first, second):
                content = Path(one.tar_path).read_bytes()
                with store.layers.ingest() as writer:
                    start = 0
                    if layers:
                        assert writer.share(layers[0], end)
                        start = end // PAGE_BYTES * PAGE_BYTES
                    os.pwrite(writer.fd, content[start:], start)
                    layers.append(writer.commit(one.table.records, one.table.heap, len(content), one.diff_id))
            layer = layers[1]
            assert layer.base is not None
            stage.driver.prepare("key", None)
            stage.driver.adopt("image", "key", layer)
            place = place_of(stage, "image")
            assert place.name == f"0-{end}"
            assert (place / "layer.idx").samefile(Path(layer.tar_path).with_name("layer.idx"))
            assert stage.driver.usage("image").size_bytes < end
            for one in layers:
                store.layers.delete(one.diff_id)
        assert stage.driver.usage("image").size_bytes > end
        with stage.viewed("image") as top:
            assert {path.name: path.read_bytes() for path in top.iterdir()} == {name: large(name) for name in "abce"}

    def test_usage_counts_what_the_store_does_not_hold(self, stage: Stage) -> None:
        layer = letters(stage, "a", "b", "c", "d")
        assert layer.base is not None
        stage.driver.commit("image", stage.apply_to_sibling(layer, None))
        small = stage.driver.usage("image").size_bytes
        own, base = (os.stat(path).st_blocks * 512 for path in (layer.tar_path, layer.base.path))
        Path(layer.base.path).unlink()
        assert stage.driver.usage("image").size_bytes == small + base
        Path(layer.tar_path).unlink()
        assert stage.driver.usage("image").size_bytes == small + base + own


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_power_cut(tmp_path: Path, kind: str) -> None:
    """A committed snapshot has both of its files when the machine stops directly afterwards."""
    if os.geteuid() != 0 or not erofs.probe(tmp_path).usable:
        pytest.skip("needs root and EROFS on files or loop devices")
    with loop_file_system(kind, tmp_path) as point:
        (point / "scratch").mkdir()
        stage = Stage(erofs.Driver(point / "root"), point / "scratch")
        layer = letters(stage, "a", "b", "c", "d")
        assert layer.base is not None
        for path in (layer.tar_path, layer.base.path, Path(layer.tar_path).parent):  # as the store does
            sync_path(path)
        key = stage.fresh("key")
        stage.driver.prepare(key, None, lasting=False)
        stage.driver.apply(key, layer)
        stage.driver.commit("image", key)
        stage.driver.close()
        descriptor = os.open(point, os.O_RDONLY)
        fcntl.ioctl(descriptor, SHUT_DOWN, struct.pack("I", WITHOUT_LOG))
        os.close(descriptor)
        del layer
        remount(point)
        stage = Stage(erofs.Driver(point / "root"), point / "scratch")
        with stage.viewed("image") as top:
            assert {path.name: path.read_bytes() for path in top.iterdir()} == {name: large(name) for name in "abcd"}
        stage.driver.close()
