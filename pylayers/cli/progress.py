"""A build's progress on stderr: plain lines, a live display, JSON lines, or nothing."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from pylayers.build.event import (
    BuildFinished,
    BuildWarning,
    Event,
    Step,
    StepExplained,
    StepFinished,
    StepOutput,
    StepStarted,
    StepStatus,
)
from pylayers.cli.failure import discard, printable
from pylayers.record import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar, Protocol, TextIO

    from pylayers.build.event import BuildResult
else:
    Protocol = object

MODES = ("auto", "plain", "tty", "rawjson", "quiet")


class Progress(Protocol):
    """Take a build's events; `close` comes last, whether the build succeeded or not."""

    def take(self, event: Event) -> None:
        """Show one event."""

    def close(self, result: BuildResult | None) -> None:
        """Show the result; None for a build that failed, whose error is told elsewhere."""


def open_progress(mode: str, stream: TextIO | None = None) -> Progress:
    """Return the display for a mode of --progress; auto is live on a terminal and plain elsewhere."""
    stream = sys.stderr if stream is None else stream
    if mode == "auto":
        mode = "tty" if is_terminal(stream) else "plain"
    if mode == "quiet":
        return QuietProgress()
    writer = Writer(stream)
    if mode == "rawjson":
        return JsonProgress(writer)
    if mode == "tty" and is_terminal(stream):
        from pylayers.cli.live import LiveProgress

        return LiveProgress(writer, stream)
    return PlainProgress(writer)


def is_terminal(stream: TextIO) -> bool:
    """Tell whether a stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def key_of(step: Step) -> tuple[str, int, int]:
    """Return what stays the same of a step: its total grows when a base image brings ONBUILD triggers."""
    return step.stage, step.index, step.line


def name_of(step: Step) -> str:
    """Return a step's label in one line, without anything that would steer a terminal."""
    return printable(step.label)


def show_warning(warning: BuildWarning) -> str:
    """Return a warning in one line, with its place."""
    place = f"{warning.file}:{warning.line}: " if warning.file else ""
    return printable(f"WARNING: {place}{f'{warning.rule}: ' if warning.rule else ''}{warning.message}")


def show_outcome(event: StepFinished) -> str:
    """Return how a step ended: CACHED, or DONE with its time and bytes, or ERROR."""
    if event.status is StepStatus.CACHED:
        return "CACHED"
    from pylayers.cli.form import show_size

    word = "ERROR" if event.status is StepStatus.FAILED else "DONE"
    size = f" {show_size(event.size_bytes)}" if event.size_bytes else ""
    return f"{word} {event.seconds:.1f}s{size}"


def show_reasons(event: StepExplained) -> list[str]:
    """Return why a step was cached or not, with the paths that differ."""
    lines = []
    for reason in event.reasons:
        lines.append(printable(f"because {reason.cause.value.replace('_', ' ')}: {reason.message}"))
        lines += [printable(f"  {one.path}: {', '.join(one.differences)}") for one in reason.paths]
        if reason.path_count > len(reason.paths):
            lines.append(f"  … and {reason.path_count - len(reason.paths)} more")
    return lines


def show_result(result: BuildResult) -> list[str]:
    """Return the last lines: digests, names, and what the build took."""
    lines = [f"image {result.config_digest}", f"manifest {result.image_digest}"]
    lines += [f"naming to {reference}" for reference in result.references]
    return [*lines, f"built in {result.seconds:.1f}s, {result.cache_hits} of {len(result.steps)} steps cached"]


class Writer:
    """Write to a stream; when its reader goes away the build still goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False

    def write(self, text: str) -> None:
        """Write and flush."""
        if self._gone:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            self._gone = True
            discard(self._stream)


@record(frozen=False)
class LineSplitter:
    """Cut a stream's output into lines; the rest waits for its end."""

    limit_bytes: int = 64 << 10
    _rest: bytes = b""

    def add(self, content: bytes) -> list[str]:
        """Return the lines that content ends."""
        *lines, self._rest = (self._rest + content).split(b"\n")
        if len(self._rest) > self.limit_bytes:
            lines.append(self._rest)
            self._rest = b""
        return [line.decode(errors="replace") for line in lines]

    def take(self) -> list[str]:
        """Return the unfinished line, if there is one."""
        rest, self._rest = self._rest, b""
        return [rest.decode(errors="replace")] if rest else []


class QuietProgress:
    """Show nothing."""

    def take(self, event: Event) -> None:
        """Ignore the event."""

    def close(self, result: BuildResult | None) -> None:
        """Show nothing."""


@record(frozen=False)
class PlainStep:
    """What plain progress knows of one step."""

    number: int
    started: float
    outputs: dict[str, LineSplitter] = field(default_factory=dict)


class PlainProgress:
    """Print one line for everything that happens, like BuildKit's plain progress."""

    def __init__(self, writer: Writer, clock: Callable[[], float] = time.perf_counter) -> None:
        self._writer = writer
        self._clock = clock
        self._steps: dict[tuple[str, int, int], PlainStep] = {}
        self._last = 0  # number of the step that wrote last

    def take(self, event: Event) -> None:
        """Print an event."""
        if isinstance(event, StepStarted):
            self._start(event.step)
        elif isinstance(event, StepOutput):
            known = self._start(event.step)
            splitter = known.outputs.setdefault(event.stream, LineSplitter())
            self._print_output(known, splitter.add(event.content))
        elif isinstance(event, StepExplained):
            self._print(self._start(event.step).number, show_reasons(event))
        elif isinstance(event, StepFinished):
            known = self._start(event.step)
            for splitter in known.outputs.values():
                self._print_output(known, splitter.take())
            self._print(known.number, [show_outcome(event)])
        elif isinstance(event, BuildWarning):
            self._writer.write(f"{show_warning(event)}\n")

    def _start(self, step: Step) -> PlainStep:
        known = self._steps.get(key_of(step))
        if known is None:
            known = PlainStep(len(self._steps) + 1, self._clock())
            self._steps[key_of(step)] = known
            self._print(known.number, [name_of(step)])
        return known

    def _print_output(self, known: PlainStep, lines: list[str]) -> None:
        seconds = self._clock() - known.started
        self._print(known.number, [f"{seconds:.2f} {line}" for line in lines])

    def _print(self, number: int, lines: list[str]) -> None:
        if not lines:
            return
        gap = "\n" if self._last not in (0, number) else ""
        self._last = number
        self._writer.write(gap + "".join(f"#{number} {line}\n" for line in lines))

    def close(self, result: BuildResult | None) -> None:
        """Print the result."""
        if result is not None:
            self._writer.write("\n" + "".join(f"{line}\n" for line in show_result(result)))


class JsonProgress:
    """Print each event as one line of JSON, e.g. {"event": "step_started", "step": {…}}."""

    NAMES: ClassVar[dict[type[Event], str]] = {
        StepStarted: "step_started",
        StepOutput: "step_output",
        StepExplained: "step_explained",
        StepFinished: "step_finished",
        BuildWarning: "build_warning",
        BuildFinished: "build_finished",
    }

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def take(self, event: Event) -> None:
        """Print an event; output that is no UTF-8 has its bytes replaced."""
        import json

        from pylayers.record import to_mapping

        values = to_mapping(event)
        if isinstance(event, StepOutput):
            values["content"] = event.content.decode(errors="replace")
        elif isinstance(event, StepFinished | StepExplained):
            values["status"] = event.status.value
        self._writer.write(json.dumps({"event": self.NAMES[type(event)], **values}) + "\n")

    def close(self, result: BuildResult | None) -> None:
        """Print nothing: the last event said it."""
