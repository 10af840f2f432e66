from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from pylayers.errors import Conflict, InvalidInput, PylayersError, Unsupported
from pylayers.store import Store
from pylayers.store.entry import FLAG_HASHED
from pylayers.store.file import write_file
from pylayers.store.holder import ContainerRecord
from pylayers.store.metadata import ImageRecord, References
from pylayers.store.step import StepRecord
from pylayers.store.store import FOLDERS
from tests.unit.store_sample import add_layer, digest, make_table, make_tar


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Store.open(tmp_path / "root") as opened:
        yield opened


def kinds(store: Store, *, repair: bool = False) -> list[tuple[str, bool]]:
    return [(problem.kind, problem.repaired) for problem in store.check(repair=repair)]


def test_layout_and_modes(store: Store) -> None:
    assert sorted(os.listdir(store.root)) == sorted(FOLDERS)
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o711
    for name, mode in FOLDERS.items():
        assert stat.S_IMODE((store.root / name).stat().st_mode) == mode, name
    assert Path(store.directory("overlay2")).is_dir()
    for name in ("", "..", "a/b", ".hidden"):
        with pytest.raises(InvalidInput):
            store.directory(name)


@pytest.mark.parametrize("left", [False, True])
def test_a_closed_store_leaves_no_scratch(tmp_path: Path, left: bool) -> None:
    with Store.open(tmp_path) as store:
        path = store.scratch("some")
        if left:
            (path / "deep").mkdir(parents=True)
            (path / "deep" / "file").touch()
        assert [name for name in os.listdir(tmp_path / "tmp") if name.startswith("work-")] == [path.parent.name]
    assert [name for name in os.listdir(tmp_path / "tmp") if not name.endswith(".lock")] == []


def test_a_newer_root_is_refused_and_not_touched(tmp_path: Path) -> None:
    root = tmp_path / "root"
    Store.open(root).close()
    (root / "image" / "version").write_text("3\n")
    (root / "tmp" / "work-theirs").mkdir()
    before = sorted(str(path) for path in root.rglob("*"))
    with pytest.raises(Unsupported, match="version 3"):
        Store.open(root)
    assert sorted(str(path) for path in root.rglob("*")) == before


def test_a_root_of_version_1_becomes_one_of_2(tmp_path: Path) -> None:
    """Layers of version 1 are whole tars, which 2 has as well; spliced ones would be holes to who knows 1 alone."""
    root = tmp_path / "root"
    with Store.open(root) as store:
        layer = add_layer(store, b"content")
    (root / "image" / "version").write_text("1\n")
    with Store.open(root) as store:
        store.layers.verify(layer.diff_id)
    assert (root / "image" / "version").read_text() == "2\n"


