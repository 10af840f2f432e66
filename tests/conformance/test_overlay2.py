"""overlay2 keeps the rules of every driver, and some of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pylayers.diff.compare import list_changes
from pylayers.snapshot import overlay2
from pylayers.snapshot.default import DefaultSnapshotter
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.snapshotter import Snapshotter
from pylayers.store.entry import FLAG_OPAQUE, FLAG_WHITEOUT, EntryTable
from tests.conformance.conftest import loop_file_system
from tests.conformance.crash_suite import CrashSuite
from tests.conformance.foreign_suite import ForeignSuite
from tests.conformance.stage import Stage, remove_tree, write
from tests.oracle.test_sysmount import FILTER, run_in_child


class TestOverlay2(CrashSuite, ForeignSuite):
    def open_driver(self, root: Path) -> Snapshotter:
        return overlay2.Driver(root)

    def test_dockers_layout(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "file"))
        stage.make("top", "base")
        stage.driver.prepare("a", "top")
        root = stage.scratch.parent / "root"
        identity = os.readlink(root / "by-name" / "a")[3:]
        directory = root / identity
        assert {entry.name for entry in directory.iterdir()} >= {"diff", "link", "lower", "work", "merged"}
        assert (root / "l" / (directory / "link").read_text()).resolve() == directory / "diff"
        lowers = [(root / link).resolve() for link in (directory / "lower").read_text().split(":")]
        names = [os.readlink(root / "by-name" / name)[3:] for name in ("top", "base")]
        assert lowers == [root / name / "diff" for name in names]
        stage.driver.commit("done", "a")
        assert {"committed"} == {"committed", "work", "merged"} & {entry.name for entry in directory.iterdir()}
        assert len(os.listdir(root / "l")) == 3
        stage.driver.remove("done")
        assert len(os.listdir(root / "l")) == 2

    def test_options_keep_layers_plain(self, stage: Stage) -> None:
        stage.make("base", None, lambda top: write(top, "d/file"))
        stage.driver.prepare("a", "base")
        assert set(stage.driver.mounts("a")[0].options) == {"redirect_dir=off", "metacopy=off", "index=off"}
        with stage.mounted("a") as top, pytest.raises(OSError, match="cross-device"):
            os.rename(top / "d", top / "e")  # redirect_dir=off: mv must copy, so that the layer holds the files

    def test_marks_that_hide_nothing_are_dropped(self, stage: Stage) -> None:
        """The kernel marks every new directory opaque, and a foreign tar may delete what isn't there."""
        stage.make("base", None, lambda top: write(top, "d/file"))
        stage.make("middle", "base", lambda top: write(top, "d/new/deep/file"))
        layer = self.tar(stage, ("d/.wh.nothing", b""), (".wh.gone", b""), ("n/.wh..wh..opq", b""), ("n/x", b"x"))
        applied = stage.apply_to_sibling(layer, "middle")
        for key, paths in (
            ("middle", [b"", b"d", b"d/new", b"d/new/deep", b"d/new/deep/file"]),
            (applied, [b"", b"n", b"n/x"]),
        ):
            with stage.changes(key) as found:
                table = EntryTable(found.records, found.heap)
                assert [table.path(entry) for entry in table if table.path(entry) != b"d" or key != applied] == paths
                assert not any(entry.flags & (FLAG_OPAQUE | FLAG_WHITEOUT) for entry in table)

    def test_shorter_way_equals_the_derived_one(self, stage: Stage) -> None:
        def base(top: Path) -> None:
            for name in ("a/1", "a/2", "b/1", "b/2", "c/deep/er/1", "f", "g"):
                write(top, name, name.encode())

        def change(top: Path) -> None:
            remove_tree(top / "a")
            write(top, "a/3")
            (top / "b" / "1").unlink()
            write(top, "c/deep/er/2")
            os.link(top / "f", top / "f3")
            (top / "g").chmod(0o600)

        stage.make("base", None, base)
        key = stage.active("base", change)
        driver = stage.driver
        assert isinstance(driver, overlay2.Driver)
        parent = stage.table_of("base")
        with stage.changes(key) as found:
            shorter = list_changes(EntryTable(found.records, found.heap), parent)
        derived_changes = DefaultSnapshotter.changes(driver, key)
        derived = list_changes(EntryTable(derived_changes.records, derived_changes.heap), parent)
        derived_changes.close()
        assert shorter == derived
        assert not [one for one in driver.walk() if ".walk." in one.name]

    def test_probe_tells_why_not(self, ground: Path) -> None:
        assert overlay2.probe(ground).usable
        assert list(ground.iterdir()) == []
        parent = overlay2.Driver(ground / "root")
        parent.prepare("base", None)
        parent.commit("b", "base")
        parent.prepare("a", "b")
        with mounted(parent.mounts("a")) as top:
            found = overlay2.probe(top)
        assert not found.usable
        assert found.reason
        parent.close()


MANY = FILTER + """
from pathlib import Path
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.overlay2 import Driver
driver, parent = Driver(Path(sys.argv[1])), None
for number in range(128):
    driver.prepare(f"key-{number}", parent, lasting=False)
    [upper] = {one.upper or one.source for one in driver.mounts(f"key-{number}")}
    Path(upper, f"file-{number}").touch()
    parent = f"layer-{number}"
    driver.commit(parent, f"key-{number}")
driver.prepare("top", parent)
here = os.getcwd()
with mounted(driver.mounts("top"), Path(sys.argv[2])) as top:
    (top / "new").touch()
    print(len(os.listdir(top)), os.getcwd() == here)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_128_layers_fit_the_page_of_an_old_kernel(tmp_path: Path) -> None:
    """Short links count from their own folder there, whatever the data root is called."""
    with loop_file_system("ext4", tmp_path) as point:
        root = point / ("long-name-of-a-data-root" * 4) / "overlay2"
        root.mkdir(parents=True)
        assert run_in_child(MANY, str(root), str(tmp_path)) == "129 True"
