"""Step keys: unambiguous, and stable; and the cache that they lead to."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers.build.cache.key import (
    configure_key,
    copy_key,
    copy_partial_key,
    hash_fields,
    pack_texts,
    run_key,
    workdir_key,
)
from pylayers.build.cache.step import CachedStep, LocalCache
from pylayers.store import Store
from tests.unit.store_sample import digest

TEXTS = st.lists(st.text(max_size=5), max_size=4)
RUN = {
    "parent": b"p", "command": ["sh", "-c", "x"], "environment": ["A=1", "B=2"], "working_dir": "/", "user": "",
    "options": ("host",), "inputs": [("mount", b"d")],
}  # fmt: skip


@given(TEXTS, TEXTS)
def test_packed_texts_tell_their_borders(one: list[str], other: list[str]) -> None:
    assert (pack_texts(one) == pack_texts(other)) == (one == other)


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4), st.sampled_from("ab"))
def test_no_two_lists_of_fields_have_one_key(one: list[bytes], other: list[bytes], kind: str) -> None:
    assert (hash_fields("a", one) == hash_fields(kind, other)) == (one == other and kind == "a")


def test_keys_are_what_they_were() -> None:
    """Other keys would make the cache of every user miss: whoever means to change them changes KEY_VERSION."""
    assert hash_fields("kind", (b"one", b"two")) == "7f67441cecf4e05ce5e742f008b2c682e838122f82523845e94c092cfce88679"
    one = run_key(b"p", ["sh", "-c", "x"], ["A=1", "B=2"], "/", "", ("host",), [("mount", b"d")])
    assert one == "8ccf74dc9506f27f4c6943e7e13a5886a3af052f020778e8539d238c93cf8b76"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("parent", b"q"), ("command", ["sh", "-c", "y"]), ("command", ["sh", "-cx"]), ("environment", ["A=1"]),
        ("working_dir", "/w"), ("user", "app"), ("options", ("none",)), ("inputs", [("mount", b"e")]), ("inputs", []),
    ],
)  # fmt: skip
def test_everything_of_a_run_counts(name: str, value: object) -> None:
    assert run_key(**RUN) != run_key(**{**RUN, name: value})  # type: ignore[arg-type]


def test_the_order_of_variables_does_not_count() -> None:
    assert run_key(**RUN) == run_key(**{**RUN, "environment": ["B=2", "A=1"]})  # type: ignore[arg-type]


def test_a_copy_is_its_partial_key_and_its_content() -> None:
    partial = copy_partial_key(b"p", "/x", ["a", "b"], [""])
    assert partial != copy_partial_key(b"p", "/x", ["ab"], [""])
    assert partial != copy_partial_key(b"p", "/x/", ["a", "b"], [""])
    assert copy_key(partial, [("a", b"1")]) != copy_key(partial, [("a", b"2")])
    assert copy_key(partial, [("a", b"1"), ("b", b"2")]) != copy_key(partial, [("b", b"2"), ("a", b"1")])
    assert workdir_key(b"p", "/w", "") != workdir_key(b"p", "/w", "app") != workdir_key(b"p", "/w", "app", 5)
    assert configure_key(b"p", b"{}") != configure_key(b"p", b"{} ")


def test_a_local_cache_gives_back_what_it_got(tmp_path: Path) -> None:
    with Store.open(tmp_path / "root") as store:
        cache = LocalCache(store)
        assert cache.lookup("k") is None
        assert not cache.earlier("partial")
        step = CachedStep(digest(b"top"), 7, "chain", (digest(b"a"), digest(b"b")), {"options": ["x"]})
        cache.record("k", "partial", "copy", "COPY a /", step)
        found = cache.lookup("k")
        assert found == step
        assert found is not None
        assert found.diff_ids == (digest(b"a"), digest(b"b"), digest(b"top"))
        assert found.inputs == {"options": ["x"]}
        assert cache.earlier("partial")
        cache.record("n", "", "run", "RUN true", CachedStep(None, 0))
        nothing = cache.lookup("n")
        assert nothing is not None
        assert nothing.diff_ids == ()
    with Store.open(tmp_path / "root") as store:
        assert LocalCache(store).lookup("k") == step


def test_use_is_noted_now_and_then(tmp_path: Path) -> None:
    with Store.open(tmp_path / "root") as store:
        cache = LocalCache(store)
        cache.record("k", "", "run", "RUN true", CachedStep(None, 0))
        first = store.metadata.steps.get("k")
        cache.touch(["k", "unknown"])
        again = store.metadata.steps.get("k")
        assert first is not None
        assert again is not None
        assert again.last_used_ns == first.last_used_ns, "within the hour nothing is written"
        store.metadata.steps.touch(["k"], time.time_ns() + 2 * 3600 * 10**9)
        later = store.metadata.steps.get("k")
        assert later is not None
        assert later.last_used_ns > first.last_used_ns
