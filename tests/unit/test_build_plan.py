"""Which stages a build takes, in which order, and what is refused before anything is built."""

from __future__ import annotations

import pytest

from pylayers.build.plan import Plan, find_stage_name, make_plan
from pylayers.dockerfile import instructions as df
from pylayers.dockerfile.parse import parse, parse_instruction
from pylayers.errors import InvalidInput
from pylayers.oci.platform import Platform

HERE = Platform("linux", "amd64")


def plan(
    text: str, target: str | None = None, *, contexts: tuple[str, ...] = (), every: bool = False, **given: str
) -> Plan:
    return make_plan(parse(text), given, target, platform=HERE, contexts=contexts, every=every)


def built(made: Plan) -> list[int]:
    return [planned.stage.index for planned in made.stages]


CHAIN = "FROM a AS one\nFROM one AS two\nFROM a AS three\nCOPY --from=one x /\nFROM a AS four\n"


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("FROM a", None, [0]),
        (CHAIN, None, [3]),
        (CHAIN, "two", [0, 1]),
        (CHAIN, "TWO", [0, 1]),
        (CHAIN, "three", [0, 2]),
        ("FROM a\nFROM a\nCOPY --from=0 x /", None, [0, 1]),
        ("FROM a AS x\nFROM a\nCOPY --from=X x /", None, [0, 1]),
        ("FROM a AS x\nFROM a\nRUN --mount=from=x,target=/x true", None, [0, 1]),
        ("FROM a AS x\nFROM a\nRUN --mount=target=/x,FROM=X true", None, [0, 1]),
        ("FROM a\nFROM a\nRUN --mount=from=0,target=/x true", None, [1]),  # an image of that name
        ("FROM a\nFROM 0", None, [1]),
        ("FROM a AS x\nFROM X", None, [1]),
        ("FROM a AS x\nFROM b AS x\nFROM x", None, [1, 2]),  # the last of that name
        ("FROM a AS x\nFROM x AS x\nFROM x", None, [0, 1, 2]),
        ("FROM a AS x\nONBUILD COPY --from=y x /\nFROM a AS y\nFROM x", None, [0, 1, 2]),
        ("FROM later\nFROM a AS later", "later", [1]),
        ("ARG B=one\nFROM a AS one\nFROM a AS two\nFROM $B", None, [0, 2]),
    ],
)
def test_the_stages_that_a_target_reaches(text: str, target: str | None, expected: list[int]) -> None:
    assert built(plan(text, target)) == expected


def test_build_arguments_choose_stages() -> None:
    text = "ARG B=one\nFROM a AS one\nFROM a AS two\nFROM $B"
    assert built(plan(text, B="two")) == [1, 2]


def test_every_stage_can_be_asked_for() -> None:
    assert built(plan(CHAIN, every=True)) == [0, 1, 2, 3]


def test_a_stage_knows_what_it_needs() -> None:
    made = plan("FROM a AS one\nFROM a AS two\nFROM one\nCOPY --from=two x /\nCOPY --from=image x /")
    last = made.stages[-1]
    assert (last.base_stage, last.needs, last.sources) == (0, {0, 1}, {"two"})
    assert made.target == 2


def test_named_contexts_take_the_place_of_stages() -> None:
    made = plan("FROM a AS one\nRUN x\nFROM one\nCOPY --from=two x /", contexts=("one", "two"))
    assert built(made) == [0, 1]
    assert made.stages[0].replaced
    assert made.stages[1].needs == {0}


def test_the_triggers_of_a_stage_run_in_its_children_at_their_from() -> None:
    made = plan("FROM a AS one\nONBUILD RUN x\nONBUILD USER y\nRUN z\nFROM one\nRUN w")
    triggers = made.stages[1].triggers
    assert [type(one) for one in triggers] == [df.Run, df.User]
    assert {one.span.line for one in triggers} == {5}
    assert made.stages[0].triggers == ()


def test_the_triggers_of_an_image_may_need_a_stage() -> None:
    file = parse("FROM a AS one\nFROM image")

    def read(index: int, base: df.From) -> tuple[df.Instruction, ...]:
        return (parse_instruction("COPY --from=one x /"),) if base.image == "image" else ()

    made = make_plan(file, {}, None, platform=HERE, read_triggers=read)
    assert built(made) == [0, 1]


@pytest.mark.parametrize(
    ("text", "target", "message", "line"),
    [
        (CHAIN, "tow", 'target stage "tow" could not be found (did you mean two?)', 0),
        (CHAIN, "0", 'target stage "0" could not be found', 0),
        ("FROM a AS x\nCOPY --from=x a /", None, "circular dependency detected on stage: x", 2),
        ("FROM a\nCOPY --from=0 a /", None, "circular dependency detected on stage: stage-0", 2),
        ("FROM a AS x\nCOPY --from=y a /\nFROM a AS y\nCOPY --from=x a /", None,
         "circular dependency detected on stage: x", 4),
        ("FROM a AS x\nCOPY --from=y a /\nFROM x AS y", None, 'cannot copy from stage "y"', 2),
        ("FROM a AS x\nRUN --mount=from=y,target=/x true\nFROM a AS y\nFROM x", None, 'cannot mount from stage "y"', 2),
        ("FROM a\nCOPY --from=3 a /", None, "invalid stage index 3", 2),
        ("FROM a\nCOPY --from=-1 a /", None, "invalid stage index -1", 2),
        ("FROM a AS x\nFROM a\nCOPY --from=$X a /", None, "variable expansion is not supported for --from", 3),
        ("FROM a\nRUN --mount=from=$X,target=/x true", None, "'from' doesn't support variable expansion", 2),
        ("FROM a AS x\nONBUILD FROM b\nFROM x", None, "FROM isn't allowed as an ONBUILD trigger", 2),
        ("FROM $A", None, "base name ($A) should not be blank", 1),
        ("FROM --platform=$A a", None, "empty platform value from expression $A", 1),
        ("FROM --platform=$TARGETPLATFROM a", None, "(did you mean TARGETPLATFORM?)", 1),
        ("FROM --platform=a/b/c/d a", None, "failed to parse platform a/b/c/d", 1),
        ("FROM --platform=what a", None, "unknown operating system or architecture", 1),
        ("ARG A=${B\nFROM a", None, "missing '}'", 1),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, target: str | None, message: str, line: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        plan(text, target)
    assert message in caught.value.message
    assert (caught.value.span.line if caught.value.span else 0) == line


def test_global_arguments_are_handed_on() -> None:
    made = plan("ARG A=1 B=$A\nARG C\nFROM a", A="x", TARGETOS="other")
    values = made.global_arguments
    assert (values["A"], values["B"], values["TARGETOS"], values["TARGETARCH"]) == ("x", "x", "other", "amd64")
    assert values["TARGETPLATFORM"] == "linux/amd64"
    assert values["TARGETSTAGE"] == "default"
    assert "C" not in values


def test_a_built_stage_is_found_by_name_or_number() -> None:
    names = {0: "one", 1: None, 2: "one"}
    assert find_stage_name(names, "ONE", before=3) == 2
    assert find_stage_name(names, "one", before=2) == 0
    assert find_stage_name(names, "1", before=3) == 1
    assert find_stage_name(names, "2", before=2) is None
    assert find_stage_name(names, "other", before=3) is None
