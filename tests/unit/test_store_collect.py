from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pylayers.errors import InvalidInput
from pylayers.oci.chain import chain_ids
from pylayers.oci.descriptor import Descriptor
from pylayers.oci.manifest import MEDIA_CONFIG, MEDIA_LAYER_GZIP, MEDIA_MANIFEST, Index, Manifest
from pylayers.store import Store
from pylayers.store.holder import ContainerRecord
from pylayers.store.metadata import ImageRecord
from pylayers.store.step import StepRecord
from tests.unit.store_sample import add_layer, digest


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Store.open(tmp_path / "root") as opened:
        yield opened


def add_image(store: Store, name: str, *contents: bytes) -> tuple[str, list[str]]:
    """Add an image with layers and its compressed blobs."""
    layers = [add_layer(store, content).diff_id for content in contents]
    config = store.blobs.put(b'{"config":"%s"}' % name.encode())
    blobs = tuple(Descriptor(MEDIA_LAYER_GZIP, store.blobs.put(b"gz" + content), 1) for content in contents)
    manifest = store.blobs.put(Manifest(Descriptor(MEDIA_CONFIG, config, 1), blobs).to_json())
    store.metadata.chains.add_stack(layers)
    store.metadata.images.add(ImageRecord(manifest, config, tuple(layers), 1, 1))
    return manifest, layers


def test_an_image_keeps_all_it_needs_and_its_removal_frees_only_its_own(store: Store) -> None:
    shared, layers = add_image(store, "one", b"base", b"top")
    other, other_layers = add_image(store, "two", b"base", b"other")
    store.metadata.references.set("docker.io/library/one:latest", shared)
    assert store.collect() == store.collect(dry_run=True)
    assert store.collect().layers == store.collect().blobs == store.collect().chains == ()
    store.metadata.images.delete(other)
    planned = store.collect(dry_run=True)
    assert planned.layers == (other_layers[1],)
    assert planned.chains == (chain_ids(other_layers)[1],)
    assert planned.freed_bytes > 0
    assert len(planned.blobs) == 3  # manifest, config, one compressed layer
    assert store.layers.exists(other_layers[1])
    assert store.collect() == planned
    assert sorted(store.layers.walk()) == sorted(layers)
    assert store.check() == []


@pytest.mark.parametrize("relation", ["references", "images", "containers", "steps", "leases"])
def test_what_is_recorded_and_let_go_while_it_is_looked_for_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch, relation: str
) -> None:
    """A build ends while another process collects: what it made is held by the lease until its image is there."""
    lease = store.lease("build")
    layer = add_layer(store, b"made")
    config = store.blobs.put(b'{"config":1}')
    manifest = store.blobs.put(Manifest(Descriptor(MEDIA_CONFIG, config, 1), ()).to_json())
    kind = type(getattr(store.metadata, relation))
    name = "items" if relation == "leases" else "walk"
    original = getattr(kind, name)

    def read(*given: object) -> object:
        found = list(original(*given))
        if lease.open:
            store.metadata.images.add(ImageRecord(manifest, config, (layer.diff_id,), 1, 1))
            lease.close()
        return found

    monkeypatch.setattr(kind, name, read)
    found = store.collect()
    assert not lease.open
    assert (found.layers, found.blobs) == ((), ())


def test_a_dangling_image_stays(store: Store) -> None:
    _, layers = add_image(store, "one", b"a")
    assert store.collect().layers == ()
    assert next(store.metadata.images.walk()).dangling
    assert store.layers.exists(layers[0])


def test_an_index_keeps_its_manifests(store: Store) -> None:
    manifest, _ = add_image(store, "one", b"a")
    store.metadata.images.delete(manifest)
    absent = digest(b"a platform that was never pulled")
    index = store.blobs.put(
        Index((Descriptor(MEDIA_MANIFEST, manifest, 1), Descriptor(MEDIA_MANIFEST, absent, 1))).to_json()
    )
    store.metadata.references.set("docker.io/library/multi:1", index)
    collected = store.collect()
    assert manifest not in collected.blobs
    assert index not in collected.blobs
    assert collected.blobs == ()


def test_a_container_keeps_its_chain(store: Store) -> None:
    manifest, layers = add_image(store, "one", b"a", b"b")
    store.metadata.containers.add(ContainerRecord("ab" * 32, "c", manifest, chain_ids(layers)[-1]))
    store.metadata.images.delete(manifest)
    assert store.collect().layers == ()
    assert store.blobs.exists(manifest)
    store.metadata.containers.delete("ab" * 32)
    assert sorted(store.collect().layers) == sorted(layers)


def test_steps_keep_their_layers_unless_told_otherwise(store: Store) -> None:
    diff_id = add_layer(store, b"a").diff_id
    chain_id = store.metadata.chains.add_stack([diff_id])
    store.metadata.steps.put(StepRecord(key="k", partial_key="p", kind="run", diff_id=diff_id, chain_id=chain_id))
    assert store.collect().layers == ()
    assert store.collect(dry_run=True, keep_cache=False).layers == (diff_id,)
    assert store.metadata.steps.get("k") is not None
    assert store.collect(keep_cache=False).chains == (chain_id,)
    assert store.metadata.steps.get("k") is None


