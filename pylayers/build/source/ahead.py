"""Confirm a context's trees while the rest of the engine is still being imported.

An unchanged rebuild is half start-up, which needs one core and the GIL, and half `confirm`, which needs neither. What
the last build of a Dockerfile walked is noted beside the stat cache, so that the next process can begin with it at
once. It is a head start and nothing else: whatever is wrong with it, the build does without.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from pylayers._native import confirm
from pylayers.errors import PylayersError
from pylayers.record import record
from pylayers.store.location import STAT_CACHE_FOLDER, default_root
from pylayers.store.statcache import KnownTree, StatCache

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading

FRESH_NS = 1_000_000_000  # a step that comes later looks at its sources when it comes
LEAST_ROWS = 1000  # fewer are confirmed sooner than a thread starts


@record
class Confirmed:
    """Say what has changed of a known tree: rows of plain files, none, or more than that (None)."""

    known: KnownTree
    changed: bytes | None


@record(frozen=False)
class Start:
    """Hold a tree that is being confirmed, by a thread of its own and then by whoever waits for it."""

    known: KnownTree
    descriptor: int
    work: confirm.Confirmation
    started_ns: int
    thread: threading.Thread

    def finish(self) -> bytes | None:
        """Help with what is left, and tell what has changed, as confirm does."""
        self.work.run()
        self.thread.join()
        return self.work.changed


_started: dict[str, Start] = {}  # by the stat cache's file


def begin(root: str | None, context: str, dockerfile: str | None) -> None:
    """Begin to confirm what the last build of this Dockerfile walked. Never raises; take() has the answer."""
    try:
        cache = StatCache(os.path.join(os.path.abspath(root or default_root()), STAT_CACHE_FOLDER))
        directory = os.path.realpath(context)
        for key in cache.expected(name_build(directory, dockerfile or os.path.join(context, "Dockerfile"))):
            known = cache.load(key)
            if known is None:
                continue
            import threading  # which small trees do without

            descriptor = os.open(key.partition("\0")[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            work = confirm.Confirmation(descriptor, known.records, known.heap, known.trusted_before_ns)
            start = Start(known, descriptor, work, time.monotonic_ns(), threading.Thread(target=work.run, daemon=True))
            start.thread.start()
            _started[cache.path(key)] = start
    except (OSError, ValueError, RuntimeError, PylayersError):
        return


def take(cache: StatCache, key: str, root_fd: int) -> Confirmed | None:
    """Return a tree that was begun with; None where nothing of use was begun.

    root_fd is what the build has open: it must be the directory that was confirmed.
    """
    if not _started:
        return None
    start = _started.pop(cache.path(key), None)
    if start is None:
        return None
    changed = start.finish()
    same = os.path.sameopenfile(start.descriptor, root_fd)
    os.close(start.descriptor)
    if not same or time.monotonic_ns() - start.started_ns > FRESH_NS:
        return None
    return Confirmed(start.known, changed)


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
