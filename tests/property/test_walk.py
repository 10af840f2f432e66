"""Random trees: the walk kernel against the slow oracle, and what its tables promise."""

from __future__ import annotations

import os
import stat
import struct
import tempfile

from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers._native import confirm, filehash
from pylayers._native import walk as kernel
from pylayers.build.source.selector import renew_rows
from pylayers.store.entry import FLAG_HASHED, EntryTable, path_key
from tests.oracle.tree import FOREVER_NS, observe_tree, opened, paths_of, unpack

NAMES = st.one_of(
    st.sampled_from([b"a", b"a-b", b"a.b", b"ab", b"A", b"...", b" ", b"\1", b"\xff", b"0" * 8, b"0" * 9, b"z" * 255]),
    st.binary(min_size=1, max_size=12).filter(lambda name: b"/" not in name and b"\0" not in name),
).filter(lambda name: name not in (b".", b".."))
LEAVES = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=40)),
    st.tuples(st.just("symlink"), st.binary(min_size=1, max_size=60).filter(lambda target: b"\0" not in target)),
    st.tuples(st.just("fifo"), st.none()),
    st.tuples(st.just("hardlink"), st.integers(0, 1000)),
    st.tuples(st.just("chain"), st.integers(1, 90)),
)
TREES = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=6),
    lambda below: st.dictionaries(NAMES, st.one_of(LEAVES, below), max_size=6),
    max_leaves=25,
)


def make_tree(place: bytes, tree: dict[bytes, object], made: list[bytes]) -> None:
    for name, node in tree.items():
        path = place + b"/" + name
        if isinstance(node, dict):
            os.mkdir(path)
            make_tree(path, node, made)
            continue
        kind, value = node  # type: ignore[misc]
        if kind == "chain":
            os.makedirs(path + b"/d" * value)
        elif kind == "symlink":
            os.symlink(value, path)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "hardlink" and made:
            os.link(made[value % len(made)], path, follow_symlinks=False)
        else:
            with open(path, "wb") as file:
                file.write(value if kind == "file" else b"")
        if kind != "chain":
            made.append(path)


@settings(deadline=None, max_examples=120)
@given(TREES, st.integers(1, 4))
def test_any_tree_equals_the_oracle(tree: dict[bytes, object], threads: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        make_tree(os.fsencode(place), tree, [])
        with opened(os.fsencode(place)) as fd:
            records, heap = kernel.walk(fd, threads=threads)
            assert unpack(records, heap) == observe_tree(os.fsencode(place))
            assert kernel.same(records, heap, *kernel.walk(fd, xattrs=True), FOREVER_NS)
            assert confirm.confirm(fd, records, heap, FOREVER_NS, threads) == b""
            rows = len(EntryTable(records, heap))
            filehash.hash_files(fd, records, heap, struct.pack(f"{rows}I", *range(rows)), blake3)
            fresh, fresh_heap = kernel.walk(fd)
            assert kernel.recall(fresh, fresh_heap, records, heap, FOREVER_NS) == b""
            assert unpack(fresh, fresh_heap) == unpack(records, heap)
            for path, entry, _, _ in unpack(fresh, fresh_heap):
                if stat.S_ISREG(entry.mode):
                    with open(os.path.join(os.fsencode(place), path), "rb") as file:
                        assert entry.blake3 == blake3(file.read()).digest()
                else:
                    assert not entry.flags & FLAG_HASHED


@settings(deadline=None, max_examples=60)
@given(TREES, st.data())
def test_any_selection_equals_a_filtered_walk(tree: dict[bytes, object], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        make_tree(os.fsencode(place), tree, [])
        everything = paths_of(observe_tree(os.fsencode(place)))
        dropped = set(data.draw(st.lists(st.sampled_from(everything), max_size=4)))

        def choose(directory: bytes, names: list[bytes], modes: bytes) -> bytes:
            return bytes((directory + b"/" + name if directory else name) not in dropped for name in names)

        with opened(os.fsencode(place)) as fd:
            found = paths_of(unpack(*kernel.walk(fd, choose)))
        hidden = [path for path in dropped if path]
        expected = [p for p in everything if not any(p == path or p.startswith(path + b"/") for path in hidden)]
        assert found == expected == sorted(found, key=path_key)


@settings(deadline=None, max_examples=60)
@given(TREES, TREES)
def test_recall_between_any_two_trees_takes_only_equal_rows(
    old: dict[bytes, object], new: dict[bytes, object]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        before, after = (os.path.join(os.fsencode(place), name) for name in (b"before", b"after"))
        os.mkdir(before)
        os.mkdir(after)
        make_tree(before, old, [])
        make_tree(after, new, [])
        with opened(before) as fd:
            known, known_heap = kernel.walk(fd)
            kernel_rows = len(EntryTable(known, known_heap))
            filehash.hash_files(fd, known, known_heap, struct.pack(f"{kernel_rows}I", *range(kernel_rows)), blake3)
        with opened(after) as fd:
            records, heap = kernel.walk(fd)
        others = kernel.recall(records, heap, known, known_heap, FOREVER_NS)
        # Different inodes throughout, so nothing may be recalled.
        assert list(memoryview(others).cast("I")) == list(range(len(EntryTable(records, heap))))
        assert kernel.recall(known, known_heap, bytes(known), bytes(known_heap), FOREVER_NS) == b""
        assert kernel.same(records, heap, known, known_heap, FOREVER_NS) is False


@settings(deadline=None, max_examples=60)
@given(TREES, st.data())
def test_what_is_confirmed_is_what_a_walk_finds(tree: dict[bytes, object], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        make_tree(os.fsencode(place), tree, [])
        with opened(os.fsencode(place)) as fd:
            known = kernel.walk(fd)
            path = data.draw(st.sampled_from(paths_of(unpack(*known))))
            full = os.path.join(os.fsencode(place), path)
            if stat.S_ISDIR(os.lstat(full).st_mode):
                os.close(os.open(os.path.join(full, b"new name"), os.O_CREAT | os.O_CLOEXEC))
            else:
                os.unlink(full)
            assert confirm.confirm(fd, *known, FOREVER_NS) is None
            assert confirm.confirm(fd, *kernel.walk(fd), FOREVER_NS) == b""


@settings(deadline=None, max_examples=60)
@given(TREES, st.data())
def test_files_that_were_written_to_are_told_and_renewed(tree: dict[bytes, object], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        make_tree(os.fsencode(place), tree, [])
        with opened(os.fsencode(place)) as fd:
            records, heap = kernel.walk(fd, xattrs=True)
            plain = [
                path
                for path in paths_of(unpack(records, heap))
                if stat.S_ISREG(os.lstat(os.path.join(os.fsencode(place), path)).st_mode)
                and os.lstat(os.path.join(os.fsencode(place), path)).st_nlink == 1
            ]
            chosen = data.draw(st.sets(st.sampled_from(plain))) if plain else set()
            for path in chosen:
                with open(os.path.join(os.fsencode(place), path), "ab") as file:
                    file.write(b"more")
            rows = confirm.confirm(fd, records, heap, FOREVER_NS, data.draw(st.integers(1, 3)))
            assert rows is not None
            table = EntryTable(records, heap)
            assert {table.path(table.entry(row)) for row in memoryview(rows).cast("I")} == chosen
            renewed = renew_rows(fd, records, heap, rows)
            assert renewed is not None
            again = kernel.walk(fd, xattrs=True)
            assert kernel.same(*again, *renewed, FOREVER_NS)
            assert unpack(*renewed) == unpack(*again)
