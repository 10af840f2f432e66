"""The live display: finished steps scroll by, running ones stay below with their time and last lines of output.

rich takes longer to import than a build with nothing to do takes altogether. So the display starts after a moment,
in a thread of its own, and a build that ends before is shown without it.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from pylayers.build.event import (
    BuildWarning,
    Event,
    Step,
    StepExplained,
    StepFinished,
    StepOutput,
    StepStarted,
    StepStatus,
)
from pylayers.cli.form import clip
from pylayers.cli.progress import (
    LineSplitter,
    Writer,
    key_of,
    name_of,
    show_outcome,
    show_reasons,
    show_result,
    show_warning,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

    from pylayers.build.event import BuildResult

START_AFTER_SECONDS = 0.15
REFRESHES_PER_SECOND = 10
TAIL_LINES = 6
MARKS = {StepStatus.CACHED: "✔", StepStatus.BUILT: "✔", StepStatus.FAILED: "✘"}
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")


@dataclass(slots=True)
class RunningStep:
    """What is shown of a step that runs."""

    step: Step
    started: float
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    outputs: dict[str, LineSplitter] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)  # shown below its last line


class LiveProgress:
    """Show a build on a terminal of any size."""

    def __init__(self, writer: Writer, stream: TextIO, start_after_s: float = START_AFTER_SECONDS) -> None:
        self._writer = writer
        self._stream = stream
        self._began = time.perf_counter()
        self._lock = threading.Lock()
        self._running: dict[tuple[str, int, int], RunningStep] = {}
        self._finished = 0
        self._waiting: list[str] = []  # lines for above the live part, until it starts
        self._live: Live | None = None
        self._closed = False
        self._timer = threading.Timer(start_after_s, self._start)
        self._timer.daemon = True
        self._timer.start()

    def take(self, event: Event) -> None:
        """Take an event into what is shown."""
        with self._lock:
            if isinstance(event, StepStarted):
                self._running[key_of(event.step)] = RunningStep(event.step, time.perf_counter())
            elif isinstance(event, StepOutput):
                running = self._running.get(key_of(event.step))
                if running is not None:
                    splitter = running.outputs.setdefault(event.stream, LineSplitter())
                    running.lines.extend(clean(line) for line in splitter.add(event.content))
            elif isinstance(event, StepExplained):
                running = self._running.get(key_of(event.step))
                if running is not None:
                    running.reasons = show_reasons(event)
            elif isinstance(event, StepFinished):
                running = self._running.pop(key_of(event.step), None)
                self._finished += 1
                self._print(f"{MARKS[event.status]} {name_of(event.step)}  {show_outcome(event)}")
                for line in running.reasons if running is not None else ():
                    self._print(f"    {line}")
            elif isinstance(event, BuildWarning):
                self._print(show_warning(event))

    def _print(self, line: str) -> None:
        if self._live is None:
            self._waiting.append(line)
        else:
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _start(self) -> None:
        """Start the live part, unless the build has ended already."""
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self._stream, force_terminal=True)
        live = Live(
            self, console=console, refresh_per_second=REFRESHES_PER_SECOND, transient=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        with self._lock:
            if self._closed:
                return
            self._write_waiting()
            self._live = live
            live.start()

    def _write_waiting(self) -> None:
        self._writer.write("".join(f"{line}\n" for line in self._waiting))
        self._waiting.clear()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the live part, never higher than the terminal is now."""
        from rich.text import Text

        for line in self.lines(console.width, console.height - 1):
            yield Text(line, no_wrap=True, overflow="ellipsis")

    def lines(self, width: int, height: int) -> Iterator[str]:
        """Yield the live part's lines: every running step, and as much of their output as there is room for."""
        # Called under rich's lock while take() may wait for it: copies, and never our own lock.
        now = time.perf_counter()
        running = [(one, list(one.lines)) for one in list(self._running.values())][: max(height - 1, 0)]
        tail = min(TAIL_LINES, max(height - 1 - len(running), 0) // max(len(running), 1))
        yield clip(f"building {now - self._began:.1f}s, {self._finished} steps done", width)
        for one, lines in running:
            seconds = f" {now - one.started:.1f}s"
            yield clip(f"▸ {name_of(one.step)}", max(width - len(seconds), 1)) + seconds
            for line in lines[len(lines) - min(tail, len(lines)) :]:
                yield clip(f"    {line}", width)

    def close(self, result: BuildResult | None) -> None:
        """Take the live part away and print the result."""
        self._timer.cancel()
        with self._lock:
            self._closed = True
            live, self._live = self._live, None
        if live is not None:
            live.stop()
        self._write_waiting()
        if result is not None:
            self._writer.write("".join(f"{line}\n" for line in show_result(result)))


def clean(line: str) -> str:
    """Return what a line of output leaves visible on a terminal: no escapes, and only what follows the last return."""
    visible = _ESCAPE.sub("", line).rstrip("\r").rpartition("\r")[2].expandtabs(8)
    return "".join(letter if letter.isprintable() else " " for letter in visible)
