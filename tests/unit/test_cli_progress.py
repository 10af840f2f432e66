"""What a build shows: plain lines, JSON lines, the live part."""

from __future__ import annotations

import io
import json

import pytest

from pylayers.build.event import (
    BuildFinished,
    BuildResult,
    BuildWarning,
    Event,
    Step,
    StepFinished,
    StepOutput,
    StepStarted,
    StepStatus,
)
from pylayers.cli.live import LiveProgress, clean
from pylayers.cli.progress import JsonProgress, LineSplitter, PlainProgress, QuietProgress, Writer, open_progress

BASE = Step("stage-0", 1, 3, "FROM ubuntu", 1)
RUN = Step("stage-0", 2, 3, "RUN make &&\n  make install", 2)
OTHER = Step("web", 2, 2, "COPY . /", 7)
EVENTS: list[Event] = [
    StepStarted(BASE),
    StepFinished(BASE, StepStatus.CACHED, 0.0, 0, None),
    StepStarted(RUN),
    StepOutput(RUN, "stdout", b"one\ntw"),
    StepStarted(OTHER),
    StepOutput(RUN, "stdout", b"o\nrest \xff"),
    BuildWarning("odd", "Rule", "Dockerfile", 3),
    StepFinished(OTHER, StepStatus.FAILED, 1.25, 0, None),
    StepFinished(RUN, StepStatus.BUILT, 0.3, 12_300_000, "sha256:1"),
    BuildFinished("sha256:m", ("a:1",), 2.0),
]
RESULT = BuildResult("sha256:m", "sha256:c", ("a:1", "b:2"), (EVENTS[1],), (), 2.0)  # type: ignore[arg-type]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain() -> None:
    stream = io.StringIO()
    progress = PlainProgress(Writer(stream), clock=lambda: 5.0)
    for event in EVENTS:
        progress.take(event)
    progress.close(RESULT)
    assert stream.getvalue().splitlines() == [
        "#1 [stage-0 1/3] FROM ubuntu",
        "#1 CACHED",
        "",
        "#2 [stage-0 2/3] RUN make &&   make install",
        "#2 0.00 one",
        "",
        "#3 [web 2/2] COPY . /",
        "",
        "#2 0.00 two",
        "WARNING: Dockerfile:3: Rule: odd",
        "",
        "#3 ERROR 1.2s",
        "",
        "#2 0.00 rest \ufffd",
        "#2 DONE 0.3s 12.3MB",
        "",
        "image sha256:c",
        "manifest sha256:m",
        "naming to a:1",
        "naming to b:2",
        "built in 2.0s, 1 of 1 steps cached",
    ]


def test_plain_knows_a_step_whose_total_grew() -> None:
    stream = io.StringIO()
    progress = PlainProgress(Writer(stream))
    progress.take(StepStarted(BASE))
    progress.take(StepFinished(Step("stage-0", 1, 9, "FROM ubuntu", 1), StepStatus.CACHED, 0, 0, None))
    assert stream.getvalue() == "#1 [stage-0 1/3] FROM ubuntu\n#1 CACHED\n"


def test_json_has_one_object_for_each_event() -> None:
    stream = io.StringIO()
    progress = JsonProgress(Writer(stream))
    for event in EVENTS:
        progress.take(event)
    progress.close(RESULT)
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [one["event"] for one in found][:4] == ["step_started", "step_finished", "step_started", "step_output"]
    assert len(found) == len(EVENTS)
    assert found[1]["status"] == "cached"
    assert found[2]["step"]["instruction"] == RUN.instruction
    assert found[5]["content"] == "o\nrest \ufffd"
    assert found[-1] == {"event": "build_finished", "image_digest": "sha256:m", "references": ["a:1"], "seconds": 2.0}


def test_short_build_on_a_terminal_is_shown_without_the_live_part() -> None:
    stream = Terminal()
    progress = LiveProgress(Writer(stream), stream, start_after_s=60)
    for event in EVENTS[:2]:
        progress.take(event)
    progress.close(RESULT)
    assert stream.getvalue().splitlines()[0] == "✔ [stage-0 1/3] FROM ubuntu  CACHED"
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("width", [1, 20, 80])
@pytest.mark.parametrize("height", [1, 2, 3, 10, 50])
def test_live_part_fits_any_terminal(width: int, height: int) -> None:
    stream = Terminal()
    progress = LiveProgress(Writer(stream), stream, start_after_s=60)
    for number in range(4):
        step = Step("stage", number, 4, "RUN something that takes long", number)
        progress.take(StepStarted(step))
        progress.take(StepOutput(step, "stderr", b"".join(b"line %d\n" % line for line in range(30))))
    lines = list(progress.lines(width, height))
    assert 1 <= len(lines) <= height
    if width > 10:
        assert all(len(line) <= width for line in lines)
    if height == 50 and width > 10:
        assert [line for line in lines if "line" in line][5].strip() == "line 29"
    progress.close(None)


def test_live_part_starts_and_goes_away() -> None:
    stream = Terminal()
    progress = LiveProgress(Writer(stream), stream, start_after_s=0)
    progress.take(StepStarted(RUN))
    progress._timer.join(20)
    progress.take(StepOutput(RUN, "stdout", b"hello\n"))
    progress._live.refresh()  # type: ignore[union-attr]
    progress.take(StepFinished(RUN, StepStatus.BUILT, 0.3, 5, "sha256:1"))
    progress.close(RESULT)
    shown = stream.getvalue()
    assert "hello" in shown
    assert "✔ [stage-0 2/3] RUN make &&   make install  DONE 0.3s 5B" in shown
    assert shown.endswith("built in 2.0s, 1 of 1 steps cached\n")
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is back


def test_output_cannot_steer_the_terminal() -> None:
    assert clean("\x1b[31mred\x1b[0m \x1b]0;title\x07x") == "red x"
    assert clean(" 10%\r 20%\r") == " 20%"
    assert clean("a\tb\x08c") == "a       b c"


def test_unfinished_line_is_bounded() -> None:
    splitter = LineSplitter(limit_bytes=10)
    assert splitter.add(b"x" * 11) == ["x" * 11]
    assert splitter.take() == []
    assert splitter.add(b"a\nb") == ["a"]
    assert splitter.take() == ["b"]


def test_mode_is_chosen_by_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(open_progress("auto", io.StringIO()), PlainProgress)
    assert isinstance(open_progress("tty", io.StringIO()), PlainProgress)
    assert isinstance(open_progress("quiet", Terminal()), QuietProgress)
    assert isinstance(open_progress("rawjson", Terminal()), JsonProgress)
    live = open_progress("auto", Terminal())
    assert isinstance(live, LiveProgress)
    live.close(None)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_progress("auto", Terminal()), PlainProgress)


def test_build_goes_on_when_nobody_reads() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    writer = Writer(Gone())
    writer.write("x")
    writer.write("y")
