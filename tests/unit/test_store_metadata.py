from __future__ import annotations

import os
import random
import shutil
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from pylayers.errors import AlreadyExists, Conflict, IntegrityError, InvalidInput, NotFound, Unsupported
from pylayers.oci.chain import chain_ids
from pylayers.store import Store
from pylayers.store.database import LOG_PAGES, MIGRATIONS, Database
from pylayers.store.holder import ContainerRecord
from pylayers.store.metadata import ImageRecord, Metadata
from pylayers.store.step import StepRecord
from pylayers.store.workspace import Workspace
from tests.unit.store_sample import digest

A, B, C = digest(b"a"), digest(b"b"), digest(b"c")
HOUR_NS = 3600 * 10**9


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Store.open(tmp_path / "root") as opened:
        yield opened


def test_references(store: Store) -> None:
    references = store.metadata.references
    assert references.get("x") is None
    references.set("docker.io/library/x:1", A)
    references.set("docker.io/library/x:2", A)
    references.set("docker.io/library/x:1", B)
    assert list(references.walk()) == [("docker.io/library/x:1", B), ("docker.io/library/x:2", A)]
    assert references.names(A) == ["docker.io/library/x:2"]
    references.delete("docker.io/library/x:2")
    with pytest.raises(NotFound):
        references.delete("docker.io/library/x:2")
    with pytest.raises(InvalidInput):
        references.set("x", "latest")


def test_names_of_what_is_no_image_are_those_that_a_scan_finds(store: Store) -> None:
    """They are kept by triggers: after any order of additions, replacements and removals they are what a scan tells."""
    references, images = store.metadata.references, store.metadata.images
    digests, names = [digest(b"%d" % number) for number in range(4)], ["a", "b", "c", "d", "e"]
    chance = random.Random(7)
    seen = set()
    for _ in range(400):
        name, one = chance.choice(names), chance.choice(digests)
        action = chance.randrange(4)
        if action == 0:
            references.set(name, one)
        elif action == 1 and references.get(name) is not None:
            references.delete(name)
        elif action == 2:
            images.add(ImageRecord(one, one, (), 0, 0))
        elif action == 3 and images.get(one) is not None:
            images.delete(one)
        scanned = [(name, target) for name, target in references.walk() if images.get(target) is None]
        assert list(references.walk_others()) == scanned
        seen.add(len(scanned))
    assert len(seen) > 3


def test_images(store: Store) -> None:
    images = store.metadata.images
    first = ImageRecord(A, B, (B, C, B), 10, 100)
    images.add(first)
    images.add(first)
    images.add(ImageRecord(C, C, (), 0, 200))
    assert images.get(A) == first
    assert [image.digest for image in images.walk()] == [C, A]
    store.metadata.references.set("n", A)
    assert {image.digest: image.dangling for image in images.walk()} == {A: False, C: True}
    for prefix in (A, A[:12], A[7:], A[7:10], B[7:12]):
        found = images.find(prefix)
        assert found == first, prefix
        assert not found.dangling
    assert images.find("zz") is None
    assert images.find("") is None
    assert store.metadata.resolve("n") == first == store.metadata.resolve(A) == store.metadata.resolve(B[7:15])
    images.delete(A)
    assert images.get(A) is None
    with pytest.raises(NotFound):
        images.delete(A)


def test_ambiguous_prefix(store: Store) -> None:
    low, high = "sha256:" + "ab" + "0" * 62, "sha256:" + "ab" + "1" * 62
    store.metadata.images.add(ImageRecord(low, low, (), 0, 0))
    store.metadata.images.add(ImageRecord(high, high, (), 0, 0))
    with pytest.raises(Conflict, match="ambiguous"):
        store.metadata.images.find("ab")
    assert store.metadata.images.find("ab1") is not None
    # Two manifests of one config are one image to docker.
    store.metadata.images.add(ImageRecord(A, high, (), 0, 0))
    assert store.metadata.images.find("ab1") is not None


