"""Which storage driver a data root gets, and what is said about the others."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from pylayers.errors import Conflict, DriverError, InvalidInput, Unsupported
from pylayers.snapshot import select, vfs
from pylayers.snapshot.snapshotter import Probe


@pytest.fixture(autouse=True)
def no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(select.DRIVER_VARIABLE, raising=False)


def fill_vfs(root: Path) -> None:
    driver = vfs.Driver(root / "vfs")
    driver.prepare("a", None)
    driver.close()


def fill_other(root: Path, name: str) -> None:
    """Lay down what any driver's snapshot looks like from outside."""
    (root / name / "by-name").mkdir(parents=True)
    (root / name / ("0" * 32)).mkdir()
    (root / name / ("0" * 32) / "snapshot.json").write_text("{}")
    (root / name / "by-name" / "a").symlink_to("../" + "0" * 32)


def test_every_driver_of_the_design_is_listed(tmp_path: Path) -> None:
    listed = select.list_drivers(tmp_path)
    assert tuple(one.name for one in listed) == select.DRIVER_ORDER
    for one in listed:
        assert one.probe.usable or one.probe.reason
        assert not one.has_data
    assert list((tmp_path / "tmp").iterdir()) == []


def test_probe_names_what_the_machine_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    reasons = {one.name: one.probe.reason for one in select.list_drivers(tmp_path)}
    assert "no fuse-overlayfs program" in reasons["fuse-overlayfs"]
    assert "no zfs program" in reasons["zfs"]
    has_aufs = "aufs" in Path("/proc/filesystems").read_text().split()
    assert ("no aufs" in reasons["aufs"]) is not has_aufs


def test_vfs_works_anywhere(tmp_path: Path) -> None:
    assert vfs.probe(tmp_path).usable


def test_first_usable_wins(tmp_path: Path) -> None:
    usable = [one.name for one in select.list_drivers(tmp_path) if one.probe.usable]
    assert select.choose_driver(tmp_path) == usable[0]


def test_vfs_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in select.MODULES:
        if name != "vfs":
            module = select.load_implementation(name)
            monkeypatch.setattr(module, "probe", lambda directory, name=name: Probe(False, f"{name} says no"))
    assert select.choose_driver(tmp_path) == "vfs"
    with pytest.raises(DriverError, match="overlay2 says no") as caught:
        select.choose_driver(tmp_path, "overlay2")
    assert caught.value.hint is not None


def test_a_driver_with_data_is_kept(tmp_path: Path) -> None:
    fill_vfs(tmp_path)
    assert select.choose_driver(tmp_path) == "vfs"
    assert [one.name for one in select.list_drivers(tmp_path) if one.has_data] == ["vfs"]
    opened = select.open_snapshotter(tmp_path)
    assert [one.name for one in opened.walk()] == ["a"]
    opened.close()


def test_an_emptied_driver_is_not_kept(tmp_path: Path) -> None:
    fill_vfs(tmp_path)
    driver = select.open_snapshotter(tmp_path)
    driver.remove("a")
    driver.close()
    assert not select.has_data(tmp_path, "vfs")


def test_several_drivers_with_data_are_an_error(tmp_path: Path) -> None:
    fill_vfs(tmp_path)
    fill_other(tmp_path, "btrfs")
    with pytest.raises(Conflict, match="btrfs, vfs") as caught:
        select.choose_driver(tmp_path)
    assert "pylayers driver migrate vfs btrfs" in (caught.value.hint or "")
    assert select.choose_driver(tmp_path, "vfs") == "vfs"
    select.mark_migration(tmp_path, "vfs", "btrfs")
    with pytest.raises(Conflict, match="btrfs, vfs") as caught:
        select.choose_driver(tmp_path)
    assert "interrupted; finish it with: pylayers driver migrate vfs btrfs" in (caught.value.hint or "")
    select.mark_migration(tmp_path, "vfs", "")
    assert not select.migration_target(tmp_path, "vfs")