@pytest.mark.parametrize("stranger", ["engine-id", "image/overlay2", "notes.txt"])
def test_a_directory_with_other_things_is_refused_and_not_touched(tmp_path: Path, stranger: str) -> None:
    (tmp_path / stranger).parent.mkdir(exist_ok=True)
    (tmp_path / stranger).write_text("x")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(InvalidInput, match="not a pylayers data root"):
        Store.open(tmp_path)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_an_empty_directory_becomes_a_root(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    Store.open(tmp_path).close()
    Store.open(tmp_path).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file system that root cannot write")
def test_an_unwritable_place_is_named() -> None:
    with pytest.raises(PylayersError, match="open the data root"):
        Store.open(Path("/proc/pylayers"))


def test_a_damaged_blob_is_removed(store: Store) -> None:
    name = store.blobs.put(b"content")
    Path(store.blobs.path(name)).write_bytes(b"damaged")
    assert kinds(store) == [("blob", False)]
    assert store.blobs.exists(name)
    assert kinds(store, repair=True) == [("blob", True)]
    assert kinds(store) == []


def test_a_damaged_tar_takes_its_layer_and_steps_with_it(store: Store) -> None:
    layer = add_layer(store, b"content")
    store.metadata.steps.put(StepRecord(key="k", partial_key="p", kind="run", diff_id=layer.diff_id))
    Path(layer.tar_path).write_bytes(b"CONTENT")
    assert kinds(store, repair=True) == [("layer", True), ("step", True)]
    assert not store.layers.exists(layer.diff_id)
    assert kinds(store) == []


def test_a_damaged_index_is_made_again_from_the_tar(store: Store) -> None:
    pytest.importorskip("pylayers._native.tarscan")
    files = {"a": b"alpha", "d/b": b"beta" * 1000}
    layer = add_layer(store, make_tar(files), make_table(b"wrong"))
    index = Path(layer.tar_path).with_name("layer.idx")
    content = bytearray(index.read_bytes())
    content[300] ^= 1
    index.write_bytes(content)
    assert kinds(store) == [("layer", False)]
    assert kinds(store, repair=True) == [("layer", True)]
    assert kinds(store) == []
    table = store.layers.open(layer.diff_id).table
    assert [table.path(row) for row in table] == [b"", b"a", b"d", b"d/b"]
    for row in table:
        if stat.S_ISREG(row.mode):
            assert row.flags & FLAG_HASHED
            assert row.blake3 == blake3(files[table.path(row).decode()]).digest()


def test_an_index_that_cannot_be_made_again_is_reported_as_such(store: Store) -> None:
    pytest.importorskip("pylayers._native.tarscan")
    layer = add_layer(store, b"not a tar" * 100)
    Path(layer.tar_path).with_name("layer.idx").write_bytes(b"")
    assert kinds(store, repair=True) == [("layer", False)]


def test_missing_content_of_images_is_reported(store: Store) -> None:
    store.metadata.images.add(ImageRecord(digest(b"m"), digest(b"c"), (digest(b"l"),), 1, 1))
    store.metadata.references.set("docker.io/library/a:b", digest(b"m"))
    assert kinds(store, repair=True) == [("image", False)] * 3 + [("reference", False)]


def test_mirrors_follow_the_database(store: Store) -> None:
    manifest = store.blobs.put(b"{}")
    store.metadata.references.set("docker.io/library/a:b", manifest)
    store.metadata.references.set("docker.io/library/c:d", manifest)
    container = ContainerRecord("ab" * 32, "c", manifest, None, 9)
    store.metadata.containers.add(container)
    references = store.metadata.references.mirror
    os.unlink(references.path("docker.io/library/a:b"))
    references.write("docker.io/library/c:d", {"name": "docker.io/library/c:d", "digest": digest(b"old")})
    references.write("docker.io/library/gone:1", {"name": "docker.io/library/gone:1", "digest": manifest})
    Path(store.metadata.containers.mirror.path(container.id)).write_bytes(b"{torn")
    (Path(references.directory) / ".left-behind").write_bytes(b"")
    assert sorted(kinds(store)) == [("file", False)] + [("record", False)] * 4
    assert all(repaired for _, repaired in kinds(store, repair=True))
    assert kinds(store) == []
    store.rebuild()
    assert dict(store.metadata.references.walk()) == {
        "docker.io/library/a:b": manifest,
        "docker.io/library/c:d": manifest,
    }
    assert store.metadata.containers.get(container.id) == container


def test_rebuild_brings_back_all_but_the_cache(store: Store) -> None:
    layer = add_layer(store, b"x")
    manifest = store.blobs.put(b"{}")
    metadata = store.metadata
    metadata.images.add(ImageRecord(manifest, manifest, (layer.diff_id,), 3, 4))
    metadata.references.set("docker.io/library/a:b", manifest)
    chain_id = metadata.chains.add_stack([layer.diff_id])
    metadata.containers.add(ContainerRecord("ab" * 32, "c", manifest, chain_id, 9))
    metadata.containers.rename("ab" * 32, "renamed")
    metadata.steps.put(StepRecord(key="k", partial_key="p", kind="run", diff_id=layer.diff_id))

    def everything() -> list[object]:
        walks = (metadata.references, metadata.images, metadata.containers, metadata.chains)
        return [list(relation.walk()) for relation in walks]  # type: ignore[attr-defined]

    before = everything()
    metadata.close()
    for path in (store.root / "image").glob("metadata.db*"):
        path.unlink()
    store.rebuild()
    assert everything() == before
    assert list(metadata.steps.walk()) == []
    assert kinds(store) == []


def test_rebuild_needs_the_root_for_itself(store: Store) -> None:
    with Store.open(store.root), pytest.raises(Conflict, match="another process"):
        store.rebuild()
    with store.lease("x"), pytest.raises(Conflict, match="lease"):
        store.rebuild()
    store.rebuild()


@pytest.mark.parametrize("times", [1, 2, 9])
def test_a_repair_while_another_process_writes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Its file is taken for what a dead process left: it writes it again, unless that goes on for ever."""
    layer = add_layer(store, b"content")
    path = tmp_path / "folder" / "name.json"
    path.parent.mkdir()
    original, left = os.rename, times

    def rename(source: str, target: str) -> None:
        nonlocal left
        if left and os.path.basename(source).startswith("."):
            left -= 1
            os.unlink(source)
        original(source, target)

    monkeypatch.setattr(os, "rename", rename)
    if times > 2:
        with pytest.raises(FileNotFoundError):
            write_file(path, b"content")
        assert not path.exists()
        return
    write_file(path, b"content")
    assert path.read_bytes() == b"content"
    assert os.listdir(path.parent) == [path.name]
    left = times
    assert store.layers.replace_index(layer.diff_id, layer.table, b"").table.records == layer.table.records
    assert left == 0
    store.layers.verify(layer.diff_id)


@pytest.mark.parametrize("reading", [1, 2])
def test_a_repair_sets_nothing_back_that_is_written_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch, reading: int
) -> None:
    """A build names its image while the records are compared: the name stays with the new one."""
    blobs = [store.blobs.put(b'{"config":%d}' % number) for number in range(2)]
    store.metadata.references.set("docker.io/library/a:latest", blobs[0])
    with Store.open(store.root) as other:

        def write() -> None:
            other.metadata.references.set("docker.io/library/a:latest", blobs[1])
            other.metadata.images.add(ImageRecord(blobs[1], blobs[1], (), 1, 1))

        build = threading.Thread(target=write)
        original, left = References.walk, reading

        def walk(own: References) -> list[tuple[str, str]]:
            nonlocal left
            found = list(original(own))
            left -= 1
            if not left:
                build.start()
                build.join(0.5)  # as long as it may take where nothing keeps it waiting
            return found

        with monkeypatch.context() as patch:
            patch.setattr(References, "walk", walk)
            store.check(repair=True)
        build.join()
    assert store.metadata.references.get("docker.io/library/a:latest") == blobs[1]
    assert store.check() == []