def test_a_lease_keeps_what_is_committed_under_it(store: Store) -> None:
    with store.lease("build"):
        diff_id = add_layer(store, b"a").diff_id
        blob = store.blobs.put(b"b")
        again = store.blobs.put(b"b")
        assert blob == again
        collected = store.collect()
        assert (collected.layers, collected.blobs) == ((), ())
    collected = store.collect()
    assert (collected.layers, collected.blobs) == ((diff_id,), (blob,))


def test_a_named_lease_alone_holds(store: Store) -> None:
    with store.lease("long"):
        with store.lease("short") as short:
            diff_id = add_layer(store, b"a", lease=short).diff_id
            assert store.collect().layers == ()
        assert store.collect().layers == (diff_id,)


def test_a_held_snapshot_keeps_its_layers(store: Store) -> None:
    one, two = add_layer(store, b"a").diff_id, add_layer(store, b"b").diff_id
    chain_id = store.metadata.chains.add_stack([one, two])
    with store.lease("mount") as lease:
        lease.hold("snapshot", chain_id)
        lease.hold("snapshot", "an-active-key")
        assert store.collect().layers == ()
    assert len(store.collect().layers) == 2
    with pytest.raises(InvalidInput, match="ended"):
        lease.hold("layer", one)
    with store.lease("x") as lease, pytest.raises(InvalidInput, match="holds a layer"):
        lease.hold("image", one)


def test_another_processes_lease_counts_while_it_lives(store: Store) -> None:
    ready, ready_write = os.pipe()
    wait, wait_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(wait_write)
        other = Store.open(store.root)
        other.lease("pull")
        add_layer(other, b"theirs")
        os.write(ready_write, b"x")
        os.read(wait, 1)
        os._exit(0)  # without closing anything
    os.read(ready, 1)
    assert [lease.alive for lease in store.metadata.leases.walk()] == [True]
    assert store.collect().layers == ()
    os.write(wait_write, b"x")
    os.waitpid(child, 0)
    assert [lease.alive for lease in store.metadata.leases.walk()] == [False]
    assert store.collect().layers == (digest(b"theirs"),)
    assert list(store.metadata.leases.walk()) == []
    for descriptor in (ready, ready_write, wait, wait_write):
        os.close(descriptor)


def test_collecting_while_others_commit_loses_nothing(store: Store) -> None:
    stop = threading.Event()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with Store.open(store.root) as mine, mine.lease("build"):
                made = [add_layer(mine, b"%d-%d" % (number, turn)).diff_id for turn in range(15)]
                shared = mine.blobs.put(b"shared")
                for diff_id in made:
                    mine.layers.verify(diff_id)
                assert mine.blobs.read(shared, 10) == b"shared"
        except BaseException as error:
            errors.append(error)

    def sweep() -> None:
        with Store.open(store.root) as mine:
            while not stop.is_set():
                mine.collect()

    collector = threading.Thread(target=sweep)
    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in (collector, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    collector.join()
    assert errors == []
    store.collect()
    assert list(store.layers.walk()) == []


def start_collect(store: Store) -> tuple[threading.Thread, list[tuple[str, ...]]]:
    """Collect in a thread with a store of its own, and return it with what will have been collected."""
    found: list[tuple[str, ...]] = []

    def work() -> None:
        with Store.open(store.root) as mine:
            found.append(mine.collect().layers)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, found


@pytest.mark.parametrize("settled_by", ["settle", "snapshot", "end"])
def test_collect_waits_for_a_lease_that_is_not_settled(store: Store, settled_by: str) -> None:
    held, other = add_layer(store, b"held").diff_id, add_layer(store, b"other").diff_id
    lease = store.lease("build", settled=False)
    lease.hold("layer", held)
    made = add_layer(store, b"made").diff_id
    thread, found = start_collect(store)
    thread.join(0.2)
    assert thread.is_alive()
    assert found == []
    assert list(store.metadata.leases.walk()) == []
    if settled_by == "settle":
        lease.settle()
        lease.settle()
    elif settled_by == "snapshot":
        lease.hold("snapshot", "an-active-key")
    else:
        lease.close()
    thread.join(30)
    assert not thread.is_alive()
    if settled_by == "end":
        assert set(found[0]) == {held, other, made}
    else:
        assert found == [(other,)]
        late = add_layer(store, b"late").diff_id
        assert store.collect().layers == ()
        lease.close()
        assert set(store.collect().layers) == {held, made, late}
    lease.close()
    with pytest.raises(InvalidInput, match="ended"):
        lease.hold("layer", held)


def test_a_lease_that_never_settles_writes_nothing(store: Store) -> None:
    diff_id = add_layer(store, b"a").diff_id
    path = store.root / "image" / "metadata.db"
    assert store.metadata.steps.get("missing") is None
    store.metadata.close()
    before = path.stat()
    with store.lease("build", settled=False) as lease:
        lease.hold("layer", diff_id)
        assert store.metadata.steps.get("missing") is None
    store.metadata.close()
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_the_lock_goes_with_the_process_of_an_unsettled_lease(store: Store) -> None:
    ready, ready_write = os.pipe()
    diff_id = add_layer(store, b"a").diff_id
    child = os.fork()
    if child == 0:
        other = Store.open(store.root)
        other.lease("build", settled=False).hold("layer", diff_id)
        os.write(ready_write, b"x")
        os._exit(0)
    os.read(ready, 1)
    os.waitpid(child, 0)
    assert store.collect().layers == (diff_id,)
    os.close(ready)
    os.close(ready_write)
