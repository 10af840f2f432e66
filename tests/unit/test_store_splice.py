"""Layers that begin as another's do: by a base beside a hole, by a clone, filled, checked, deleted, interrupted."""

from __future__ import annotations

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pylayers.errors import IntegrityError, InvalidInput, NoSpace, NotFound
from pylayers.store import Layer, Store
from pylayers.store.splice import base_name, find_base, read_range, share_beginning
from pylayers.store.state import EVERY_BYTES, STATES_NAME, pack_states, read_states
from tests.unit.store_sample import add_layer, digest, make_table, make_tar
from tests.unit.test_store_crash import assert_tidy, crash_everywhere

END = 3 * 4096 + 512
FIRST = os.urandom(END) + b"first" * 2000
SECOND = FIRST[:END] + b"another second" * 1000


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Store.open(tmp_path / "root") as opened:
        yield opened


def add_spliced(store: Store, earlier: Layer, content: bytes, end_bytes: int) -> Layer:
    """Ingest a layer that shares end_bytes with an earlier one and writes the rest."""
    table = make_table(b"a", b"b/c")
    start = end_bytes // 4096 * 4096
    with store.layers.ingest() as writer:
        assert writer.share(earlier, end_bytes)
        os.pwrite(writer.fd, content[start:], start)
        return writer.commit(table.records, table.heap, len(content), digest(content))


def read_tar(layer: Layer) -> bytes:
    """Read a layer's tar as every reader does, which fills it."""
    descriptor = layer.open_tar()
    with open(descriptor, "rb") as file:
        return file.read()


def names(layer: Layer) -> set[str]:
    return set(os.listdir(Path(layer.tar_path).parent))


def test_a_base_holds_the_beginning_until_somebody_needs_one_file(store: Store) -> None:
    first = add_layer(store, FIRST)
    second = add_spliced(store, first, SECOND, END)
    base = second.base
    assert base is not None
    assert (base.start_bytes, base.end_bytes) == (END - 512, END)
    assert Path(base.path).samefile(first.tar_path)
    assert second.size_bytes == Path(second.tar_path).stat().st_size == len(SECOND)
    assert Path(second.tar_path).read_bytes()[: base.start_bytes] == bytes(base.start_bytes)
    store.layers.verify(second.diff_id)
    assert names(second) == {"layer.tar", "layer.idx", base_name(END)}  # verifying changes nothing
    assert read_tar(second) == SECOND
    assert names(second) == {"layer.tar", "layer.idx"}
    assert store.layers.open(second.diff_id).base is None
    assert read_tar(second) == SECOND  # the object that was opened before still says base
    store.layers.verify(second.diff_id)
    assert store.check() == []


def test_the_base_outlives_the_layer_that_it_came_from(store: Store) -> None:
    first = add_layer(store, FIRST)
    second = add_spliced(store, first, SECOND, END)
    store.layers.delete(first.diff_id)
    store.layers.verify(second.diff_id)
    third = SECOND[: END - 512] + b"third"
    made = add_spliced(store, second, third, END - 512)  # of a base that the earlier layer has itself
    store.layers.delete(second.diff_id)
    assert made.base is not None
    assert read_tar(made) == third
    assert store.check() == []


def test_an_earlier_layer_that_holds_it_in_two_files_is_refused(store: Store) -> None:
    second = add_spliced(store, add_layer(store, FIRST), SECOND, END)
    with store.layers.ingest() as writer, pytest.raises(InvalidInput, match="has a base of 12800 bytes"):
        writer.share(second, END + 512)


def test_a_damaged_base_is_found_and_the_layer_removed_by_a_repair(store: Store) -> None:
    first = add_layer(store, FIRST)
    second = add_spliced(store, first, SECOND, END)
    with Path(first.tar_path).open("r+b") as file:
        file.write(b"rot")
    for layer in (first, second):
        with pytest.raises(IntegrityError, match="digest is"):
            store.layers.verify(layer.diff_id)
    assert {problem.subject for problem in store.check(repair=True)} == {first.diff_id, second.diff_id}
    assert store.check() == []


def test_a_base_that_was_removed_by_hand_is_an_integrity_error(store: Store) -> None:
    second = add_spliced(store, add_layer(store, FIRST), SECOND, END)
    assert second.base is not None
    Path(second.base.path).unlink()
    with pytest.raises(IntegrityError, match="digest is"):
        store.layers.verify(second.diff_id)


def test_an_index_is_made_again_from_both_files(store: Store) -> None:
    content = make_tar({"a": b"x" * 50000})
    first = add_layer(store, content)
    second = make_tar({"a": b"x" * 50000, "b": b"y" * 9000})
    end = 512 + 50176  # a header and its data
    assert content[:end] == second[:end] != bytes(end)
    layer = add_spliced(store, first, second, end)
    Path(layer.tar_path).with_name("layer.idx").write_bytes(b"")
    (problem,) = [found for found in store.check(repair=True) if found.subject == layer.diff_id]
    assert problem.repaired
    table = store.layers.open(layer.diff_id).table
    assert table.path(table.entry(len(table) - 1)) == b"b"