def test_chains(store: Store) -> None:
    chains = store.metadata.chains
    one, two = chain_ids([A, B])
    assert chains.add_stack([A, B]) == two
    chains.set_tree_digest(two, b"t" * 32)
    chains.add(two, one, B, None)
    record = chains.get(two)
    assert record is not None
    assert record.tree_digest == b"t" * 32
    assert chains.diff_ids(two) == (A, B)
    with pytest.raises(InvalidInput):
        chains.add(C, one, B)
    with pytest.raises(NotFound):
        chains.set_tree_digest(C, b"")
    with pytest.raises(AlreadyExists):  # the foreign key: its parent isn't known
        chains.add(chain_ids([C, A])[1], C, A)
    assert len(list(chains.walk())) == 2


def test_steps(store: Store) -> None:
    steps = store.metadata.steps
    record = StepRecord(
        key="k", partial_key="p", kind="copy", diff_id=A, chain_id=B, tree_digest=b"t", config_delta={"Env": ["ä=1"]},
        size_bytes=5, created_ns=1, last_used_ns=10 * HOUR_NS, instruction="COPY . /", inputs=[["a", 1]],
    )  # fmt: skip
    steps.put(record)
    assert steps.get("k") == record
    steps.put(StepRecord(key="l", partial_key="p", kind="run", last_used_ns=20 * HOUR_NS, created_ns=2))
    assert [step.key for step in steps.candidates("p")] == ["l", "k"]
    assert steps.candidates("q") == []
    assert steps.touch(["k", "missing"], 11 * HOUR_NS) == 0
    assert steps.touch(["k", "l"], 11 * HOUR_NS + 1) == 1
    assert steps.get("k").last_used_ns == 11 * HOUR_NS + 1  # type: ignore[union-attr]
    assert steps.delete("k")
    assert not steps.delete("k")
    assert steps.clear() == 1


def test_touch_within_the_hour_writes_nothing(store: Store) -> None:
    store.metadata.steps.put(StepRecord(key="k", partial_key="p", kind="run", last_used_ns=HOUR_NS, created_ns=1))
    version = store.metadata.database.read("PRAGMA data_version")
    other = sqlite3.connect(store.metadata.path)
    seen = other.execute("PRAGMA data_version").fetchone()
    store.metadata.steps.touch(["k"], HOUR_NS + 5)
    assert other.execute("PRAGMA data_version").fetchone() == seen
    store.metadata.steps.touch(["k"], 3 * HOUR_NS)
    assert other.execute("PRAGMA data_version").fetchone() != seen
    assert store.metadata.database.read("PRAGMA data_version") == version
    other.close()


def test_containers(store: Store) -> None:
    containers = store.metadata.containers
    one = ContainerRecord("ab" * 32, "one", A, B, 1)
    two = ContainerRecord("ac" * 32, "abab", None, None, 2)
    containers.add(one)
    containers.add(two)
    assert containers.find("abab") == two  # a name wins over a prefix
    assert containers.find("ababa") == one
    assert containers.find("one") == one == containers.get("ab" * 32)
    assert containers.find("zzz") is None
    with pytest.raises(Conflict, match="ambiguous"):
        containers.find("a")
    with pytest.raises(AlreadyExists):
        containers.add(ContainerRecord("ff" * 32, "one", None, None))
    with pytest.raises(AlreadyExists):
        containers.rename(one.id, "abab")
    containers.rename(one.id, "uno")
    assert [container.name for container in containers.walk()] == ["uno", "abab"]
    containers.delete(one.id)
    with pytest.raises(NotFound):
        containers.delete(one.id)


def test_folders_of_mirrors_are_made_where_they_are_missing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = store.metadata
    image = store.root / "image"
    assert not {"refs", "images", "containers"} & set(os.listdir(image))
    metadata.add_image(ImageRecord(digest(b"m"), digest(b"c"), (), 1, 1), "docker.io/library/a:b")
    metadata.containers.add(ContainerRecord("aa" * 32, "a", None, None))
    folders = [image / name for name in ("refs", "images", "containers")]
    assert [(len(os.listdir(folder)), folder.stat().st_mode & 0o777) for folder in folders] == [(1, 0o700)] * 3

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the folder is there")

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", refuse)
        metadata.containers.add(ContainerRecord("bb" * 32, "b", None, None))
    assert len(os.listdir(folders[2])) == 2
    shutil.rmtree(folders[2])
    metadata.containers.add(ContainerRecord("cc" * 32, "c", None, None))
    assert len(os.listdir(folders[2])) == 1


