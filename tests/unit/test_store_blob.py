from __future__ import annotations

import os
from pathlib import Path

import pytest

from pylayers.errors import IntegrityError, InvalidInput, NotFound
from pylayers.store import Store
from tests.unit.store_sample import digest


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Store.open(tmp_path / "root") as opened:
        yield opened


def scratch_files(store: Store) -> list[str]:
    return [name for name in os.listdir(store.scratch("x").parent) if name != "owner.lock"]


def test_put_and_read(store: Store) -> None:
    name = store.blobs.put(b"content")
    assert name == digest(b"content") == store.blobs.put(b"content")
    assert store.blobs.read(name, 7) == b"content"
    assert store.blobs.stat(name).size_bytes == 7
    assert [blob.digest for blob in store.blobs.walk()] == [name]
    with pytest.raises(InvalidInput, match="limit of 6"):
        store.blobs.read(name, 6)


def test_ingest_in_parts_is_invisible_until_commit(store: Store) -> None:
    expected = digest(b"ab" * 100_000)
    with store.blobs.ingest(expected, 200_000) as writer:
        for _ in range(100_000):
            writer.write(b"ab")
        assert not store.blobs.exists(expected)
        assert list(store.blobs.walk()) == []
        assert writer.commit() == expected
    with store.blobs.open(expected) as stream:
        assert stream.read(3) == b"aba"
        assert len(stream.read()) == 199_997
    assert scratch_files(store) == []


def test_a_dropped_ingest_leaves_nothing(store: Store) -> None:
    def fail_halfway() -> None:
        with store.blobs.ingest() as writer:
            writer.write(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert list(store.blobs.walk()) == []
    assert scratch_files(store) == []


def test_wrong_content_is_not_stored(store: Store) -> None:
    with store.blobs.ingest(digest(b"a"), 1) as writer:
        writer.write(b"b")
        with pytest.raises(IntegrityError, match="digest is"):
            writer.commit()
    with store.blobs.ingest(digest(b"ab"), 2) as writer:
        writer.write(b"a")
        with pytest.raises(IntegrityError, match="1 bytes instead of 2"):
            writer.commit()
        writer.write(b"b")
        with pytest.raises(IntegrityError, match="more than"):
            writer.write(b"c")
    assert list(store.blobs.walk()) == []


@pytest.mark.parametrize("damage", [b"contenT", b"conten", b"content!", b""])
def test_damage_is_found_on_read(store: Store, damage: bytes) -> None:
    name = store.blobs.put(b"content")
    Path(store.blobs.path(name)).write_bytes(damage)
    with pytest.raises(IntegrityError):
        store.blobs.read(name, 100)
    with store.blobs.open(name) as stream, pytest.raises(IntegrityError):
        list(iter(lambda: stream.read(2), b""))


def test_putting_again_heals_damage(store: Store) -> None:
    name = store.blobs.put(b"content")
    Path(store.blobs.path(name)).write_bytes(b"contenT")
    assert store.blobs.put(b"content") == name
    assert store.blobs.read(name, 7) == b"content"


def test_delete_and_missing(store: Store) -> None:
    name = store.blobs.put(b"x")
    store.blobs.delete(name)
    for call in (store.blobs.stat, store.blobs.delete, store.blobs.open, lambda missing: store.blobs.read(missing, 1)):
        with pytest.raises(NotFound):
            call(name)


@pytest.mark.parametrize("name", ["sha256:../../../version", "../x", "sha256:" + "A" * 64, ""])
def test_names_cannot_leave_the_directory(store: Store, name: str) -> None:
    with pytest.raises(InvalidInput):
        store.blobs.exists(name)
    with pytest.raises(InvalidInput):
        store.blobs.ingest(name or "x")
