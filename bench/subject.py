"""The subject: pylayers, as whole processes and as library calls, with its memory watched and its layers checked."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from source import TreeSize

from pylayers.engine import Engine
from pylayers.store.entry import FLAG_HARDLINK, FLAG_IMPLICIT

SAMPLE_INTERVAL_S = 0.005


class SubjectError(RuntimeError):
    """A pylayers command failed, or made something else than it should."""


@dataclass(frozen=True, slots=True)
class Run:
    """One timed process."""

    seconds: float
    rss_anon_bytes: int  # highest seen


def find_command() -> tuple[str, ...]:
    """Return how pylayers is run: the installed script, else the module of this checkout."""
    script = Path(sys.executable).with_name("pylayers")
    return (str(script),) if script.exists() else (sys.executable, "-m", "pylayers.cli")


def environment() -> dict[str, str]:
    """Return an environment in which the module of this checkout is found, compiled once as an installed one is."""
    given = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    given.pop("PYTHONDONTWRITEBYTECODE", None)
    return given


def fresh_root(root: Path, base: Path, reference: str) -> None:
    """Make an empty data root that holds the base image alone."""
    shutil.rmtree(root, ignore_errors=True)
    with Engine.open(root) as engine:
        engine.images.import_(base, reference)


def build_process(root: Path, context: Path, dockerfile: Path, reference: str, *, no_cache: bool) -> Run:
    """Run `pylayers build` and watch its memory."""
    options = ("--no-cache",) if no_cache else ()
    command = (
        *find_command(), "--root", str(root), "build", *options, "-f", str(dockerfile), "-t", reference, str(context),
    )  # fmt: skip
    return watch_process(command)[0]


def build_apart(root: Path, context: Path, dockerfile: Path, reference: str) -> Run:
    """Build by a call in a process of its own that has built something small before; the seconds are the call's."""
    script = Path(__file__).with_name("once.py")
    command = (sys.executable, str(script), str(root), str(context), str(dockerfile), reference)
    run, output = watch_process(command)
    return Run(float(output.splitlines()[-1]), run.rss_anon_bytes)


def watch_process(command: tuple[str, ...]) -> tuple[Run, str]:
    """Run a command, watch its memory and return what it printed. Raises SubjectError when it fails."""
    given = environment()
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=given, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        watch = MemoryWatch(process.pid)
        status = process.wait()
        seconds = time.perf_counter() - started
        watch.stop()
        output.seek(0)
        told = output.read().decode(errors="replace")
    if status:
        raise SubjectError(f"{' '.join(command)} failed:\n{told[-2000:]}")
    return Run(seconds, watch.peak_bytes), told


class MemoryWatch:
    """Sample a process's RssAnon in a thread."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._descriptor = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_INTERVAL_S):
            try:
                text = os.pread(self._descriptor, 4096, 0)
            except ProcessLookupError:
                return
            _, found, rest = text.partition(b"RssAnon:")
            if found:
                self.peak_bytes = max(self.peak_bytes, int(rest.split(None, 1)[0]) << 10)

    def stop(self) -> None:
        """End the sampling."""
        self._ended.set()
        self._thread.join()
        os.close(self._descriptor)


def build_call(engine: Engine, context: Path, dockerfile: Path, reference: str) -> float:
    """Build through an open engine, and return the call's seconds."""
    started = time.perf_counter()
    engine.build(context, dockerfile=dockerfile, references=(reference,))
    return time.perf_counter() - started


def layer_tar(root: Path, reference: str) -> Path:
    """Return the tar of an image's topmost layer, whole: a hole is read faster than any disk."""
    with Engine.open(root) as engine:
        image = engine.images.get(reference)
        return Path(engine.store.layers.open(image.config.diff_ids[-1]).make_whole())


def check_layer(root: Path, reference: str, wanted: TreeSize, above: int) -> None:
    """Compare an image's topmost layer with its source: entries, bytes, and the tar's own digest.

    above counts the directories that lead to the destination. Raises SubjectError.
    """
    with Engine.open(root) as engine:
        image = engine.images.get(reference)
        layer = engine.store.layers.open(image.config.diff_ids[-1])
        entries = size_bytes = 0
        for entry in layer.table:
            entries += not entry.flags & FLAG_IMPLICIT
            if stat.S_ISREG(entry.mode) and not entry.flags & FLAG_HARDLINK:
                size_bytes += entry.size_bytes
        found = TreeSize(entries - above, size_bytes)
        engine.store.layers.verify(layer.diff_id)
    if found != wanted:
        raise SubjectError(f"{reference}: the layer holds {found}, its source {wanted}")
