"""Dockerfiles into typed instructions."""

from __future__ import annotations

from pathlib import Path

import pytest

from pylayers.dockerfile import instructions as ins
from pylayers.dockerfile.parse import parse, parse_instruction
from pylayers.errors import InvalidInput

CORPUS = Path(__file__).parent.parent / "corpus"


def only(line: str, *, before: str = "") -> ins.Instruction:
    (instruction,) = parse(f"{before}FROM x\n{line}\n").stages[0].instructions
    return instruction


def fields(instruction: ins.Instruction, *names: str) -> tuple[object, ...]:
    return tuple(getattr(instruction, name) for name in names)


def test_stages_and_global_arguments() -> None:
    file = parse(b"\xef\xbb\xbf# syntax=docker/dockerfile:1\nARG V=1 W\nFROM --platform=$P a:$V AS Build\nFROM build\n")
    assert [a.pairs for a in file.global_args] == [(("V", "1"), ("W", None))]
    assert [(s.index, s.name, s.base.image, s.base.platform) for s in file.stages] == [
        (0, "build", "a:$V", "$P"),
        (1, None, "build", None),
    ]
    assert file.directive("syntax") == "docker/dockerfile:1"
    assert file.find_stage("BUILD") is file.stages[0]
    assert file.find_stage("build", before=0) is None


def test_the_last_of_two_stages_with_one_name_is_found() -> None:
    file = parse("FROM a AS x\nFROM b AS x\nFROM c\n")
    assert file.find_stage("x") is file.stages[1]
    assert file.find_stage("x", before=1) is file.stages[0]


def test_continuations_comments_and_places() -> None:
    file = parse("FROM x\nRUN a \\\n  # inner\n\n b && \\ \t\n  c\nUSER u\n")
    run, user = file.stages[0].instructions
    assert fields(run, "command", "original") == (("a  b &&   c",), "RUN a  b &&   c")
    assert (run.span.line, run.span.end_line, run.span.text) == (2, 6, "RUN a \\")
    assert user.span.line == 7
    assert [w.rule for w in file.warnings] == ["NoEmptyContinuation"]


def test_doubled_escape_is_no_continuation() -> None:
    run, user = parse("FROM x\nRUN dir c:\\\\\nUSER u\n").stages[0].instructions
    assert fields(run, "command") == (("dir c:\\\\",),)
    assert isinstance(user, ins.User)


def test_escape_directive() -> None:
    file = parse("# escape=`\nFROM x\nRUN a `\n b\nCOPY c:\\x $A`$B\n")
    run, copy = file.stages[0].instructions
    assert fields(run, "command") == (("a  b",),)
    assert fields(copy.expand({"A": "1"}), "sources", "destination") == (("c:\\x",), "1$B")


@pytest.mark.parametrize(
    ("line", "command", "shell"),
    [
        ('RUN ["a", "b c"]', ("a", "b c"), False),
        ("RUN ['a']", ("['a']",), True),
        ("RUN [ -f x ] && y", ("[ -f x ] && y",), True),
        ('RUN ["a"] x', ('["a"] x',), True),
        ("RUN []", (), False),
        ("RUN", ("",), True),
        ("CMD", ("",), True),
        ("ENTRYPOINT []", (), False),
        ('RUN ["\\u00e9\\ud800"]', ("é\ufffd",), False),
        ("run   a  'b  c'  ", ("a  'b  c'",), True),
    ],
)
def test_shell_and_json_form(line: str, command: tuple[str, ...], shell: bool) -> None:
    assert fields(only(line), "command", "shell") == (command, shell)


def test_run_flags() -> None:
    run = only("RUN --mount=type=cache,target=/a --mount='type=bind,source=x y' --network=none -- --x make")
    assert fields(run, "mounts", "network", "command") == (
        ("type=cache,target=/a", "type=bind,source=x y"), "none", ("--x make",),
    )  # fmt: skip


def test_copy_and_add_flags() -> None:
    copy = only("COPY --from=b --chown=1:2 --chmod=755 --link --parents --exclude=*.o --exclude=x a b /c/")
    assert fields(copy, "sources", "destination", "from_stage", "chown", "chmod", "link", "parents", "exclude") == (
        ("a", "b"), "/c/", "b", "1:2", "755", True, True, ("*.o", "x"),
    )  # fmt: skip
    add = only("ADD --checksum=sha256:x --keep-git-dir=true --unpack=false --link=false u /d")
    assert fields(add, "checksum", "keep_git_dir", "unpack", "link") == ("sha256:x", True, False, False)
    assert fields(only("ADD a b"), "unpack") == (None,)
    assert fields(only('COPY ["a b", "c d/"]'), "sources", "destination") == (("a b",), "c d/")


def test_heredocs() -> None:
    copy = only("COPY <<A plain <<-'B' /d/\n$V\nA\n\tx $V\n\tB\n")
    assert isinstance(copy, ins.Copy)
    assert copy.sources == ("plain",)
    assert [(h.name, h.text, h.expand, h.line) for h in copy.heredocs] == [
        ("A", "$V\n", True, 3),
        ("B", "x $V\n", False, 5),
    ]
    expanded = copy.expand({"V": "'1'"})
    assert [h.content for h in expanded.heredocs] == ["'1'\n", "\tx $V\n"]
    run = only("RUN cat <<X 3<<Y\r\na\r\nX\nb\nY\nUSER u".removesuffix("\nUSER u"))
    assert isinstance(run, ins.Run)
    assert [(h.content, h.descriptor) for h in run.heredocs] == [("a\r\n", 0), ("b\n", 3)]
    assert run.command == ("cat <<X 3<<Y",)


