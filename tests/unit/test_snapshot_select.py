"""Which storage driver a data root gets, and what is said about the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pylayers.errors import Conflict, DriverError, InvalidInput
from pylayers.snapshot import select, vfs
from pylayers.snapshot.snapshotter import Probe


@pytest.fixture(autouse=True)
def no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(select.DRIVER_VARIABLE, raising=False)


def fill_vfs(root: Path) -> None:
    driver = vfs.Driver(root / "vfs")
    driver.prepare("a", None)
    driver.close()


def test_every_driver_of_the_design_is_listed(tmp_path: Path) -> None:
    listed = select.list_drivers(tmp_path)
    assert tuple(one.name for one in listed) == select.DRIVER_ORDER
    for one in listed:
        assert one.probe.usable or one.probe.reason
        assert not one.has_data
        if not one.implemented:
            assert not one.probe.usable
            assert one.probe.reason.startswith("not in this version of pylayers")
    assert {one.name for one in listed if one.implemented} == set(select.MODULES)
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
    (tmp_path / "btrfs" / "subvolumes").mkdir(parents=True)
    with pytest.raises(Conflict, match="btrfs, vfs"):
        select.choose_driver(tmp_path)
    assert select.choose_driver(tmp_path, "vfs") == "vfs"


def test_data_of_a_driver_this_version_lacks_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "btrfs" / "subvolumes").mkdir(parents=True)
    with pytest.raises(DriverError, match=r"btrfs has snapshots .* not in this version"):
        select.choose_driver(tmp_path)


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may mount")
def test_overlay2_without_rights_says_so(tmp_path: Path) -> None:
    reasons = {one.name: one.probe for one in select.list_drivers(tmp_path)}
    assert not reasons["overlay2"].usable
    assert "not permitted" in reasons["overlay2"].reason
