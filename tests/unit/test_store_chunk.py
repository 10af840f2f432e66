"""Layers cut into chunks: coverage, sharing between layers, and that the index stays valid."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from pathlib import Path

import pytest
from blake3 import blake3

from pylayers.oci.digest import digest_from_hex
from pylayers.store import Store, chunk
from pylayers.store.chunk import MAX_BYTES, chunk_layer, read_chunks
from pylayers.store.layer import Layer
from pylayers.store.tarindex import index_tar


def store_files(store: Store, files: dict[str, bytes]) -> Layer:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    packed = held.getvalue()
    with store.layers.ingest() as writer:
        with open(writer.fd, "wb", closefd=False) as stream:
            stream.write(packed)
        records, heap = index_tar(writer.fd, len(packed), "test")
        return writer.commit(records, heap, len(packed), digest_from_hex(hashlib.sha256(packed).hexdigest()))


def test_chunks_cover_every_file_and_hash_their_bytes(tmp_path: Path) -> None:
    large = random.Random(1).randbytes(5_000_000)
    files = {"empty": b"", "small": b"hello", "large": large}
    with Store.open(tmp_path / "root") as store:
        layer = store_files(store, files)
        assert not len(layer.chunks)
        layer = chunk_layer(store, layer.diff_id)
        tar = Path(layer.tar_path).read_bytes()
        chunks = list(read_chunks(layer))
        found: dict[str, bytes] = {}
        for entry in layer.table:
            own = chunks[entry.chunk_first : entry.chunk_first + entry.chunk_count]
            found[layer.table.path(entry).decode()] = b"".join(tar[c.offset : c.offset + c.size_bytes] for c in own)
        assert {name: found[name] for name in files} == files
        assert all(blake3(tar[c.offset : c.offset + c.size_bytes]).digest() == c.blake3 for c in chunks)
        assert max(c.size_bytes for c in chunks) <= MAX_BYTES
        assert len(chunks) > 5
        store.layers.verify(layer.diff_id)
        assert chunk_layer(store, layer.diff_id).chunks == layer.chunks  # kept, not cut again


def test_a_changed_file_keeps_most_chunks_of_its_old_self(tmp_path: Path) -> None:
    content = random.Random(2).randbytes(8_000_000)
    changed = content[:4_000_000] + b"inserted" + content[4_000_000:]
    with Store.open(tmp_path / "root") as store:
        before = chunk_layer(store, store_files(store, {"a": content}).diff_id)
        after = chunk_layer(store, store_files(store, {"zz/other/name": changed}).diff_id)
        known = {chunk.blake3 for chunk in read_chunks(before)}
        fresh = sum(chunk.size_bytes for chunk in read_chunks(after) if chunk.blake3 not in known)
        assert 0 < fresh < len(content) / 4


@pytest.mark.parametrize("kind", ["random", "repeating", "zeros", "mixed", "short lines"])
@pytest.mark.parametrize("segment_bytes", [3 << 20, (1 << 20) + 1, 2_500_000])
def test_segments_have_the_cuts_of_the_whole(kind: str, segment_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(9)
    content = {
        "random": lambda: chance.randbytes(21_000_001),
        "repeating": lambda: chance.randbytes(100_003) * 200,
        "zeros": lambda: bytes(12 << 20),
        "mixed": lambda: b"".join(chance.randbytes(700_000) + bytes(900_000) for _ in range(12)),
        "short lines": lambda: b"".join(b"%d line\n" % (number % 977) for number in range(1_500_000)),
    }[kind]()
    whole = chunk.chunk_content(memoryview(content), 1)
    monkeypatch.setattr(chunk, "SEGMENT_BYTES", segment_bytes)
    for threads in (2, 3):
        assert chunk.chunk_content(memoryview(content), threads) == whole
