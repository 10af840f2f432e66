"""A walked tree's digests: computed once for the same contents, forgotten with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pylayers._native import tardiff
from pylayers.build.copy.destination import Ownership
from pylayers.build.source.local import LocalSource
from pylayers.store.entry import ENTRY_SIZE_BYTES
from pylayers.store.statcache import StatCache

PLAIN, PRIVATE = Ownership(0, 0), Ownership(0, 0, 0o600)


def test_a_digest_holds_as_long_as_the_hashes_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "file").write_bytes(b"content")
    source = LocalSource(context, cache=StatCache(tmp_path / "cache"))
    tree = source.open("")
    digests = tree.digest(PLAIN), tree.digest(PRIVATE)
    assert digests[0] != digests[1]
    count = len(tree.records) // ENTRY_SIZE_BYTES
    tree.adopt(0, bytes(tree.records), 0, count)
    with monkeypatch.context() as patched:
        patched.delattr(tardiff, "tree_digest")  # nothing is computed again
        assert (tree.digest(PLAIN), tree.digest(PRIVATE)) == digests
    written = bytearray(tree.records)
    written[-1] ^= 1
    tree.adopt(0, written, 0, count)
    assert tree.digest(PLAIN) != digests[0]
    stored = StatCache(tmp_path / "cache").load(tree.cache_key)
    assert stored is not None
    assert set(stored.digests) == {PLAIN.digest_name}, "the other digest is of the old content"
    source.close()