def test_another_file_system_cannot_share(store: Store, tmp_path: Path) -> None:
    first = add_layer(store, FIRST)
    elsewhere = Path("/dev/shm") / f"pylayers-{os.getpid()}"
    elsewhere.mkdir()
    try:
        if elsewhere.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("/dev/shm is not a file system of its own")
        with (elsewhere / "tar").open("w+b") as file:
            assert not share_beginning(first.tar_path, file.fileno(), elsewhere, END)
            assert find_base(elsewhere) is None
    finally:
        shutil.rmtree(elsewhere)


@pytest.mark.parametrize("step", ["share", "fill"])
def test_killed_at_any_moment(tmp_path: Path, step: str) -> None:
    root = tmp_path / "root"
    with Store.open(root) as store:
        first = add_layer(store, FIRST)
        second = add_spliced(store, first, SECOND, END) if step == "fill" else None

    def operation() -> None:
        store = Store.open(root)
        store.lease("test")
        if step == "share":
            add_spliced(store, store.layers.open(first.diff_id), SECOND, END)
        else:
            read_tar(store.layers.open(digest(SECOND)))

    def inspect(finished: bool) -> None:
        with Store.open(root) as store:
            if second is not None or finished:
                store.layers.verify(digest(SECOND))
            if second is not None and finished:
                assert store.layers.open(digest(SECOND)).base is None
        assert_tidy(root)

    assert crash_everywhere(operation, inspect) > 3


def test_states_are_kept_and_nothing_but_theirs_is_believed(store: Store) -> None:
    table = make_table(b"a")
    content = b"tar"
    states = os.urandom(64)
    with store.layers.ingest() as writer:
        os.write(writer.fd, content)
        layer = writer.commit(table.records, table.heap, 3, digest(content), states=states)
    assert store.layers.read_states(layer.diff_id) == states
    path = Path(layer.tar_path).with_name(STATES_NAME)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:40], b"x" + whole[1:], whole[:70] + b"\xff" + whole[71:]):
        path.write_bytes(damaged)
        assert store.layers.read_states(layer.diff_id) is None
    path.write_bytes(pack_states(states, digest(b"other").removeprefix("sha256:")))
    assert store.layers.read_states(layer.diff_id) is None  # of another tar
    path.unlink()
    assert store.layers.read_states(layer.diff_id) is None


def test_the_file_of_states_is_what_it_was(tmp_path: Path) -> None:
    """Persisted: docs/internals/spliced-layer.md."""
    assert EVERY_BYTES == 4194304
    golden = Path(__file__).parents[1] / "corpus" / "golden" / "layer.states"
    assert pack_states(bytes(range(64)), "ab" * 32) == golden.read_bytes()
    assert read_states(golden, "ab" * 32) == bytes(range(64))


def test_a_root_that_was_copied_without_its_holes(store: Store) -> None:
    """rsync without -S writes zeros where the hole was, without -H makes a file of the base's link."""
    second = add_spliced(store, add_layer(store, FIRST), SECOND, END)
    assert second.base is not None
    with Path(second.tar_path).open("r+b") as tar:
        tar.write(bytes(second.base.start_bytes))
    copy = Path(second.base.path).with_name("copy")
    shutil.copyfile(second.base.path, copy)
    os.rename(copy, second.base.path)
    store.layers.verify(second.diff_id)
    assert store.check() == []
    assert store.layers.stored_bytes(second.diff_id, set()) == len(SECOND) - second.base.start_bytes + len(FIRST)
    assert read_tar(store.layers.open(second.diff_id)) == SECOND


def test_the_earlier_layer_is_filled_before_its_base_is_shared(store: Store) -> None:
    """By another process, between its opening and the link."""
    first = add_layer(store, FIRST)
    second = add_spliced(store, first, SECOND, END)
    assert read_tar(store.layers.open(second.diff_id)) == SECOND
    assert second.base is not None  # as it was opened
    third = SECOND[: END - 512] + b"third"
    made = add_spliced(store, second, third, END - 512)
    assert made.base is not None
    assert Path(made.base.path).samefile(second.tar_path)
    store.layers.verify(made.diff_id)