def test_a_wish_leaves_no_data_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay2 = select.load_implementation("overlay2")
    monkeypatch.setattr(overlay2, "probe", lambda directory: Probe(True))
    assert select.choose_driver(tmp_path, "overlay2") == "overlay2"
    fill_vfs(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Conflict, match=r"overlay2 was asked for, but .* has snapshots of driver vfs") as caught:
        select.choose_driver(tmp_path, "overlay2")
    assert "pylayers driver migrate vfs overlay2" in (caught.value.hint or "")
    monkeypatch.setenv(select.DRIVER_VARIABLE, "overlay2")
    with pytest.raises(Conflict, match="has snapshots of driver vfs"):
        select.open_snapshotter(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert select.choose_driver(tmp_path, "vfs") == "vfs"
    driver = vfs.Driver(tmp_path / "vfs")
    driver.remove("a")
    driver.close()
    assert select.choose_driver(tmp_path) == "overlay2"


def test_stale_pointers_are_no_data(tmp_path: Path) -> None:
    fill_vfs(tmp_path)
    (tmp_path / "overlay2" / "by-name").mkdir(parents=True)
    (tmp_path / "overlay2" / "by-name" / "gone").symlink_to("../" + "0" * 32)
    assert select.choose_driver(tmp_path) == "vfs"


@pytest.mark.parametrize("written", ["2", "0", "", "one"])
def test_data_of_another_version_is_refused_untouched(tmp_path: Path, written: str) -> None:
    fill_vfs(tmp_path)
    assert (tmp_path / "vfs" / "version").read_text() == "1\n"
    (tmp_path / "vfs" / "version").write_text(f"{written}\n")
    (tmp_path / "vfs" / ".making-x").mkdir()
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(Unsupported, match=rf"vfs were written by another version of pylayers: format {written!r}"):
        select.open_snapshotter(tmp_path)
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path / "vfs").rglob("*")}.items() <= before.items()
    listed = {one.name: one for one in select.list_drivers(tmp_path)}
    assert listed["vfs"].has_data
    assert not listed["vfs"].probe.usable
    assert "another version" in listed["vfs"].probe.reason


def test_data_from_before_versions_is_taken_over(tmp_path: Path) -> None:
    fill_vfs(tmp_path)
    (tmp_path / "vfs" / "version").unlink()
    driver = select.open_snapshotter(tmp_path)
    assert [one.name for one in driver.walk()] == ["a"]
    driver.close()
    assert (tmp_path / "vfs" / "version").read_text() == "1\n"


def test_opening_drops_what_a_killed_process_was_unpacking(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            driver = select.open_snapshotter(tmp_path, "vfs")
            driver.prepare("kept", None)
            driver.prepare("unpack-1", None)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    driver = select.open_snapshotter(tmp_path)
    assert [one.name for one in driver.walk()] == ["kept"]
    driver.close()


def test_a_wish_wins_or_fails_loudly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert select.choose_driver(tmp_path, "vfs") == "vfs"
    monkeypatch.setenv(select.DRIVER_VARIABLE, "vfs")
    assert select.choose_driver(tmp_path) == "vfs"
    monkeypatch.setenv(select.DRIVER_VARIABLE, "zfs")
    with pytest.raises(DriverError, match="zfs was asked for but does not work"):
        select.choose_driver(tmp_path)
    assert select.choose_driver(tmp_path, "vfs") == "vfs"
    with pytest.raises(InvalidInput, match="no storage driver 'floppy'"):
        select.choose_driver(tmp_path, "floppy")


def test_one_driver_is_probed_by_name(tmp_path: Path) -> None:
    assert select.probe_driver(tmp_path, "vfs") == select.DriverStatus("vfs", Probe(True), False)
    with pytest.raises(InvalidInput, match="no storage driver 'floppy'"):
        select.probe_driver(tmp_path, "floppy")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may mount")
def test_overlay2_without_rights_says_so(tmp_path: Path) -> None:
    reasons = {one.name: one.probe for one in select.list_drivers(tmp_path)}
    assert not reasons["overlay2"].usable
    assert "not permitted" in reasons["overlay2"].reason


def test_a_driver_with_data_is_tried_once_a_boot_and_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    driver = select.open_snapshotter(root, "vfs")
    driver.prepare("a", None)
    driver.close()
    tried: list[str] = []
    monkeypatch.setattr(select, "require_driver", lambda _root, name, _why: tried.append(name))
    select.open_snapshotter(root).close()
    assert tried == []
    shutil.copytree(root, tmp_path / "copied", symlinks=True)
    select.open_snapshotter(tmp_path / "copied").close()
    assert tried == ["vfs"]
    select.open_snapshotter(tmp_path / "copied").close()
    assert tried == ["vfs"]
