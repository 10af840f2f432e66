"""ARG, ENV and the words of instructions, by what they leave in an image's configuration.

Every Dockerfile here was built by docker 28.5 too, with the same labels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pylayers.build.event import Event, StepStarted
from pylayers.engine import Engine
from pylayers.errors import InvalidInput
from pylayers.oci.platform import Platform

Labels = Mapping[str, str]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine.open(tmp_path_factory.mktemp("root")) as opened:
        yield opened


def build(engine: Engine, directory: Path, text: str, target: str | None = None, **given: str) -> Labels:
    (directory / "Dockerfile").write_text(text)
    result = engine.build(directory, arguments=given, target=target, references=("language",))
    assert result.image_digest
    return engine.images.get("language").config.config.labels


OPERATORS = """FROM scratch
ARG SET=value EMPTY= PATHS=/usr/local/usr/lib
LABEL plain=$SET braces=${SET} unset=$NOPE empty=$EMPTY dollar=a$ dot=$SET.x
LABEL minus=${NOPE-d} minus_empty=${EMPTY-d} colon_minus=${EMPTY:-d} colon_minus_set=${SET:-d}
LABEL plus=${SET+s} plus_unset=${NOPE+s} plus_empty=${EMPTY+s} colon_plus_empty=${EMPTY:+s} colon_plus=${SET:+s}
LABEL required=${SET?no} required_colon=${SET:?no} required_empty=${EMPTY?no}
LABEL head=${PATHS#*/} head_long=${PATHS##*/} tail=${PATHS%/*} tail_long=${PATHS%%/*} none=${PATHS#x}
LABEL once=${PATHS/usr/opt} every=${PATHS//usr/opt} away=${PATHS//\\//} nested=${NOPE:-${EMPTY:-$SET}}
"""
OPERATOR_LABELS = {
    "plain": "value", "braces": "value", "unset": "", "empty": "", "dollar": "a$", "dot": "value.x",
    "minus": "d", "minus_empty": "", "colon_minus": "d", "colon_minus_set": "value",
    "plus": "s", "plus_unset": "", "plus_empty": "s", "colon_plus_empty": "", "colon_plus": "s",
    "required": "value", "required_colon": "value", "required_empty": "",
    "head": "usr/local/usr/lib", "head_long": "lib", "tail": "/usr/local/usr", "tail_long": "",
    "none": "/usr/local/usr/lib", "once": "/opt/local/usr/lib", "every": "/opt/local/opt/lib", "away": "usrlocalusrlib",
    "nested": "value",
}  # fmt: skip
QUOTES = """FROM scratch
ENV A=1
LABEL single='$A' double="$A" escaped=\\$A inside="a\\"b" kept='a\\b' backslash="a\\b" twice=a\\\\b
LABEL space="a b" joined=a\\ b mixed=a'b c'"d e"f empty="" both="'$A'" other='"$A"'
LABEL legacy  two  words
"""
QUOTE_LABELS = {
    "single": "$A", "double": "1", "escaped": "$A", "inside": 'a"b', "kept": "a\\b", "backslash": "a\\b",
    "twice": "a\\b", "space": "a b", "joined": "a b", "mixed": "ab cd ef", "empty": "", "both": "'1'", "other": '"$A"',
    "legacy": "two  words",
}  # fmt: skip

CASES: list[tuple[str, str, dict[str, str], dict[str, str]]] = [
    ("operators", OPERATORS, {}, OPERATOR_LABELS),
    ("quotes and escapes", QUOTES, {}, QUOTE_LABELS),
    ("the backtick escapes", "# escape=`\nFROM scratch\nENV A=1\nLABEL a=`$A b=c:\\dir\\$A", {},
     {"a": "$A", "b": "c:\\dir\\1"}),
    ("values from before the instruction", "FROM scratch\nENV A=old\nENV A=new B=$A\nLABEL a=$A b=$B", {},
     {"a": "new", "b": "old"}),
    ("an ARG's pairs see those before them", "FROM scratch\nARG A=1 B=$A-2 C=$B-3\nLABEL c=$C", {}, {"c": "1-2-3"}),
    ("a value is not expanded again", "FROM scratch\nENV A='$B' B=1\nLABEL a=$A", {}, {"a": "$B"}),
    ("ENV over ARG", "FROM scratch\nARG A=arg\nENV A=env\nLABEL a=$A", {}, {"a": "env"}),
    ("ENV over --build-arg", "FROM scratch\nARG A=arg\nENV A=env\nLABEL a=$A", {"A": "given"}, {"a": "env"}),
    ("ENV from ARG", "FROM scratch\nARG A=arg\nENV A=${A:-env}\nLABEL a=$A", {"A": "given"}, {"a": "given"}),
    ("--build-arg over a default", "FROM scratch\nARG A=arg\nLABEL a=$A", {"A": "given"}, {"a": "given"}),
    ("an empty --build-arg counts", "FROM scratch\nARG A=arg\nLABEL a=$A b=${A-unset}", {"A": ""}, {"a": "", "b": ""}),
    ("--build-arg is no value before its ARG", "FROM scratch\nLABEL a=${A:-none}\nARG A\nLABEL b=$A", {"A": "given"},
     {"a": "none", "b": "given"}),
    ("an undeclared --build-arg is nothing", "FROM scratch\nLABEL a=${A:-none}", {"A": "given"}, {"a": "none"}),
    ("an ARG again", "FROM scratch\nARG A=1\nARG A=2\nLABEL a=$A\nARG A\nLABEL b=$A", {}, {"a": "2", "b": "2"}),
    ("a default from another ARG", "FROM scratch\nARG A\nARG B=${A:-x}y\nLABEL b=$B", {"A": "given"}, {"b": "giveny"}),
    ("a global ARG is out of sight", "ARG A=global\nFROM scratch\nLABEL a=${A:-none}", {}, {"a": "none"}),
    ("until it is declared", "ARG A=global\nFROM scratch\nARG A\nLABEL a=$A", {}, {"a": "global"}),
    ("its default there wins", "ARG A=global\nFROM scratch\nARG A=own\nLABEL a=$A", {}, {"a": "own"}),
    ("global ARGs see each other", "ARG A=1\nARG B=${A}2\nFROM scratch\nARG B\nLABEL b=$B", {}, {"b": "12"}),
    ("--build-arg for a global ARG", "ARG A=1\nARG B=${A}2\nFROM scratch\nARG B\nLABEL b=$B", {"A": "x"}, {"b": "x2"}),
    ("a global ARG names the base", "ARG BASE=one\nFROM scratch AS one\nLABEL a=1\nFROM scratch AS two\nLABEL a=2\n"
     "FROM $BASE", {"BASE": "two"}, {"a": "2"}),
    ("a child stage inherits both", "FROM scratch AS one\nARG A=1\nENV B=2\nFROM one\nLABEL a=$A b=$B", {},
     {"a": "1", "b": "2"}),
    ("a sibling inherits nothing",
     "FROM scratch AS one\nARG A=1\nENV B=2\nFROM scratch\nLABEL a=${A:-none} b=${B:-none}",
     {}, {"a": "none", "b": "none"}),
    ("in a child ENV counts over ARG again",
     "FROM scratch AS one\nENV A=env\nARG A=arg\nLABEL a=$A\nFROM one\nLABEL b=$A",
     {}, {"a": "arg", "b": "env"}),
    ("TARGETSTAGE", "FROM scratch\nARG TARGETSTAGE\nLABEL a=$TARGETSTAGE", {}, {"a": "default"}),
    ("a platform ARG must be declared", "FROM scratch\nLABEL a=${TARGETOS:-none}\nARG TARGETOS\nLABEL b=$TARGETOS", {},
     {"a": "none", "b": "linux"}),
    ("a platform ARG's own default", "FROM scratch\nARG TARGETOS=other\nLABEL a=$TARGETOS", {}, {"a": "other"}),
    ("a proxy ARG has no value of its own",
     "FROM scratch\nLABEL a=${HTTP_PROXY:-none}", {"HTTP_PROXY": "p"}, {"a": "none"}),
    ("a declared proxy", "FROM scratch\nARG HTTP_PROXY\nLABEL a=$HTTP_PROXY", {"HTTP_PROXY": "p"}, {"a": "p"}),
    ("LABEL's keys expand", "FROM scratch\nENV K=key\nLABEL $K=1 a.$K.b=2", {}, {"key": "1", "a.key.b": "2"}),
    ("ENV's keys expand", "FROM scratch\nARG K=NAME\nENV ${K}_X=1\nLABEL a=$NAME_X", {}, {"a": "1"}),
    ("a continued line", "FROM scratch\nLABEL a=1 \\\n  # between\n  b=2 \\\n\n  c=3", {},
     {"a": "1", "b": "2", "c": "3"}),
    ("an ONBUILD sees its child's values", "FROM scratch AS one\nENV A=1\nONBUILD LABEL a=$A\nENV A=2\nFROM one", {},
     {"a": "2"}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "given", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_labels(engine: Engine, tmp_path: Path, text: str, given: dict[str, str], expected: Labels) -> None:
    assert build(engine, tmp_path, text, **given) == expected


def test_the_platform_arguments(engine: Engine, tmp_path: Path) -> None:
    names = ("PLATFORM", "OS", "OSVERSION", "ARCH", "VARIANT")
    text = "FROM scratch\n" + "".join(
        f"ARG {side}{name}\nLABEL {side}{name}=${side}{name}\n" for side in ("BUILD", "TARGET") for name in names
    )
    here = Platform.from_machine(os.uname().machine)
    labels = build(engine, tmp_path, text)
    for side in ("BUILD", "TARGET"):
        assert [labels[side + name] for name in names] == [str(here), here.os, "", here.architecture, here.variant]


def test_the_target_is_a_value_of_the_build(engine: Engine, tmp_path: Path) -> None:
    text = "FROM scratch AS One\nARG TARGETSTAGE\nLABEL a=$TARGETSTAGE\nFROM scratch"
    assert build(engine, tmp_path, text, target="one") == {"a": "one"}


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("FROM scratch\nLABEL a=${A:?give_it}", "A: give_it", 2),
        ("FROM scratch\nARG A=\nLABEL a=${A:?}", "A: is not allowed to be empty", 3),
        ("ARG A\nFROM ${A}", "should not be blank", 2),
        ("ARG A=${B:?no}\nFROM scratch", "B: no", 1),
        ("FROM scratch\nLABEL a=${A", "missing '}'", 2),
        ("FROM scratch\n\nENV A='b", "single-quote", 3),
        ("FROM scratch\nCOPY --chown=${A a /b", "missing '}'", 2),
    ],
)
def test_what_cannot_be_expanded_is_refused(
    engine: Engine, tmp_path: Path, text: str, message: str, line: int
) -> None:
    with pytest.raises(InvalidInput) as caught:
        build(engine, tmp_path, text)
    assert message in caught.value.message
    assert caught.value.span is not None
    assert caught.value.span.line == line


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("EXPOSE abc", "invalid containerPort: abc"),
        ("STOPSIGNAL NOPE", "invalid signal: NOPE"),
        ("LABEL a=${A:?no}", "A: no"),
        ("COPY --chmod=9 a /", "invalid chmod parameter"),
        ("RUN --mount=type=nope,target=/x true", "unsupported mount type"),
        ("ADD --checksum=sha256:1 a /", "checksum requires"),
    ],
)
def test_a_mistake_further_down_ends_a_build_before_its_first_step(
    engine: Engine, tmp_path: Path, last: str, message: str
) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "Dockerfile").write_text(f"FROM scratch\nCOPY a /\n{last}\n")
    events: list[Event] = []
    with pytest.raises(InvalidInput) as caught:
        engine.build(tmp_path, subscriber=events.append)
    assert message in caught.value.message
    assert caught.value.span is not None
    assert caught.value.span.line == 3
    assert f">>> {last}" in caught.value.excerpt
    assert not [event for event in events if isinstance(event, StepStarted)]


def test_a_build_s_warnings_are_those_of_the_stages_that_it_takes(engine: Engine, tmp_path: Path) -> None:
    text = "FROM scratch AS one\nCMD x\nFROM scratch AS two\nENV A b\nLABEL c=$D\nMAINTAINER e\n"
    (tmp_path / "Dockerfile").write_text(text)
    expected = {("LegacyKeyValueFormat", 4), ("UndefinedVar", 5), ("MaintainerDeprecated", 6)}
    for _ in range(2):  # the second time they come from the cache
        result = engine.build(tmp_path)
        assert {(one.rule, one.line) for one in result.warnings} == expected
    (tmp_path / "Dockerfile").write_text("# check=error=true\n" + text)
    for _ in range(2):
        with pytest.raises(InvalidInput, match="lint violation found for rules: LegacyKeyValueFormat"):
            engine.build(tmp_path)


def test_the_files_of_a_context_are_those_that_its_dockerfile_s_ignore_file_leaves(
    engine: Engine, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".dockerignore").write_text("a\n")
    (tmp_path / "Dockerfile.dockerignore").write_text("# first\nb\n!nothing\n")
    text = "FROM scratch\nCOPY . /made/\n"
    build(engine, tmp_path, text)
    assert copied(engine) >= {"made/a", "made/c"}
    assert "made/b" not in copied(engine)
    (tmp_path / "Dockerfile.dockerignore").unlink()
    build(engine, tmp_path, text)
    assert copied(engine) >= {"made/b", "made/c"}
    assert "made/a" not in copied(engine)


def copied(engine: Engine) -> set[str]:
    (diff_id,) = engine.images.get("language").config.diff_ids
    table = engine.store.layers.open(diff_id).table
    return {table.path(entry).decode() for entry in table}
