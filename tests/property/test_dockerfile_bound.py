"""No Dockerfile makes reading, planning or checking it hang, crash, or take more than its size allows.

Work is counted, not timed: the function calls of a whole check, for files that differ only in size. What would take
for ever ends a test by an alarm, which is there for nothing else.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers.build.dryrun import Findings, Question, check_content
from pylayers.build.plan import make_plan
from pylayers.build.state import StageState
from pylayers.dockerfile.lex import MAX_INSTRUCTIONS, MAX_LINE_BYTES
from pylayers.dockerfile.parse import parse
from pylayers.errors import InvalidInput, PylayersError
from pylayers.oci.config import RunConfig
from pylayers.oci.platform import Platform
from tests.property.alarm import alarm

pytestmark = pytest.mark.usefixtures(alarm.__name__)

HERE = Platform("linux", "amd64")
GROWTH = 4
# A file that is four times as large may take this many times the calls: quadratic work takes sixteen.
MOST_GROWTH = 6
MIB = 1 << 20


def check(content: bytes | str, triggers: tuple[str, ...] = ()) -> Findings:
    data = content.encode() if isinstance(content, str) else content
    base = StageState(HERE, config=RunConfig(on_build=triggers))
    question = Question(arguments={"GIVEN": "x"}, platform=HERE)
    return check_content(data, "Dockerfile", question, lambda *_: base)


def refusal(content: bytes | str, triggers: tuple[str, ...] = ()) -> str:
    error = check(content, triggers).error
    assert isinstance(error, InvalidInput)
    assert error.span is not None
    return error.message


def count_calls(work: Callable[[], object]) -> int:
    """Count the Python and C functions that a piece of work calls."""
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def lines(line: str) -> Callable[[int], str]:
    return lambda size: "FROM a\n" + "".join(line.replace("@", str(number)) + "\n" for number in range(size))


SHAPES: dict[str, Callable[[int], str]] = {
    "RUNs": lines("RUN echo @"),
    "RUNs with a mount": lines("RUN --mount=type=cache,target=/x@ --network=none echo @"),
    "ENVs": lines("ENV A=1 B@=$A C=@"),
    "one ENV": lambda size: "FROM a\nENV " + " \\\n ".join(f"A{n}=$A{n}" for n in range(size)),
    "ARGs": lines("ARG GIVEN=1 A@=$GIVEN"),
    "global ARGs": lambda size: "".join(f"ARG A{n}=$A{n - 1}\n" for n in range(size)) + "FROM a",
    "LABELs that are unset": lines("LABEL a@=$UNSET@"),
    "unset near a known one": lambda size: "FROM a\nENV KNOWN=1\n" + "LABEL a=$KNWON\n" * size,
    "COPYs": lines("COPY --chown=1:1 --chmod=755 a b@ c/"),
    "one COPY": lambda size: "FROM a\nCOPY " + " \\\n".join(f"a{n}" for n in range(size)) + " /",
    "JSON": lines('CMD ["a", "b@"]'),
    "one JSON": lambda size: "FROM a\nCMD [" + ", \\\n".join(f'"{n}"' for n in range(size)) + "]",
    "here-documents": lines("COPY <<A <<B /\nx$A\nA\ny\nB"),
    "one line of here-documents": lambda size: (
        "FROM a\nRUN " + "".join(f"<<A{n} \\\n" for n in range(size)) + "\n"
        + "".join(f"x\nA{n}\n" for n in range(size))
    ),
    "a here-document's lines": lambda size: "FROM a\nCOPY <<A /\n" + "x $B\n" * size + "A\n",
    "continuations": lambda size: "FROM a\nRUN a \\\n" + "  b \\\n" * size + "c",
    "empty continuations": lambda size: "FROM a\nRUN a \\\n" + "\n" * size + "c",
    "comments in continuations": lambda size: "FROM a\nRUN a \\\n" + "# b\n" * size + "c",
    "comments": lambda size: "FROM a\n" + "# b\n" * size + "RUN c",
    "blank lines": lambda size: "FROM a\n" + "\n" * size,
    "stages": lambda size: "".join(f"FROM a AS s{n}\n" for n in range(size)),
    "a chain of stages": lambda size: "FROM a AS s0\n" + "".join(
        f"FROM s{n} AS s{n + 1}\nENV A{n}=1\nARG B{n}=2\n" for n in range(size)
    ),
    "a star of stages": lambda size: "FROM a AS s\nENV A=1\n" + "FROM s\nENV B=1\n" * size,
    "stages that copy": lambda size: "FROM a AS s0\n" + "".join(
        f"FROM a AS s{n + 1}\nCOPY --from=s{n} a /\nRUN --mount=from=s0,target=/x true\n" for n in range(size)
    ),
    "stages of one name": lambda size: "FROM a AS s\n" * size,
    "FROMs with arguments": lambda size: "ARG A=a\n" + "FROM ${A}${UNSET} AS b\n" * size,
    "ONBUILDs": lambda size: "FROM a AS b\n" + "ONBUILD RUN true\n" * size + "FROM b",
    "a chain of ONBUILDs": lambda size: "FROM a AS s0\n" + "".join(
        f"ONBUILD RUN --mount=from=s0,target=/x true\nFROM s{n} AS s{n + 1}\n" for n in range(size)
    ),
    "EXPOSEs": lines("EXPOSE 1-65535/udp 80:80 $A"),
    "HEALTHCHECKs": lines("HEALTHCHECK --interval=1h1m1s --retries=@ CMD x"),
    "nested expansions": lambda size: "FROM a\n" + 'LABEL a="${A:-${B:-"${C:-d}"}}"\n' * size,
    "flags": lambda size: "FROM a\nRUN " + "--mount=type=tmpfs,target=/x \\\n" * size + "true",
    "unknown instructions' neighbours": lambda size: "FROM a\n" + "WORKDIR x\n" * size + "WROKDIR y",
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_work_grows_with_the_file(name: str) -> None:
    make, size = SHAPES[name], 60
    small, large = make(size), make(size * GROWTH)
    check(small)  # what is made once, such as compiled patterns
    before, after = count_calls(lambda: check(small)), count_calls(lambda: check(large))
    assert after <= before * MOST_GROWTH, f"{before} calls for {len(small)} characters, {after} for {len(large)}"


CHUNKS = st.sampled_from(
    [
        "FROM a AS b\n", "FROM b\n", "ARG A=$A$B\n", "ENV A=${A:-$B}x B=$A\n",
        "ENV A=\"$A'${B//a/$A}'\"\n", "RUN a \\\n",
        "RUN <<A <<-B\nx\nA\n\ty\n\tB\n", "COPY --from=b a $A /\n", "COPY <<A /\n$A ${B%%*x}\nA\n",
        "ONBUILD COPY a /\n",
        "EXPOSE 1-65535 $A\n", "LABEL a=$A b='\\\n", "# c\n", "\n", "CMD [\"a\", \\\n \"$A\"]\n", "HEALTHCHECK CMD x\n",
        "RUN --mount=type=cache,target=$A true\n", "VOLUME $A\n", "WORKDIR $A\n", "USER ${A?}\n", "SHELL [\"a\"]\n",
    ]
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(CHUNKS, min_size=1, max_size=6).map("".join))
def test_no_mixture_grows_faster(block: str) -> None:
    small, large = "FROM a\n" + block * 10, "FROM a\n" + block * 10 * GROWTH
    check(small)
    before, after = count_calls(lambda: check(small)), count_calls(lambda: check(large))
    assert after <= before * MOST_GROWTH + 1000


def test_a_line_of_ten_megabytes_is_refused_by_name() -> None:
    content = b"FROM a\nRUN " + b"x" * 10 * MIB
    tracemalloc.start()
    try:
        message = refusal(content)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert f"dockerfile line greater than max allowed size of {MAX_LINE_BYTES}" in message
    assert len(message) < 1000
    assert peak_bytes < 6 * len(content)


def test_ten_thousand_stages_are_planned() -> None:
    count = 10_000
    text = "FROM a AS s0\n" + "".join(f"FROM s{n} AS s{n + 1}\nCOPY --from=s{n} x /\n" for n in range(count - 1))
    found = check(text)
    assert found.error is None
    plan = make_plan(parse(text), {}, None)
    assert len(plan.stages) == count
    assert [planned.stage.index for planned in plan.stages] == [*range(count)]


def test_as_many_instructions_as_are_allowed_and_one_more() -> None:
    text = "FROM a\n" + "USER b\n" * (MAX_INSTRUCTIONS - 1)
    assert check(text).error is None
    assert f"more than {MAX_INSTRUCTIONS} instructions" in refusal(text + "USER b\n")


BOMBS = {
    "doubling": "FROM a\nENV A=xxxxxxxx\n" + "ENV A=$A$A\n" * 100,
    "many in one line": "FROM a\nENV A=xxxxxxxx\nENV " + " ".join(f"B{n}=" + "$A" * 30 for n in range(500)) + "\n"
    + "ENV A=$B1$B2$B3$B4$B5$B6$B7$B8\n" + "ENV A=$A$A$A$A$A$A$A\n" * 60,
    "doubling before FROM": "ARG A=xxxxxxxx\n" + "ARG A=$A$A\n" * 100 + "FROM $A",
    "doubling in a stage's ARGs": "FROM a\nARG A=xxxxxxxx\n" + "ARG A=$A$A\n" * 100,
    "many large ones": "FROM a\nENV A=" + "x" * 60_000 + "\n" + "ENV A=$A$A$A$A\n" * 3
    + "".join(f"ENV B{n}=$A\n" for n in range(2000)),
    "large ones used often": "FROM a\nENV A=" + "x" * 60_000 + "\n" + "ENV A=$A$A$A$A\n" * 3 + "LABEL a=$A\n" * 2000,
    "large ones in FROMs": "ARG A=" + "x" * 60_000 + "\n" + "ARG A=$A$A$A$A\n" * 3 + "FROM a$A\n" * 2000,
    "replacing": "FROM a\nENV A=" + "x" * 50_000 + "\n" + "ENV A=${A//x/xxxxxxxxxx}\n" * 20,
    "patterns": "FROM a\nENV A=" + "x" * 50_000 + "\n" + ("LABEL a=${A##" + "*x" * 20 + "y}\n") * 2000,
    "here-documents": "FROM a\nENV A=" + "x" * 60_000 + "\n" + "COPY <<E /\n" + "$A\n" * 2000 + "E\n",
    "mounts": "FROM a\nENV A=" + "x" * 60_000 + "\n" + "RUN --mount=type=cache,target=/$A,id=$A true\n" * 2000,
    "ports": "FROM a\n" + "EXPOSE " + " ".join(f"{n}-65535" for n in range(1, 2000)) + "\n",
    "variables of many children": "FROM a AS b\n" + "".join(f"ENV A{n}=1\n" for n in range(10_000)) + "FROM b\n" * 8000,
    "deep expansions": "FROM a\nLABEL a=" + "${A:-" * 10_000 + "}" * 10_000,
    "deep quotes": "FROM a\nLABEL a=" + '"${A:-' * 5_000 + '}"' * 5_000,
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_in_a_named_error_and_little_memory(name: str) -> None:
    tracemalloc.start()
    try:
        message = refusal(BOMBS[name])
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "more than" in message or "longer than" in message or "nested deeper" in message
    assert len(message) < 2000
    assert peak_bytes < 512 * MIB


def test_triggers_under_many_stages_end_in_a_named_error() -> None:
    message = "ONBUILD triggers make more than"
    assert message in refusal("FROM a AS b\n" + "ONBUILD RUN x\n" * 1000 + "FROM b\n" * 1000)
    assert message in refusal("FROM a\n" * 2000, triggers=("RUN x",) * 100)


def test_suggestions_for_many_names_are_bounded() -> None:
    text = "FROM a\n" + "".join(f"ENV KNOWN{n}=1\n" for n in range(2000)) + "".join(
        f"LABEL a=$KNWON{n}\n" for n in range(2000)
    )  # fmt: skip
    found = check(text)
    assert [one.rule for one in found.kept()] == ["UndefinedVar"] * 2000
    assert "did you mean" in found.kept()[0].message
    assert "did you mean" not in found.kept()[-1].message


LARGE = {
    "a giant here-document": ("FROM a\nRUN <<E\n" + "x" * 60 + "\n") + ("y" * 60 + "\n") * 60_000 + "E\n",
    "continuation lines": "FROM a\nRUN a \\\n" + "b \\\n" * 150_000 + "c",
    "an open here-document": "FROM a\nRUN <<E\n" + "y\n" * 150_000,
    "comments": "# a\n" * 150_000 + "FROM a",
    "words in lines": "FROM a\nLABEL " + "a=b c=d \\\n" * 60_000 + "e=f",
    "instructions": "FROM a\n" + "USER somebody:somegroup # and more\n" * 20_000,
    "open quotes in lines": "FROM a\nLABEL a='" + "\"x' \\\n" * 60_000,
    "JSON in lines": "FROM a\nCMD [" + '"a", \\\n' * 60_000 + '"b"]',
}


@pytest.mark.parametrize("name", LARGE)
def test_large_files_take_memory_by_their_size(name: str) -> None:
    content = LARGE[name].encode()
    tracemalloc.start()
    try:
        check(content)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 120 * len(content) + 16 * MIB


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=400), st.integers(1, 200))
def test_bytes_repeated_end_in_an_answer(block: bytes, times: int) -> None:
    error = check(b"FROM a\n" + block * times).error
    assert error is None or isinstance(error, PylayersError)
    if error is not None:
        assert len(error.message) < 5000
