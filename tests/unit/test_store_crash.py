"""Kill a child before every single step of an operation, open the root again, and look: all or nothing."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pylayers.errors import IntegrityError, NoSpace
from pylayers.store import Store
from pylayers.store.entry import EntryTable
from pylayers.store.metadata import ImageRecord
from tests.unit.store_sample import add_layer, digest, make_table

STEPS = ("open", "write", "fsync", "rename", "mkdir", "rmdir", "unlink", "close", "chmod")
FINISHED, FAILED = 0, 1


def run_child(operation: Callable[[], None], kill_before: int) -> bool:
    """Run an operation in a child that is killed before its Nth step; return whether it came to its end."""
    child = os.fork()
    if child == 0:
        count = 0

        def intercept(original: Callable[..., object]) -> Callable[..., object]:
            def step(*args: object, **kwargs: object) -> object:
                nonlocal count
                if count == kill_before:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return original(*args, **kwargs)

            return step

        try:
            for name in STEPS:
                setattr(os, name, intercept(getattr(os, name)))
            operation()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(FAILED)
        os._exit(FINISHED)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == FINISHED, "the child failed by itself"
    return not os.WIFSIGNALED(status)


def crash_everywhere(operation: Callable[[], None], inspect: Callable[[bool], None]) -> int:
    """Kill at each step in turn and inspect after each, until the operation comes to its end."""
    for kill_before in range(1000):
        finished = run_child(operation, kill_before)
        inspect(finished)
        if finished:
            return kill_before
    raise AssertionError("the operation never ended")


def assert_tidy(root: Path) -> None:
    with Store.open(root) as store:
        left = [name for name in os.listdir(root / "tmp") if name != "sweep.lock"]
        assert left == [], left
        assert [problem for problem in store.check() if problem.kind != "file"] == []
        store.check(repair=True)
        assert store.check() == []


def test_layer_commit(tmp_path: Path) -> None:
    root = tmp_path / "root"
    Store.open(root).close()
    content, table = b"layer" * 1000, make_table(b"a", b"b")

    def operation() -> None:
        store = Store.open(root)
        store.lease("test")
        add_layer(store, content, table)

    seen = set()

    def inspect(finished: bool) -> None:
        with Store.open(root) as store:
            there = store.layers.exists(digest(content))
            seen.add(there)
            assert list(store.layers.walk()) == ([digest(content)] if there else [])
            if finished:
                assert there
            if there:
                store.layers.verify(digest(content))
                store.layers.delete(digest(content))
            assert [lease for lease in store.metadata.leases.walk() if lease.alive] == []
            store.collect()
            assert list(store.metadata.leases.walk()) == []
        assert_tidy(root)

    assert crash_everywhere(operation, inspect) > 15
    assert seen == {False, True}


def test_blob_commit(tmp_path: Path) -> None:
    root = tmp_path / "root"
    Store.open(root).close()

    def operation() -> None:
        Store.open(root).blobs.put(b"content")

    def inspect(finished: bool) -> None:
        with Store.open(root) as store:
            found = [blob.digest for blob in store.blobs.walk()]
            assert found in ([], [digest(b"content")])
            assert found or not finished
            for name in found:
                assert store.blobs.read(name, 100) == b"content"
                store.blobs.delete(name)
        assert_tidy(root)

    assert crash_everywhere(operation, inspect) > 8


def test_blobs_together(tmp_path: Path) -> None:
    root = tmp_path / "root"
    Store.open(root).close()
    contents = (b"one", b"two", b"three")

    def operation() -> None:
        Store.open(root).blobs.put_all(contents)

    def inspect(finished: bool) -> None:
        with Store.open(root) as store:
            found = {store.blobs.read(blob.digest, 100) for blob in store.blobs.walk()}
            assert found <= set(contents)
            assert not finished or found == set(contents)
            for content in found:
                store.blobs.delete(digest(content))
        assert_tidy(root)

    assert crash_everywhere(operation, inspect) > 16


@pytest.mark.parametrize("together", [False, True])
def test_reference_and_image(tmp_path: Path, together: bool) -> None:
    root = tmp_path / "root"
    with Store.open(root) as store:
        config, manifest = store.blobs.put(b"{}"), store.blobs.put(b"{ }")
        layer = add_layer(store, b"x").diff_id
        store.metadata.references.set("docker.io/library/a:b", config)
    record = ImageRecord(manifest, config, (layer,), 5, 6)

    def operation() -> None:
        store = Store.open(root)
        if together:
            store.metadata.add_image(record, "docker.io/library/a:b")
            return
        store.metadata.images.add(record)
        store.metadata.references.set("docker.io/library/a:b", manifest)

    def inspect(finished: bool) -> None:
        with Store.open(root) as store:
            assert store.metadata.references.get("docker.io/library/a:b") in (config, manifest)
            assert store.metadata.images.get(manifest) in (None, record)
            store.check(repair=True)
            assert store.check() == []
            before = (list(store.metadata.references.walk()), list(store.metadata.images.walk()))
            store.rebuild()
            assert (list(store.metadata.references.walk()), list(store.metadata.images.walk())) == before
            if finished:
                assert before == ([("docker.io/library/a:b", manifest)], [record])
            elif before[1]:
                store.metadata.images.delete(manifest)
            store.metadata.references.set("docker.io/library/a:b", config)

    assert crash_everywhere(operation, inspect) > 8


def test_making_the_root(tmp_path: Path) -> None:
    roots = iter(tmp_path / f"root{number}" for number in range(1000))
    current = [next(roots)]

    def inspect(finished: bool) -> None:
        with Store.open(current[0]) as store:
            store.blobs.put(b"x")
        current[0] = next(roots)

    assert crash_everywhere(lambda: Store.open(current[0]).close(), inspect) > 15


def test_collect_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    root = tmp_path / "root"

    def fill() -> None:
        with Store.open(root) as store:
            for content in (b"one", b"two"):
                add_layer(store, content)
                store.blobs.put(content)
            store.metadata.chains.add_stack([digest(b"one"), digest(b"two")])

    fill()

    def inspect(finished: bool) -> None:
        with Store.open(root) as store:
            for diff_id in store.layers.walk():
                store.layers.verify(diff_id)
            store.collect()
            assert (list(store.layers.walk()), list(store.blobs.walk()), list(store.metadata.chains.walk())) == (
                [], [], [],
            )  # fmt: skip
        assert_tidy(root)
        fill()

    assert crash_everywhere(lambda: store_collect(root), inspect) > 8


def store_collect(root: Path) -> None:
    Store.open(root).collect()


def test_rebuild_killed_anywhere_can_be_repeated(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with Store.open(root) as store:
        manifest = store.blobs.put(b"{}")
        store.metadata.images.add(ImageRecord(manifest, manifest, (add_layer(store, b"x").diff_id,), 1, 2))
        store.metadata.references.set("docker.io/library/a:b", manifest)

    def inspect(finished: bool) -> None:
        with Store.open(root) as store:
            assert store.metadata.references.get("docker.io/library/a:b") == manifest
            store.rebuild()
            assert store.check() == []

    crash_everywhere(lambda: Store.open(root).rebuild(), inspect)


def test_index_replacement(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with Store.open(root) as store:
        diff_id = add_layer(store, b"x").diff_id

    def operation() -> None:
        store = Store.open(root)
        layer = store.layers.open(diff_id)
        store.layers.replace_index(diff_id, EntryTable(bytes(layer.table.records), bytes(layer.table.heap)), b"c" * 48)

    def inspect(finished: bool) -> None:
        with Store.open(root) as store:
            store.layers.verify(diff_id)
            assert len(store.layers.open(diff_id).chunks) in (0, 48)
            assert bool(store.layers.open(diff_id).chunks) or not finished
        assert_tidy(root)

    assert crash_everywhere(operation, inspect) > 5


def test_files_are_synced_before_they_become_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill keeps the page cache; only the order of the syncs speaks for a power loss."""
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def shorten(path: str) -> str:
        return path.rsplit("/", 1)[-1].split("-", maxsplit=1)[0]

    def note_fsync(descriptor: int) -> None:
        events.append(f"sync {shorten(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        fsync(descriptor)

    def note_rename(source: Path, target: Path) -> None:
        events.append(f"rename {shorten(str(source))}")
        rename(source, target)

    with Store.open(tmp_path / "root") as store:
        monkeypatch.setattr(os, "fsync", note_fsync)
        monkeypatch.setattr(os, "rename", note_rename)
        add_layer(store, b"x")
        assert events == ["sync layer.tar", "sync layer.idx", "sync layer", "rename layer", "sync sha256"]
        events.clear()
        store.blobs.put(b"x")
        assert events == ["sync blob", "rename blob", "sync sha256"]
        events.clear()
        config, manifest = store.blobs.put_all((b"y", b"x", b"z"))[::2]
        assert events == ["sync blob", "sync blob", "rename blob", "rename blob", "sync sha256"]
        events.clear()
        store.blobs.put_all((b"y", b"z"))
        assert events == []
        store.metadata.add_image(ImageRecord(manifest, config, (), 5, 6), "docker.io/library/a:b")
        keys = (manifest, "docker.io/library/a:b")
        image, name = ("." + hashlib.sha256(key.encode()).hexdigest()[:40] for key in keys)
        assert [event.removesuffix(event[-24:]) if "." in event else event for event in events] == [
            f"sync {image}", f"sync {name}", f"rename {image}", f"rename {name}", "sync images", "sync refs",
        ]  # fmt: skip


def test_a_failed_sync_fails_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with Store.open(tmp_path / "root") as store:
        for size_bytes in (10, 2 << 20):  # in line, and in the overlapped thread
            with store.layers.ingest() as writer:
                os.write(writer.fd, bytes(size_bytes))
                with monkeypatch.context() as patch:
                    patch.setattr(os, "fsync", refuse)
                    with pytest.raises(NoSpace, match="No space left"):
                        writer.commit(b"", b"", size_bytes, digest(bytes(size_bytes)))
        assert list(store.layers.walk()) == []


def test_an_ingest_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with Store.open(tmp_path / "root") as store, store.layers.ingest() as writer:
        os.write(writer.fd, b"x")
        Store.open(tmp_path / "root").close()
        assert writer.commit(b"", b"", 1, digest(b"x")).size_bytes == 1


def test_a_lost_database_is_not_silently_replaced(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with Store.open(root) as store:
        store.metadata.references.set("docker.io/library/a:b", digest(b"m"))
    for path in (root / "image").glob("metadata.db*"):
        path.unlink()
    with Store.open(root) as store:
        with pytest.raises(IntegrityError, match="is missing"):
            store.metadata.references.get("x")
        store.rebuild()
        assert store.metadata.references.get("docker.io/library/a:b") == digest(b"m")
