from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pylayers.errors import IntegrityError, InvalidInput, NoSpace, NotFound
from pylayers.store import Store, index
from pylayers.store.entry import EntryTable
from tests.unit.store_sample import add_layer, digest, make_table


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Store.open(tmp_path / "root") as opened:
        yield opened


def scratch_files(store: Store) -> list[str]:
    return [name for name in os.listdir(store.scratch("x").parent) if name != "owner.lock"]


@pytest.mark.parametrize("size_bytes", [0, 1000, 3 << 20])
def test_commit_and_open(store: Store, size_bytes: int) -> None:
    content = b"t" * size_bytes
    table = make_table(b"a", b"b/c")
    layer = add_layer(store, content, table)
    again = store.layers.open(layer.diff_id)
    assert again.diff_id == digest(content)
    assert again.size_bytes == size_bytes == store.layers.size_bytes(layer.diff_id)
    assert list(again.table) == list(table)
    descriptor = again.open_tar()
    assert os.pread(descriptor, 10, 0) == content[:10]
    os.close(descriptor)
    assert list(store.layers.walk()) == [layer.diff_id]
    store.layers.verify(layer.diff_id)
    assert scratch_files(store) == []


def test_an_existing_layer_wins(store: Store) -> None:
    first = add_layer(store, b"same", make_table(b"first"))
    inode = Path(first.tar_path).stat().st_ino
    second = add_layer(store, b"same", make_table(b"second"))
    assert second.table.path(second.table.entry(1)) == b"first"
    assert Path(second.tar_path).stat().st_ino == inode
    assert scratch_files(store) == []


def test_a_layer_that_appears_between_two_looks_is_not_taken_for_damaged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two builds that make one layer: a commit once deleted what the other had made in that moment."""
    first = add_layer(store, b"same")
    place = Path(first.tar_path).parent
    inode = Path(first.tar_path).stat().st_ino
    aside = place.with_name("aside")
    place.rename(aside)
    real = index.open_index

    def appear(path: Path) -> object:
        if aside.exists():
            aside.rename(place)
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path)

    monkeypatch.setattr(index, "open_index", appear)
    assert os.stat(add_layer(store, b"same").tar_path).st_ino == inode
    assert not aside.exists()


def test_a_damaged_existing_layer_is_replaced(store: Store) -> None:
    first = add_layer(store, b"same")
    (Path(first.tar_path).parent / "layer.idx").write_bytes(b"")
    second = add_layer(store, b"same")
    store.layers.verify(second.diff_id)


def test_nothing_is_visible_before_commit_and_nothing_left_without(store: Store) -> None:
    with store.layers.ingest() as writer:
        os.write(writer.fd, b"x")
        assert list(store.layers.walk()) == []
    assert scratch_files(store) == []
    with pytest.raises(InvalidInput, match="once"):
        writer.commit(b"", b"", 1, digest(b"x"))


def test_commit_does_not_believe_sizes(store: Store) -> None:
    with store.layers.ingest() as writer:
        os.write(writer.fd, b"xyz")
        with pytest.raises(IntegrityError, match="3 bytes were written instead of 4"):
            writer.commit(b"", b"", 4, digest(b"xyz"))
        with pytest.raises(InvalidInput, match="inside a record"):
            writer.commit(b"1", b"", 3, digest(b"xyz"))
        with pytest.raises(InvalidInput, match="not a digest"):
            writer.commit(b"", b"", 3, "xyz")
    assert list(store.layers.walk()) == []


@pytest.mark.parametrize(("name", "method"), [("layer.tar", "verify_tar"), ("layer.idx", "verify_index")])
def test_verify_finds_a_flipped_byte(store: Store, name: str, method: str) -> None:
    layer = add_layer(store, b"content")
    path = Path(layer.tar_path).with_name(name)
    content = bytearray(path.read_bytes())
    content[-1 if name == "layer.tar" else 200] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError):
        getattr(store.layers, method)(layer.diff_id)
    with pytest.raises(IntegrityError):
        store.layers.verify(layer.diff_id)


def test_open_notices_a_tar_of_another_size_and_a_missing_file(store: Store) -> None:
    layer = add_layer(store, b"content")
    os.truncate(layer.tar_path, 3)
    with pytest.raises(IntegrityError, match="3 bytes"):
        store.layers.open(layer.diff_id)
    Path(layer.tar_path).unlink()
    with pytest.raises(IntegrityError, match="missing"):
        store.layers.open(layer.diff_id)


def test_open_notices_another_layers_index(store: Store) -> None:
    one, two = add_layer(store, b"one"), add_layer(store, b"two")
    (Path(one.tar_path).parent / "layer.idx").write_bytes((Path(two.tar_path).parent / "layer.idx").read_bytes())
    with pytest.raises(IntegrityError, match="its index is of"):
        store.layers.open(one.diff_id)


def test_delete(store: Store) -> None:
    layer = add_layer(store, b"x")
    store.layers.delete(layer.diff_id)
    assert not store.layers.exists(layer.diff_id)
    assert len(layer.table) == 3  # still mapped
    for call in (store.layers.open, store.layers.delete, store.layers.verify, store.layers.size_bytes):
        with pytest.raises(NotFound):
            call(layer.diff_id)


def test_chunks_can_be_added_later(store: Store) -> None:
    layer = add_layer(store, b"x")
    chunks = b"c" * 48
    again = store.layers.replace_index(layer.diff_id, EntryTable(layer.table.records, layer.table.heap), chunks)
    assert bytes(again.chunks) == chunks
    assert list(again.table) == list(layer.table)
    store.layers.verify(layer.diff_id)
    assert sorted(os.listdir(Path(layer.tar_path).parent)) == ["layer.idx", "layer.tar"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", root], check=True)
    try:
        with Store.open(root) as store:
            with store.blobs.ingest() as blob, pytest.raises(NoSpace):
                blob.write(b"x" * (2 << 20))
            with store.layers.ingest() as writer:
                os.write(writer.fd, b"x")
                with pytest.raises(NoSpace):
                    writer.commit(bytes(168 * 10_000), b"", 1, digest(b"x"))
            assert list(store.layers.walk()) == []
            assert list(store.blobs.walk()) == []
            assert scratch_files(store) == []
    finally:
        subprocess.run(["umount", root], check=True)


def test_importing_and_opening_stay_light(store: Store) -> None:
    layer = add_layer(store, b"x")
    script = (
        "import sys; from pathlib import Path; from pylayers.store import Store\n"
        "heavy = {'numpy', 'sqlite3', 'json', 'blake3', 'tempfile', 'subprocess', 'asyncio'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "store = Store.open(Path(sys.argv[1])); assert len(store.layers.open(sys.argv[2]).table) == 3\n"
        "store.stat_cache.load('x')\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "store.close()\n"
    )
    command = [sys.executable, "-c", script, str(store.root), layer.diff_id]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
