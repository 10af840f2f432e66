"""A layer compressed for a push: proved by its states or by its whole digest, and never pushed when it has rotted."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from pylayers._native.sha256 import Sha256, is_fast
from pylayers.errors import IntegrityError, NoSpace
from pylayers.store import Layer, Store
from pylayers.store.proof import DisprovedError, TarProof, new_hasher, update_both
from pylayers.store.state import EVERY_BYTES, STATES_NAME, pack_states
from pylayers.transfer import compress
from pylayers.transfer.compress import compress_file, compress_layer
from pylayers.transfer.packer import UNIT_BYTES
from tests.unit.store_sample import digest, make_table

SIZES = (
    2 * UNIT_BYTES,
    2 * UNIT_BYTES + 1,
    3 * UNIT_BYTES + EVERY_BYTES,
    3 * UNIT_BYTES + EVERY_BYTES + 77,
    9 * UNIT_BYTES - 64,
)
CONTENT = b"".join(random.Random(1).randbytes(5000) + bytes(9000) for _ in range(9 * UNIT_BYTES // 14000 + 1))
needs_states = pytest.mark.skipif(not is_fast(), reason="this processor has no SHA instructions, so no states are kept")


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Store.open(tmp_path / "root") as opened:
        yield opened


def list_states(content: bytes) -> bytes:
    hasher = Sha256(EVERY_BYTES)
    hasher.update(content)
    return hasher.states


def add_layer(store: Store, content: bytes, states: bytes) -> Layer:
    table = make_table(b"a")
    with store.layers.ingest() as writer:
        os.write(writer.fd, content)
        return writer.commit(table.records, table.heap, len(content), digest(content), states=states)


def find_proof(content: bytes) -> TarProof:
    proof = TarProof.find(list_states(content), len(content), digest(content))
    assert proof is not None
    return proof


def flip(path: Path, offset_bytes: int) -> None:
    """Change one bit of a file, as a disk may."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset_bytes)
        [byte] = file.read(1)
        file.seek(offset_bytes)
        file.write(bytes([byte ^ 1]))


def scratch(store: Store) -> list[str]:
    return [path.name for path in (store.root / "tmp").rglob("packed*")]


@needs_states
@pytest.mark.parametrize("size_bytes", SIZES)
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_proved_file_gives_the_same_as_a_hashed_one(tmp_path: Path, size_bytes: int, compression: str) -> None:
    content = CONTENT[:size_bytes]
    (tmp_path / "tar").write_bytes(content)
    made = []
    for proof, threads in ((None, 2), (find_proof(content), 1), (find_proof(content), 2)):
        out: list[bytes] = []
        with (tmp_path / "tar").open("rb") as file:
            made.append((compress_file(file.fileno(), out.append, compression, None, threads, proof), b"".join(out)))
        assert made[-1] == made[0]
    assert made[0][0].plain_digest == digest(content)
    assert made[0][0].digest == digest(made[0][1])


@needs_states
@pytest.mark.parametrize("size_bytes", SIZES)
def test_every_flipped_bit_is_found(size_bytes: int) -> None:
    """At both ends of every piece between two states, one after the other."""
    content = bytearray(CONTENT[:size_bytes])
    proof = find_proof(bytes(content))

    def verify() -> None:
        for at in range(0, size_bytes, UNIT_BYTES):
            proof.verify(at, memoryview(content)[at : at + UNIT_BYTES])

    verify()
    for place in sorted({one for at in range(0, size_bytes, EVERY_BYTES) for one in (at, at - 1)} | {size_bytes - 1}):
        content[place] ^= 1
        with pytest.raises(DisprovedError):
            verify()
        content[place] ^= 1
    verify()


@needs_states
def test_no_proof_holds_for_another_digest_or_another_length() -> None:
    content = CONTENT[: 2 * UNIT_BYTES]
    states = list_states(content)
    other = TarProof.find(states, len(content), digest(b"other"))
    assert other is not None
    other.verify(0, memoryview(content)[:UNIT_BYTES])
    with pytest.raises(DisprovedError):  # all states are right, and the last doesn't lead there
        other.verify(UNIT_BYTES, memoryview(content)[UNIT_BYTES:])
    proof = find_proof(content)
    for offset, part in ((0, content[:-1]), (1, content[1:]), (UNIT_BYTES, content[UNIT_BYTES:] + bytes(EVERY_BYTES))):
        with pytest.raises(DisprovedError):
            proof.verify(offset, memoryview(part))
    for wrong in (None, b"", states[:-32], states + bytes(32)):
        assert TarProof.find(wrong, len(content), digest(content)) is None