def test_a_transaction_is_all_or_nothing(store: Store) -> None:

    def fail_halfway() -> None:
        with store.metadata.transaction():
            store.metadata.chains.add_stack([A, B])
            store.metadata.steps.put(StepRecord(key="k", partial_key="p", kind="run"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert list(store.metadata.chains.walk()) == []
    assert store.metadata.steps.get("k") is None
    store.metadata.chains.add_stack([A])


def test_threads_and_processes_share_the_database(store: Store) -> None:
    other = Store.open(store.root)
    errors: list[BaseException] = []

    def work(which: Store, start: int) -> None:
        try:
            for number in range(start, start + 50):
                which.metadata.steps.put(StepRecord(key=str(number), partial_key="p", kind="run"))
                which.metadata.steps.get(str(number))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(each, at * 50)) for at, each in enumerate((store, store, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store.metadata.steps.candidates("p")) == 150
    other.close()


def test_threads_that_are_first_share_one_database(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of a Store are made with their first use, and one of two databases would not be closed."""
    made: list[Metadata] = []

    class Slow(Metadata):
        def __init__(self, directory: Path, workspace: Workspace) -> None:
            time.sleep(0.05)
            super().__init__(directory, workspace)
            made.append(self)

    monkeypatch.setattr("pylayers.store.metadata.Metadata", Slow)
    found: list[Metadata] = []
    threads = [threading.Thread(target=lambda: found.append(store.metadata)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert found == made * 4


def test_a_store_that_was_not_used_is_closed(tmp_path: Path) -> None:
    Store.open(tmp_path / "unused").close()
    assert not (tmp_path / "unused" / "image" / "metadata.db").exists()
    with Store.open(tmp_path / "unused") as again, again.alone("looked at"):
        pass


def test_a_database_left_to_the_end_of_its_process_is_whole(tmp_path: Path) -> None:
    """The log stays for the next process, which finds all of it, and no number of them makes it long."""
    path = tmp_path / "made.db"
    log = tmp_path / "made.db-wal"
    for turn in range(3):
        child = os.fork()
        if child == 0:
            database = Database(path)
            for number in range(200):
                database.execute("INSERT INTO reference VALUES(?, ?)", (f"{turn}.{number}", A), durable=False)
            database.leave()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert 0 < log.stat().st_size < 2 * LOG_PAGES * 4200
    database = Database(path)
    assert database.read("SELECT count(*) FROM reference") == [(600,)]
    assert database.check() == []
    database.close()
    assert not log.exists()


def test_database_settings_and_versions(store: Store) -> None:
    database = store.metadata.database
    assert database.read("PRAGMA journal_mode") == [("wal",)]
    assert database.read("PRAGMA synchronous") == [(2,)]
    store.metadata.steps.put(StepRecord(key="k", partial_key="p", kind="run"))
    assert database.read("PRAGMA synchronous") == [(2,)]
    assert database.read("PRAGMA foreign_keys") == [(1,)]
    database.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(Unsupported, match="schema version 99"):
        store.metadata.references.get("x")


def test_a_root_of_the_first_schema_is_brought_up_to_date(store: Store, tmp_path: Path) -> None:
    store.metadata.references.set("n", A)
    fresh = dict(store.metadata.database.read("SELECT name, sql FROM sqlite_master"))
    store.metadata.close()
    old = tmp_path / "old.db"
    with sqlite3.connect(old) as connection:
        for statement in MIGRATIONS[0]:
            connection.execute(statement)
        connection.execute("PRAGMA user_version=1")
        connection.execute("INSERT INTO reference VALUES('kept', ?)", (A,))
        connection.execute("INSERT INTO volume VALUES('v', 'local', '{}', 1, 0)")
    connection.close()
    database = Database(old)
    assert database.read("SELECT * FROM reference") == [("kept", A)] == database.read("SELECT * FROM reference_other")
    assert dict(database.read("SELECT name, sql FROM sqlite_master")) == fresh
    assert database.read("PRAGMA user_version") == [(len(MIGRATIONS),)]
    assert database.check() == []
    database.close()


def test_tables_are_those_that_something_keeps_rows_in(store: Store) -> None:
    tables = {row[0] for row in store.metadata.database.read("SELECT name FROM sqlite_master WHERE type='table'")}
    assert tables == {"reference", "image", "image_layer", "chain", "step", "lease", "lease_item", "container",
                      "reference_other"}  # fmt: skip


def test_a_damaged_database_is_named(store: Store) -> None:
    store.metadata.references.set("n", A)
    store.metadata.close()
    Path(store.metadata.path).write_bytes(b"not a database" * 1000)
    with pytest.raises(IntegrityError) as caught:
        store.metadata.references.get("n")
    assert caught.value.hint == "run: pylayers system rebuild"
    assert [problem.kind for problem in store.check()] == ["database"]
    store.rebuild()
    assert store.metadata.references.get("n") == A


def test_a_new_database_can_be_opened_by_many_at_once(tmp_path: Path) -> None:
    """Turning on the journal is refused to one of two who do so together, without SQLite's own waiting."""
    for attempt in range(10):
        path = tmp_path / f"{attempt}.db"
        errors: list[BaseException] = []
        start = threading.Barrier(6)

        def use(path: Path = path, errors: list[BaseException] = errors, start: threading.Barrier = start) -> None:
            database = Database(path)
            start.wait()
            try:
                database.read("SELECT count(*) FROM step")
            except BaseException as error:
                errors.append(error)
            finally:
                database.close()

        threads = [threading.Thread(target=use) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []


@pytest.mark.parametrize("first_is_durable", [True, False])
def test_a_log_begun_without_a_flush_is_a_log(store: Store, first_is_durable: bool) -> None:
    path = Path(store.metadata.path)
    store.metadata.close()  # the last one of all takes the log away
    log = path.with_name(f"{path.name}-wal")
    assert not log.exists()
    one, other = Database(path), Database(path)
    insert = "INSERT INTO lease VALUES(?, 'test', 'owner', 1, 1)"
    for database, row in ((one, "a"), (other, "b"), (one, "c")):
        assert database.execute(insert, (row,), durable=first_is_durable and row == "a") == 1
        assert database.read("PRAGMA synchronous") == [(2,)]
    assert log.stat().st_size > 0
    rows = "SELECT id FROM lease WHERE purpose='test' ORDER BY id"
    assert other.read(rows) == [("a",), ("b",), ("c",)]
    for database in (one, other):
        database.close()
    assert Database(path).read(rows) == [("a",), ("b",), ("c",)]


def test_a_log_begun_without_a_flush_is_not_moved_into_the_database_without_one(store: Store) -> None:
    """However large its first transaction is: a power cut would leave half of it in the file."""
    path = Path(store.metadata.path)
    list(store.metadata.images.walk())
    store.metadata.close()  # moves the log into the file
    database = Database(path)
    before = path.read_bytes()
    with database.write(durable=False) as connection:
        rows = [(f"{number:05}" + "x" * 1000,) for number in range(1000)]
        connection.executemany("INSERT INTO lease VALUES(?, 'test', 'owner', 1, 1)", rows)
    assert path.read_bytes() == before
    assert database.read("PRAGMA wal_autocheckpoint") == [(LOG_PAGES,)]
    database.execute("INSERT INTO lease VALUES('last', 'test', 'owner', 1, 1)")
    assert path.read_bytes() != before
    assert database.read("SELECT count(*) FROM lease WHERE purpose='test'") == [(1001,)]
    database.close()