@pytest.mark.parametrize(
    "line", ['RUN echo "$(cat <<X)"', "RUN cat <<< word", 'RUN ["cat", "<<X"]', "CMD cat <<X", "RUN a << X"]
)
def test_what_is_no_heredoc(line: str) -> None:
    assert not getattr(only(line), "heredocs", ())


def test_pairs() -> None:
    assert fields(only('ENV A=1 B="x y" C=a\\ b D='), "pairs", "legacy") == (
        (("A", "1"), ("B", '"x y"'), ("C", "a\\ b"), ("D", "")), False,
    )  # fmt: skip
    assert fields(only("ENV A  b = c"), "pairs", "legacy") == ((("A", "b = c"),), True)
    assert fields(only("LABEL 'a b'=c"), "pairs") == ((("'a b'", "c"),),)
    assert fields(only("LABEL 'a b'=c").expand({}), "pairs") == ((("a b", "c"),),)
    env = only("ENV A=new B=$A").expand({"A": "old"})
    assert fields(env, "pairs") == ((("A", "new"), ("B", "old")),)


def test_healthcheck() -> None:
    check = only("HEALTHCHECK --interval=1m30.5s --timeout=2h --start-period=5ms --retries=3 CMD curl x")
    assert fields(check, "test", "interval_ns", "timeout_ns", "start_period_ns", "start_interval_ns", "retries") == (
        ("CMD-SHELL", "curl x"), 90_500_000_000, 7200 * 10**9, 5_000_000, 0, 3,
    )  # fmt: skip
    assert fields(only('HEALTHCHECK cmd ["a"]'), "test") == (("CMD", "a"),)
    assert fields(only("HEALTHCHECK none"), "test") == (("NONE",),)


def test_only_dockers_instructions_expand() -> None:
    values = {"V": "a b"}
    assert fields(only("WORKDIR /x/$V y").expand(values), "path") == ("/x/a b y",)
    assert fields(only("EXPOSE $V 80").expand(values), "ports") == (("a", "b", "80"),)
    assert fields(only("VOLUME $V").expand(values), "paths") == (("a b",),)
    assert fields(only("USER '$V'").expand(values), "user") == ("$V",)
    assert fields(only("STOPSIGNAL $V").expand(values), "signal") == ("a b",)
    assert fields(only("COPY --chown=$V --from=$V $V /$V").expand(values), "chown", "from_stage", "sources") == (
        "a b", "$V", ("a b",),
    )  # fmt: skip
    for line in ("RUN $V", "CMD $V", "ENTRYPOINT $V", 'SHELL ["$V"]', "HEALTHCHECK CMD $V", "ONBUILD USER $V"):
        assert only(line).expand(values) == only(line)


def test_expansion_errors_name_the_place() -> None:
    with pytest.raises(InvalidInput) as caught:
        only("USER ${V").expand({})
    assert str(caught.value) == "Dockerfile:2: failed to process \"${V\": syntax error: missing '}'"


def test_onbuild_trigger_with_heredoc() -> None:
    trigger = only("onbuild  COPY --from=a <<X /d\nhi\nX")
    assert isinstance(trigger, ins.Onbuild)
    copy = parse_instruction(trigger.instruction, "base", 9)
    assert isinstance(copy, ins.Copy)
    assert (copy.from_stage, copy.heredocs[0].content, copy.span.line, copy.span.file) == ("a", "hi\n", 9, "base")
    with pytest.raises(InvalidInput, match=r"^base:9: unknown instruction: CPOY \(did you mean COPY\?\)"):
        parse_instruction("CPOY a b", "base", 9)


def test_bytes_that_are_not_utf8_survive_in_commands() -> None:
    (run,) = parse(b"FROM x\nRUN echo \xff\n").stages[0].instructions
    assert isinstance(run, ins.Run)
    assert run.command[0].encode("utf-8", "surrogateescape") == b"echo \xff"
    run.span.text.encode("utf-8")  # fit for printing


@pytest.mark.parametrize("path", sorted((CORPUS / "good/dockerfile").iterdir()), ids=lambda p: p.name)
def test_good_corpus_parses_and_survives_expansion(path: Path) -> None:
    file = parse(path.read_bytes(), path.name)
    assert file.stages
    for stage in file.stages:
        for instruction in stage.instructions:
            assert instruction.expand(lambda name: f"<{name}>").name == instruction.name


@pytest.mark.parametrize("path", sorted((CORPUS / "should_fail/dockerfile").glob("*.Dockerfile")), ids=lambda p: p.stem)
def test_bad_corpus_fails_with_the_expected_words(path: Path) -> None:
    expected = path.with_suffix(".error").read_text().strip()
    with pytest.raises(InvalidInput) as caught:
        parse(path.read_bytes())
    assert str(caught.value) == expected
    assert caught.value.span is not None


@pytest.mark.parametrize("path", sorted((CORPUS / "should_fail/dockerfile").glob("*.error")), ids=lambda p: p.stem)
def test_every_expected_error_has_its_file(path: Path) -> None:
    assert path.with_suffix(".Dockerfile").exists()