@needs_states
@pytest.mark.parametrize("change_bytes", [-UNIT_BYTES, -EVERY_BYTES, -1, 1, EVERY_BYTES, UNIT_BYTES])
def test_a_file_of_another_length_is_not_proved(tmp_path: Path, change_bytes: int) -> None:
    content = CONTENT[: 4 * UNIT_BYTES]
    (tmp_path / "tar").write_bytes(CONTENT[: 4 * UNIT_BYTES + change_bytes])
    with (tmp_path / "tar").open("rb") as file, pytest.raises(DisprovedError):
        compress_file(file.fileno(), lambda piece: None, "zstd", None, 2, find_proof(content))


@needs_states
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("keep_states", [True, False])
def test_a_layer_that_has_rotted_is_not_pushed(store: Store, compression: str, keep_states: bool) -> None:
    size = 3 * UNIT_BYTES + 1000
    content = CONTENT[:size]
    layer = add_layer(store, content, list_states(content) if keep_states else b"")
    good = compress_layer(store, layer.diff_id, compression, None)
    assert isinstance(good[1].content, Path)
    assert digest(good[1].content.read_bytes()) == good[0].digest
    good[1].content.unlink()
    for place in (0, EVERY_BYTES, 2 * UNIT_BYTES - 1, size - 1):
        flip(Path(layer.tar_path), place)
        rotten = hashlib.sha256(Path(layer.tar_path).read_bytes()).hexdigest()
        with pytest.raises(IntegrityError, match=f"layer {layer.diff_id}: its tar's digest is sha256:{rotten}"):
            compress_layer(store, layer.diff_id, compression, None)
        assert scratch(store) == []
        flip(Path(layer.tar_path), place)
    assert compress_layer(store, layer.diff_id, compression, None)[0] == good[0]


@needs_states
def test_wrong_states_cost_time_and_nothing_else(store: Store) -> None:
    content = CONTENT[: 3 * UNIT_BYTES]
    layer = add_layer(store, content, list_states(content))
    good = compress_layer(store, layer.diff_id, "zstd", None)[0]
    path = Path(layer.tar_path).with_name(STATES_NAME)
    wrong = bytearray(list_states(content))
    wrong[70] ^= 1
    path.write_bytes(pack_states(bytes(wrong), layer.diff_id.removeprefix("sha256:")))  # with a checksum that is right
    assert compress_layer(store, layer.diff_id, "zstd", None)[0] == good
    path.write_bytes(b"torn")
    assert compress_layer(store, layer.diff_id, "zstd", None)[0] == good
    path.unlink()
    assert compress_layer(store, layer.diff_id, "zstd", None)[0] == good


def test_a_full_disk_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = add_layer(store, CONTENT[: 2 * UNIT_BYTES], b"")

    def refuse(descriptor: int, piece: bytes) -> None:
        os.write(descriptor, piece[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compress, "write_all", refuse)
    with pytest.raises(NoSpace):
        compress_layer(store, layer.diff_id, "zstd", None)
    assert scratch(store) == []


def test_both_hashes_are_hashlibs_where_the_processor_has_no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pylayers.store.proof.sha256.is_fast", lambda: False)
    pair = new_hasher(), new_hasher()
    for at in range(0, 5_000_000, 1 << 20):
        update_both(pair[0], CONTENT[at : at + (1 << 20)], pair[1], CONTENT[at : at + 1000])
    assert isinstance(pair[0], type(hashlib.sha256()))
    assert pair[0].digest() == hashlib.sha256(CONTENT[: 5 << 20]).digest()
    assert pair[1].digest() == hashlib.sha256(b"".join(CONTENT[at << 20 :][:1000] for at in range(5))).digest()
    assert TarProof.find(list_states(CONTENT[:UNIT_BYTES]), UNIT_BYTES, digest(CONTENT[:UNIT_BYTES])) is None


def test_other_programs_read_frames_one_after_another(tmp_path: Path) -> None:
    """More frames than threads, and a short one at the end."""
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    (tmp_path / "tar").write_bytes(CONTENT)
    with (tmp_path / "tar").open("rb") as file, (tmp_path / "packed").open("wb") as out:
        compress_file(file.fileno(), out.write, "zstd")
    done = subprocess.run(["zstd", "-dqc", str(tmp_path / "packed")], capture_output=True, check=True)
    assert done.stdout == CONTENT
