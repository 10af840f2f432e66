from __future__ import annotations

import os
from pathlib import Path

import pytest

from pylayers.store.entry import EntryTable
from pylayers.store.statcache import RACY_SLACK_NS, StatCache
from tests.unit.store_sample import make_table


@pytest.fixture
def cache(tmp_path: Path) -> StatCache:
    return StatCache(tmp_path / "buildkit" / "stat")


def fill(cache: StatCache, key: str = "/src") -> EntryTable:
    table = make_table(b"a", b"b/c")
    cache.store(key, table.records, table.heap, 10**18, {".": b"d" * 32, "sub/ä": b""})
    return table


def test_round_trip(cache: StatCache) -> None:
    assert cache.load("/src") is None
    table = fill(cache)
    known = cache.load("/src")
    assert known is not None
    assert list(EntryTable(known.records, known.heap)) == list(table)
    assert bytes(known.heap) == table.heap
    assert known.digests == {".": b"d" * 32, "sub/ä": b""}
    assert known.trusted_before_ns == 10**18 - RACY_SLACK_NS
    assert cache.load("/other") is None


def test_replacing_leaves_the_mapped_one_alone(cache: StatCache) -> None:
    fill(cache)
    old = cache.load("/src")
    cache.store("/src", b"", b"", 5)
    new = cache.load("/src")
    assert old is not None
    assert new is not None
    assert len(old.records) == 3 * 168
    assert len(new.records) == 0
    assert new.digests == {}


def test_a_torn_file_is_absent(cache: StatCache) -> None:
    fill(cache)
    path = Path(cache.path("/src"))
    content = path.read_bytes()
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        assert cache.load("/src") is None
    path.write_bytes(content + b"x")
    assert cache.load("/src") is None


def test_after_a_restart_every_byte_counts(cache: StatCache) -> None:
    fill(cache)
    path = Path(cache.path("/src"))
    content = bytearray(path.read_bytes())
    restarted = StatCache(path.parent)
    restarted._boot = b"another start!!!"
    assert restarted.load("/src") is not None
    for at in range(0, len(content), 7):
        content[at] ^= 1
        path.write_bytes(content)
        assert restarted.load("/src") is None, at
        content[at] ^= 1


def test_another_keys_file_is_absent(cache: StatCache) -> None:
    fill(cache)
    os.rename(cache.path("/src"), cache.path("/other"))
    assert cache.load("/other") is None


def test_names_that_are_not_utf_8(cache: StatCache) -> None:
    key = b"/sr\xff".decode("utf-8", "surrogateescape")
    fill(cache, key)
    assert cache.load(key) is not None


def test_prune_keeps_the_latest(cache: StatCache) -> None:
    assert cache.prune(1) == 0
    for number in range(4):
        fill(cache, str(number))
    assert cache.prune(1) == 3
    assert cache.load("3") is not None
