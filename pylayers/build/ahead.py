"""Confirm a context's trees while the rest of the engine is still being imported.

An unchanged rebuild is half start-up, which needs one core and the GIL, and half `confirm`, which needs neither. What
the last build of a Dockerfile walked is noted beside the stat cache, so that the next process can begin with it at
once. It is a head start and nothing else: whatever is wrong with it, the build does without.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from pylayers._native import confirm
from pylayers.errors import PylayersError
from pylayers.record import record
from pylayers.store.location import STAT_CACHE_FOLDER, default_root
from pylayers.store.statcache import KnownTree, StatCache

FRESH_NS = 1_000_000_000  # a step that comes later looks at its sources when it comes
LEAST_ROWS = 1000  # fewer are confirmed sooner than a thread starts


@record(frozen=False)
class Start:
    """Hold a tree that is being confirmed."""

    known: KnownTree
    descriptor: int
    started_ns: int
    thread: threading.Thread | None = None
    confirmed: bool = False

    def run(self) -> None:
        """Confirm the tree; its thread's whole life."""
        known = self.known
        try:
            self.confirmed = confirm.confirm(
                self.descriptor, known.records, known.heap, known.trusted_before_ns, os.cpu_count() or 1
            )
        except ValueError:
            self.confirmed = False  # damaged: the walk that follows finds out what is still of use


_started: dict[str, Start] = {}  # by the stat cache's file


def begin(root: str | None, context: str, dockerfile: str | None) -> None:
    """Begin to confirm what the last build of this Dockerfile walked. Never raises; take() has the answer."""
    try:
        cache = StatCache(Path(os.path.abspath(root or default_root())) / STAT_CACHE_FOLDER)
        directory = os.path.realpath(context)
        for key in cache.expected(name_build(directory, dockerfile or os.path.join(context, "Dockerfile"))):
            known = cache.load(key)
            if known is None:
                continue
            descriptor = os.open(key.partition("\0")[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            start = Start(known, descriptor, time.monotonic_ns())
            start.thread = threading.Thread(target=start.run, daemon=True)
            start.thread.start()
            _started[str(cache.path(key))] = start
    except (OSError, ValueError, RuntimeError, PylayersError):
        return


def take(cache: StatCache, key: str, root_fd: int) -> tuple[KnownTree, bool] | None:
    """Return a tree that was begun with, and whether it is confirmed; None where nothing of use was begun.

    root_fd is what the build has open: it must be the directory that was confirmed.
    """
    if not _started:
        return None
    start = _started.pop(str(cache.path(key)), None)
    if start is None or start.thread is None:
        return None
    start.thread.join()
    same = os.path.sameopenfile(start.descriptor, root_fd)
    os.close(start.descriptor)
    if not same or time.monotonic_ns() - start.started_ns > FRESH_NS:
        return None
    return start.known, start.confirmed


def note(cache: StatCache, directory: str, dockerfile: str, keys: Sequence[str]) -> None:
    """Note what a build walked, for the next one; equal notes are left alone, and one that cannot be made is missed."""
    name = name_build(directory, dockerfile)
    try:
        if list(keys) != cache.expected(name):
            cache.expect(name, keys)
    except (OSError, PylayersError):
        return


def name_build(directory: str, dockerfile: str) -> str:
    """Name the builds that walk the same trees: those of one Dockerfile with one context."""
    return f"{directory}\0{os.path.realpath(dockerfile)}"
