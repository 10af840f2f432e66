from __future__ import annotations

import os
from pathlib import Path

import pytest

from pylayers.errors import Conflict, IntegrityError, InvalidInput, NotFound
from pylayers.volume.initialise import MARKER, initialise
from pylayers.volume.rootpath import locate, make_directories, open_beneath, read_beneath
from pylayers.volume.volumes import VolumeStore


def unused(_name: str) -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    return VolumeStore(tmp_path / "volumes")


def test_create_is_idempotent(store: VolumeStore) -> None:
    first = store.create("data", {"a": "1"})
    (first.path / "file").write_text("kept")
    assert store.create("data", {"a": "1"}) == store.create("data") == first
    assert (first.path / "file").read_text() == "kept"
    with pytest.raises(Conflict, match="other labels"):
        store.create("data", {"a": "2"})
    assert [volume.name for volume in store.walk()] == ["data"]
    assert first.path == store.directory / "data" / "_data"


@pytest.mark.parametrize("name", ["x", "-x", "a/b", "..", "", "a b", "ab\n"])
def test_bad_names(store: VolumeStore, name: str) -> None:
    with pytest.raises(InvalidInput, match="includes invalid characters"):
        store.create(name)


def test_remove_refuses_what_is_in_use(store: VolumeStore) -> None:
    store.create("data")
    with pytest.raises(Conflict, match=r"volume is in use - \[c1, c2\]"):
        store.remove("data", in_use=lambda _: ["c2", "c1"])
    assert store.remove("data", in_use=unused)
    assert list(store.directory.iterdir()) == []
    with pytest.raises(NotFound):
        store.remove("data", in_use=unused)
    assert not store.remove("data", in_use=unused, force=True)


def test_prune_takes_anonymous_ones_only(store: VolumeStore) -> None:
    store.create("named")
    anonymous, used = store.create(), store.create()
    (anonymous.path / "f").write_bytes(b"x" * 8192)
    removed, freed_bytes = store.prune(in_use=lambda name: ["c"] if name == used.name else [])
    assert removed == [anonymous.name]
    assert freed_bytes >= 8192
    assert {volume.name for volume in store.walk()} == {"named", used.name}
    assert store.prune(in_use=lambda name: ["c"] if name == used.name else [], everything=True)[0] == ["named"]


def test_half_made_volume_is_none(store: VolumeStore) -> None:
    (store.directory / "half" / "_data").mkdir(parents=True)
    assert list(store.walk()) == []
    with pytest.raises(NotFound):
        store.inspect("half")
    assert store.create("half").name == "half"


def test_damaged_record_is_named(store: VolumeStore) -> None:
    store.create("data")
    (store.directory / "data" / "volume.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"volume\.json is damaged"):
        store.inspect("data")


@pytest.fixture
def root(tmp_path: Path):
    base = tmp_path / "root"
    (base / "srv" / "data" / "sub").mkdir(parents=True)
    (base / "srv" / "data" / "file").write_text("content")
    os.chmod(base / "srv" / "data", 0o2750)
    (base / "abs").symlink_to("/srv/data")
    (base / "out").symlink_to("../../../../../../../../etc")
    (base / "loop").symlink_to("loop")
    (base / "chain").symlink_to("abs/sub/..")
    descriptor = os.open(base, os.O_PATH | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def test_fill_copies_once(store: VolumeStore, root: int) -> None:
    volume = store.create("data")
    assert initialise(volume.path, root, "/abs")
    assert (volume.path / "file").read_text() == "content"
    assert (volume.path / "sub").is_dir()
    assert volume.path.stat().st_mode & 0o7777 == 0o2750
    (volume.path / "file").write_text("changed")
    assert not initialise(volume.path, root, "/abs")
    assert (volume.path / "file").read_text() == "changed"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_fill_keeps_the_owner(store: VolumeStore, root: int, tmp_path: Path) -> None:
    os.chown(tmp_path / "root" / "srv" / "data", 1234, 5678)
    os.chown(tmp_path / "root" / "srv" / "data" / "file", 1, 2)
    volume = store.create("data")
    initialise(volume.path, root, "/srv/data")
    assert (volume.path.stat().st_uid, volume.path.stat().st_gid) == (1234, 5678)
    assert ((volume.path / "file").stat().st_uid, (volume.path / "file").stat().st_gid) == (1, 2)


def test_fill_does_nothing_without_content(store: VolumeStore, root: int) -> None:
    volume = store.create("data")
    assert not initialise(volume.path, root, "/nowhere")
    assert not initialise(volume.path, root, "/srv/data/file")
    assert not initialise(volume.path, root, "/out")
    assert list(volume.path.iterdir()) == []


def test_interrupted_fill_is_done_again(store: VolumeStore, root: int) -> None:
    volume = store.create("data")
    (volume.path / "half").mkdir()
    (volume.path / "half" / "file").write_text("rubbish")
    (volume.path.parent / MARKER).touch()
    assert initialise(volume.path, root, "/srv/data")
    assert sorted(os.listdir(volume.path)) == ["file", "sub"]
    assert not (volume.path.parent / MARKER).exists()


def test_paths_stay_inside_the_root(root: int) -> None:
    assert locate(root, "/chain/file").path == "srv/data/file"
    assert locate(root, "/out/passwd").existing == ()
    assert locate(root, "/out/passwd").missing == ("etc", "passwd")
    assert locate(root, "abs/new/../other/x").missing == ("other", "x")
    assert locate(root, "abs", follow_last=False).path == "abs"
    with pytest.raises(OSError, match=r"[Ss]ymbolic"):
        locate(root, "loop")
    with pytest.raises(NotADirectoryError):
        locate(root, "srv/data/file/x")
    assert read_beneath(root, "abs/file", 100) == b"content"
    assert read_beneath(root, "out/passwd", 1 << 20) is None
    with pytest.raises(OSError, match="large"):
        read_beneath(root, "abs/file", 3)


def test_directories_are_made_inside_the_root(root: int, tmp_path: Path) -> None:
    os.close(make_directories(root, "/out/a/b"))
    assert (tmp_path / "root" / "etc" / "a" / "b").is_dir()
    os.close(make_directories(root, "/abs/sub"))


def test_a_fifo_cannot_block(root: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "root" / "fifo")
    with pytest.raises(OSError, match="neither a regular file"):
        open_beneath(root, "fifo")
