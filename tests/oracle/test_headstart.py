"""The thread that writes to a cgroup's file for a while, on pipes."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator

import pytest

from pylayers._native import headstart

MS = 1_000_000
LIMIT_S = 10


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Let the thread of the test before end first, and that of this one."""
    await_end()
    yield
    await_end()


def await_end() -> None:
    end_s = time.monotonic() + LIMIT_S
    while headstart.is_rewriting():
        assert time.monotonic() < end_s
        time.sleep(0.001)


def is_readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(LIMIT_S * 1000))


def read_all(descriptor: int) -> bytes:
    """Read until the last writer has closed its end."""
    content = b""
    while True:
        assert is_readable(descriptor)
        more = os.read(descriptor, 4096)
        if not more:
            os.close(descriptor)
            return content
        content += more


def test_it_writes_at_once_and_until_its_time_is_over() -> None:
    read_end, write_end = os.pipe()
    begun_ns = time.monotonic_ns()
    headstart.rewrite(write_end, 5 * MS, 60 * MS)
    content = read_all(read_end)
    assert time.monotonic_ns() - begun_ns >= 55 * MS  # the last pause may end a little behind the time
    assert content == b"0" * len(content)
    assert 1 <= len(content) <= 13


def test_a_time_of_nothing_writes_nothing() -> None:
    read_end, write_end = os.pipe()
    headstart.rewrite(write_end, MS, 0)
    assert read_all(read_end) == b""


def test_a_second_call_makes_the_one_thread_go_on_for_longer() -> None:
    read_end, write_end = os.pipe()
    other_read, other_write = os.pipe()
    headstart.rewrite(write_end, MS, 5_000 * MS)
    assert is_readable(read_end)
    headstart.rewrite(other_write, MS, 20 * MS)  # from now on
    assert read_all(other_read) == b""  # closed, as it isn't needed
    begun_s = time.monotonic()
    assert set(read_all(read_end)) == {ord("0")}
    assert time.monotonic() - begun_s < 4


def test_a_write_that_fails_ends_it() -> None:
    read_end, write_end = os.pipe()
    headstart.rewrite(os.dup(read_end), MS, 3_600_000 * MS)
    await_end()
    os.close(write_end)
    assert read_all(read_end) == b""


def test_a_forked_child_has_none_and_may_begin_its_own() -> None:
    read_end, write_end = os.pipe()
    own_read, own_write = os.pipe()
    headstart.rewrite(write_end, MS, 100 * MS)
    child = os.fork()
    if child == 0:
        had = headstart.is_rewriting()
        headstart.rewrite(own_write, MS, 20 * MS)
        while headstart.is_rewriting():
            time.sleep(0.001)
        os._exit(1 if had else 0)
    os.close(own_write)
    assert os.waitpid(child, 0)[1] == 0
    assert set(read_all(own_read)) == {ord("0")}
    assert set(read_all(read_end)) == {ord("0")}


@pytest.mark.parametrize(("interval_ns", "lasting_ns"), [(0, 1), (-1, 1), (1, -1)])
def test_times_that_are_none_are_refused_and_the_descriptor_is_closed(interval_ns: int, lasting_ns: int) -> None:
    read_end, write_end = os.pipe()
    with pytest.raises(ValueError, match="positive"):
        headstart.rewrite(write_end, interval_ns, lasting_ns)
    assert not headstart.is_rewriting()
    assert read_all(read_end) == b""