@pytest.mark.parametrize("missing", ["open", "link"])
def test_a_base_that_goes_while_it_is_shared(store: Store, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    second = add_spliced(store, add_layer(store, FIRST), SECOND, END)
    assert second.base is not None
    third = SECOND[: END - 512] + b"third"
    original = getattr(os, missing)

    def step(path: object, *rest: object, **named: object) -> object:
        if str(path) == str(second.base.path):  # type: ignore[union-attr]
            monkeypatch.setattr(os, missing, original)
            second.make_whole()
        return original(path, *rest, **named)

    monkeypatch.setattr(os, missing, step)
    made = add_spliced(store, second, third, END - 512)
    assert made.base is not None
    assert Path(made.base.path).samefile(second.tar_path)
    store.layers.verify(made.diff_id)


def test_the_earlier_layer_goes_before_it_is_shared(store: Store) -> None:
    first = add_layer(store, FIRST)
    store.layers.delete(first.diff_id)
    with pytest.raises(NotFound):
        add_spliced(store, first, SECOND, END)


def test_a_base_that_ends_too_early_is_not_read_on_in_the_hole(store: Store) -> None:
    """Neither hashed as zeros, nor dropped as if it had been copied."""
    first = add_layer(store, FIRST)
    second = add_spliced(store, first, SECOND, END)
    os.truncate(first.tar_path, END - 1024)
    assert sum(map(len, read_range(second.tar_path, second.base, 0, second.size_bytes))) == END - 1024
    with pytest.raises(IntegrityError, match="digest is"):
        store.layers.verify(second.diff_id)
    with pytest.raises(IntegrityError, match="ends too early"):
        second.open_tar()
    assert store.layers.open(second.diff_id).base is not None


def test_the_page_that_both_files_hold_is_the_same_in_both(store: Store) -> None:
    second = add_spliced(store, add_layer(store, FIRST), SECOND, END)
    store.layers.verify(second.diff_id)
    with Path(second.tar_path).open("r+b") as tar:
        tar.seek(END - 1)
        tar.write(bytes([SECOND[END - 1] ^ 1]))
    with pytest.raises(IntegrityError, match="does not go on as its base does"):
        store.layers.verify(second.diff_id)


def test_a_layer_made_again_with_another_base_is_filled_from_that(store: Store) -> None:
    """Who opened the whole one that was removed, or one with another base, reads no hole."""
    first = add_layer(store, FIRST)
    whole = add_layer(store, SECOND)
    for stale, end in ((whole, END), (None, END - 4096), (None, END)):
        opened = stale or store.layers.open(whole.diff_id)
        store.layers.delete(whole.diff_id)
        assert add_spliced(store, first, SECOND, end).base is not None
        assert opened.base is None or opened.base.end_bytes != end
        assert read_tar(opened) == SECOND
        store.layers.delete(whole.diff_id)
        assert add_spliced(store, first, SECOND, END if stale else end).base is not None


def test_a_fill_that_fails_gives_back_what_it_took(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk does not stay full because somebody tried."""
    second = add_spliced(store, add_layer(store, FIRST), SECOND, END)
    blocks = Path(second.tar_path).stat().st_blocks
    failed = []

    def fail(descriptor: int) -> None:
        failed.append(os.fstat(descriptor).st_blocks)
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(NoSpace):
            second.open_tar()
    assert failed
    assert Path(second.tar_path).stat().st_blocks <= blocks
    assert Path(second.tar_path).read_bytes()[: END - 512] == bytes(END - 512)
    store.layers.verify(second.diff_id)
    assert read_tar(second) == SECOND


def test_many_fill_at_once(store: Store) -> None:
    """One copies, and no other reads before that is done."""
    second = add_spliced(store, add_layer(store, FIRST), SECOND, END)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read_tar, [second] * 32)) == {SECOND}
    store.layers.verify(second.diff_id)


def test_what_layers_have_in_common_counts_once(store: Store) -> None:
    """In what is stored, and in what a collection frees: what a layer that stays has a part of is not freed."""
    first = add_layer(store, FIRST)
    second = add_spliced(store, first, SECOND, END)
    own = len(SECOND) - (END - 512)
    seen: set[int] = set()
    assert store.layers.stored_bytes(second.diff_id, seen) == own + len(FIRST)
    assert store.layers.stored_bytes(first.diff_id, seen) == 0
    assert store.layers.stored_bytes(second.diff_id, seen) == 0
    seen = set()
    assert store.layers.stored_bytes(first.diff_id, seen) == len(FIRST)
    assert store.layers.stored_bytes(second.diff_id, seen) == own
    tar_bytes = Path(first.tar_path).stat().st_blocks * 512
    everything = store.collect(dry_run=True).freed_bytes
    lease = store.lease("test")
    lease.hold("layer", second.diff_id)
    freed = store.collect()
    assert freed.layers == (first.diff_id,)
    assert 0 < freed.freed_bytes < everything - tar_bytes
    store.layers.verify(second.diff_id)
    assert store.layers.stored_bytes(second.diff_id, set()) == own + len(FIRST)
    lease.close()
    assert store.collect().freed_bytes > tar_bytes
