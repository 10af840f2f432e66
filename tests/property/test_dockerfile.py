"""Whatever the text, the Dockerfile package answers with a result or InvalidInput, soon; fast paths equal slow ones."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers.build.dryrun import SETTINGS_ARGUMENT, Question, check_content
from pylayers.build.state import StageState
from pylayers.dockerfile import ignore, match, pattern
from pylayers.dockerfile import instructions as ins
from pylayers.dockerfile.expand import Mode, expand_word, process
from pylayers.dockerfile.parse import parse, parse_instruction
from pylayers.errors import InvalidInput
from pylayers.oci.platform import Platform
from tests.property.alarm import alarm

pytestmark = pytest.mark.usefixtures(alarm.__name__)

HERE = Platform("linux", "amd64")
FEW = settings(deadline=None, max_examples=150)

PIECES = st.sampled_from(
    [
        "FROM a", "FROM a AS b", "ARG A=1", "RUN ", "COPY ", "ADD ", "ENV ", "LABEL ", "HEALTHCHECK ", "ONBUILD ",
        "CMD ", "EXPOSE ", "VOLUME ", "SHELL ", "--from=b ", "--mount=x ", "--interval=5s ", "--", "<<EOF", "<<-'E'",
        "EOF", "E", "\n", "\n", "\r\n", "\\\n", "\\", "`", "#", "# escape=`\n", "# check=skip=all\n", " ", "\t", "'",
        '"', "[", "]", '["a"]', "$", "${", "}", ":-", "#", "%", "/", "x=y", "=", "*", "?", "é", "\0", "\ud800", "1",
    ]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=40).map("".join)
DOCKERFILES = st.one_of(TEXTS, TEXTS.map(lambda text: "FROM a\n" + text))


def walk(content: bytes | str) -> None:
    """Do everything a build does before it builds."""
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    question = Question(arguments={SETTINGS_ARGUMENT: "experimental=all"}, platform=HERE, ignore=ignore.IgnoreRules(()))
    found = check_content(data, "Dockerfile", question, lambda *_: StageState(HERE))
    for warning in found.kept():
        assert warning.span.line >= 1
    file = parse(content)
    for stage in file.stages:
        assert stage.span.line <= (stage.span.end_line or 0)
        for instruction in stage.instructions:
            instruction.span.text.encode("utf-8", "surrogatepass")
            try:
                expanded = instruction.expand({"A": "$B *'", "B": ""})
            except InvalidInput as error:
                assert error.span == instruction.span  # noqa: PT017
                continue
            assert type(expanded) is type(instruction)


@FEW
@given(DOCKERFILES)
def test_text_parses_or_is_refused(text: str) -> None:
    try:
        walk(text)
    except InvalidInput as error:
        assert error.span is not None  # noqa: PT017
        assert error.span.line >= 1  # noqa: PT017


@FEW
@given(st.binary(max_size=200))
def test_bytes_parse_or_are_refused(content: bytes) -> None:
    for data in (content, b"FROM a\nRUN " + content):
        try:
            walk(data)
        except InvalidInput as error:
            str(error).encode("utf-8")  # fit for printing


@FEW
@given(DOCKERFILES)
def test_places_partition_the_file(text: str) -> None:
    try:
        file = parse(text)
    except InvalidInput:
        return
    spans = [i.span for s in file.stages for i in (s.base, *s.instructions)]
    for before, after in itertools.pairwise(spans):
        assert (before.end_line or 0) < after.line


@FEW
@given(DOCKERFILES)
def test_a_trigger_reads_like_the_instruction_itself(text: str) -> None:
    try:
        file = parse("FROM a\n" + text)
    except InvalidInput:
        return
    for instruction in file.stages[0].instructions:
        if not isinstance(instruction, ins.Run) or instruction.heredocs or instruction.escape != "\\":
            continue
        (onbuild,) = parse(f"FROM a\nONBUILD {instruction.original}").stages[0].instructions
        assert isinstance(onbuild, ins.Onbuild)
        trigger = parse_instruction(onbuild.instruction)
        assert isinstance(trigger, ins.Run)
        assert (trigger.command, trigger.mounts) == (instruction.command, instruction.mounts)


@FEW
@given(st.text("ab$\\'\"{}:-+#%/* \n", max_size=40))
def test_words_join_to_the_text(word: str) -> None:
    try:
        result = process(word, {"a": "x y", "b": ""}, Mode())
    except InvalidInput:
        return
    if "${" not in word:  # there BuildKit's words lose what stands before
        assert "".join("".join(result.words).split()) == "".join(result.text.split())
    assert expand_word(word, {"a": "x y", "b": ""}) == result.text


@FEW
@given(st.text(max_size=60))
def test_single_quotes_keep_everything(text: str) -> None:
    quoted = "'" + text.replace("'", "'\"'\"'") + "'"
    assert expand_word(quoted, {}) == text


def shell_match(tokens: list[int], text: str) -> bool:
    """Match a whole text slowly: `*` and `?` stop at newlines."""
    if not tokens:
        return not text
    if tokens[0] == pattern.STAR:
        return shell_match(tokens[1:], text) or (text[:1] not in {"", "\n"} and shell_match(tokens, text[1:]))
    if not text:
        return False
    fits = text[0] != "\n" if tokens[0] == pattern.ANY else ord(text[0]) == tokens[0]
    return fits and shell_match(tokens[1:], text[1:])


@settings(deadline=None, max_examples=400)
@given(st.text("ab*?\n", max_size=6), st.text("ab\n", max_size=9), st.booleans())
def test_trimming_equals_trying_every_length(source: str, value: str, longest: bool) -> None:
    tokens = pattern.read_pattern(source)
    lengths = sorted(range(len(value) + 1), reverse=longest)
    head = next((value[n:] for n in lengths if shell_match(tokens, value[:n])), value)
    tail = next((value[: len(value) - n] for n in lengths if shell_match(tokens, value[len(value) - n :])), value)
    assert pattern.trim_prefix(source, value, longest=longest) == head
    assert pattern.trim_suffix(source, value, longest=longest) == tail


@settings(deadline=None, max_examples=400)
@given(st.text("ab*?\n", min_size=1, max_size=5), st.text("ab\n", max_size=9), st.booleans())
def test_replacing_equals_trying_every_place(source: str, value: str, every: bool) -> None:
    tokens = pattern.read_pattern(source)
    out, position, last_end = "", 0, -1
    while position <= len(value):
        ends = [end for end in range(len(value), position - 1, -1) if shell_match(tokens, value[position:end])]
        if ends and not (ends[0] == position == last_end):
            out += "<>"
            last_end = ends[0]
            if not every:
                position = ends[0]
                break
            if ends[0] > position:
                position = ends[0]
                continue
        out += value[position : position + 1]
        position += 1
    assert pattern.replace(source, value, "<>", every=every, limit=10**6) == out + value[position:]


def go_regex_match(tokens: tuple[str, ...], text: str) -> bool:
    return len(tokens) in ignore._run(tokens, text)


@settings(deadline=None, max_examples=400)
@given(st.text("ab*?/", min_size=1, max_size=7), st.text("ab/", max_size=8))
def test_ignore_fast_paths_equal_the_state_machine(source: str, name: str) -> None:
    name = ignore.clean(name).strip("/")
    try:
        rule = ignore.parse_rule(source)
    except InvalidInput:
        return
    if rule.kind in {"exact", "expression", "prefix"}:
        assert rule.matches(name) == go_regex_match(rule.tokens, name)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.text("ab*/", min_size=1, max_size=5), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.lists(st.sampled_from("ab"), min_size=1, max_size=4),
)
def test_a_skipped_directory_holds_nothing_wanted(sources: list[str], signs: list[bool], parts: list[str]) -> None:
    text = "\n".join(("!" if sign else "") + source for source, sign in zip(sources, signs, strict=False))
    rules = ignore.parse(text)
    path = "/".join(parts)
    for depth in range(1, len(parts)):
        if not rules.may_contain("/".join(parts[:depth])):
            assert rules.excluded(path)
    fresh = ignore.parse(text)
    last = -1
    for index, rule in enumerate(fresh.rules):
        if any(rule.matches("/".join(parts[:depth])) for depth in range(1, len(parts) + 1)):
            last = index
    assert rules.excluded(path) == (last >= 0 and not fresh.rules[last].is_exception)


@FEW
@given(st.text("ab*?[]^-\\/", max_size=12), st.text("ab/-]", max_size=8))
def test_match_answers_or_refuses(source: str, name: str) -> None:
    try:
        answer = match.match(source, name)
    except InvalidInput:
        return
    if not set(source) & set("*?[\\"):
        assert answer is (source == name)


N = 200_000
HEAVY = {
    "one long statement": "FROM a\nRUN " + "x \\\n" * N,
    "escapes in quotes": 'FROM a\nENV A="' + ("\\a" * 30_000 + "\\\n") * 8 + '"',
    "open quotes": "FROM a\nLABEL a='" + ("\"'" * 30_000 + "\\\n") * 8,
    "directive spaces": "# escape" + " " * 60_000 + "x\nFROM a",
    "many heredocs": "FROM a\nCOPY " + "<<E " * 5_000 + "/\n" + "E\n" * 5_000,
    "heredoc lines": "FROM a\nRUN <<E\n" + "x\n" * N + "E\n",
    "flags": "FROM a\nRUN " + "--mount=a " * 6_000 + "x",
    "open json": "FROM a\nRUN " + "[" * 60_000,
    "nested json": "FROM a\nRUN " + "[" * 30_000 + "]" * 30_000,
    "stages": "".join(f"FROM s{i} AS s{i + 1}\nENV A{i}=1\n" for i in range(5_000)),
    "blank lines": "FROM a\n" + "\n" * N,
    "comments": "#x\n" * N + "FROM a",
    "image name": "ARG A=" + "a-" * 30_000 + "!\nFROM $A",
    "duration": "FROM a\nHEALTHCHECK --interval=" + "1h" * 30_000 + " CMD x",
    "doubling": "FROM a\nENV A=xxxxxxxx\n" + "ENV A=$A$A$A$A\n" * 100,
}


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_files_end(name: str) -> None:
    with contextlib.suppress(InvalidInput):
        walk(HEAVY[name])


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("${A#" + "*a" * 40 + "b}", "a" * 100_000),
        ("${A%%" + "*a" * 40 + "b}", "a" * 100_000),
        ("${A//" + "a*" * 40 + "b/x}", "a" * 100_000),
        ("${A//?*b/x}", "a" * 100_000),
        ("${A//a*b/x}", "a\n" * 100_000),
        ("$A" * 50_000, "x"),
        ("${A:-" * 60_000, "x"),
        ('"$A' * 60_000, "x"),
    ],
)
def test_heavy_words_end(word: str, value: str) -> None:
    with contextlib.suppress(InvalidInput):
        expand_word(word, {"A": value})


@pytest.mark.parametrize("source", ["**/" * 20 + "x", "*a" * 20 + "b", "a/" + "**/b*/" * 20 + "c"])
def test_heavy_ignore_patterns_end(source: str) -> None:
    rules = ignore.parse("!" + source + "\n" + source)
    rules.excluded("a" * 200 + "/b" * 200 + "/ab")
    rules.may_contain("a/" + "b/" * 50)
