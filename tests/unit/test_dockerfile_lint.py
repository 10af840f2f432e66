"""Docker's build checks."""

from __future__ import annotations

import pytest

from pylayers.build.dryrun import Findings, Question, check_content
from pylayers.build.state import StageState
from pylayers.dockerfile import ignore, lint
from pylayers.dockerfile.excerpt import ROWS, Excerpts
from pylayers.errors import InvalidInput, SourceSpan
from pylayers.oci.config import RunConfig
from pylayers.oci.platform import Platform

HERE = Platform("linux", "amd64")


def look(text: str, env: tuple[str, ...] = (), rules: ignore.IgnoreRules | None = None, **given: str) -> Findings:
    state = StageState(HERE, config=RunConfig(env=env))
    question = Question(arguments=given, platform=HERE, ignore=rules)
    return check_content(text.encode(), "Dockerfile", question, lambda *_: state)


def found(text: str, env: tuple[str, ...] = (), rules: ignore.IgnoreRules | None = None) -> list[tuple[str, int, str]]:
    findings = look(text, env, rules)
    assert findings.error is None
    return [(one.rule, one.span.line, one.message) for one in findings.kept()]


@pytest.mark.parametrize(
    ("text", "rule", "line", "message"),
    [
        ("FROM a AS Base", "StageNameCasing", 1, "Stage name 'Base' should be lowercase"),
        ("FROM a as b", "FromAsCasing", 1, "'as' and 'FROM' keywords' casing do not match"),
        ("FROM a\nRUN a \\\n\n b", "NoEmptyContinuation", 4, "Empty continuation line"),
        ("FROM a\nrun b\nUSER c", "ConsistentInstructionCasing", 2,
         "Command 'run' should match the case of the command majority (uppercase)"),
        ("from a\nrun b\nUser c", "ConsistentInstructionCasing", 3,
         "Command 'User' should match the case of the command majority (lowercase)"),
        ("FROM a AS b\nFROM c AS b", "DuplicateStageName", 2, 'Duplicate stage name "b", stage names should be unique'),
        ("FROM a AS scratch", "ReservedStageName", 1,
         'Stage name should not use the same name as reserved stage "scratch"'),
        ("FROM a\nCMD x", "JSONArgsRecommended", 2,
         "JSON arguments recommended for CMD to prevent unintended behavior related to OS signals"),
        ("FROM a\nMAINTAINER x", "MaintainerDeprecated", 2,
         "Maintainer instruction is deprecated in favor of using label"),
        ("ARG VERSION=1\nFROM a:${VERSOIN}x", "UndefinedArgInFrom", 2,
         "FROM argument 'VERSOIN' is not declared (did you mean VERSION?)"),
        ("FROM scratch\nCOPY $foo /", "UndefinedVar", 2, "Usage of undefined variable '$foo'"),
        ("FROM a\nENV VERSION=1\nCOPY $VERSON /", "UndefinedVar", 3,
         "Usage of undefined variable '$VERSON' (did you mean $VERSION?)"),
        ('FROM a\nCMD ["x"]\nCMD ["y"]', "MultipleInstructionsDisallowed", 2,
         "Multiple CMD instructions should not be used in the same stage because only the last one will be used"),
        ("FROM a\nWORKDIR app", "WorkdirRelativePath", 2,
         'Relative workdir "app" can have unexpected results if the base image changes'),
        ("FROM --platform=$TARGETPLATFORM a", "RedundantTargetPlatform", 1,
         "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior"),
        ("FROM a\nENV DB_PASSWORD=x", "SecretsUsedInArgOrEnv", 2,
         'Do not use ARG or ENV instructions for sensitive data (ENV "DB_PASSWORD")'),
        ("ARG TAG\nFROM busybox:${TAG}", "InvalidDefaultArgInFrom", 2,
         "Default value for ARG busybox:${TAG} results in empty or invalid base image name"),
        ("FROM --platform=linux/amd64 a", "FromPlatformFlagConstDisallowed", 1,
         'FROM --platform flag should not use constant value "linux/amd64"'),
        ("FROM a\nENV A b", "LegacyKeyValueFormat", 2,
         '"ENV key=value" should be used instead of legacy "ENV key value" format'),
        ("FROM a\nEXPOSE 80/TCP", "ExposeProtoCasing", 2,
         "Defined protocol '80/TCP' in EXPOSE instruction should be lowercase"),
        ("FROM a\nEXPOSE 127.0.0.1:80:80", "ExposeInvalidFormat", 2,
         "EXPOSE instruction should not define an IP address or host-port mapping, found '127.0.0.1:80:80'"),
        ("# check=experimental=all\n\n# other\nFROM a AS b", "InvalidDefinitionDescription", 4,
         "Comment for FROM should follow the format: `# b <description>`"),
    ],
)  # fmt: skip
def test_rule_fires_alone(text: str, rule: str, line: int, message: str) -> None:
    assert found(text) == [(rule, line, message)]


@pytest.mark.parametrize(
    "text",
    [
        "FROM a AS b\nFROM b AS c",
        "from a as b\nrun x",
        'FROM a\nSHELL ["sh"]\nCMD x',
        'FROM a AS b\nSHELL ["sh"]\nFROM b\nCMD x',
        "FROM a AS b\nWORKDIR /x\nFROM b\nWORKDIR y",
        "FROM a\nARG DIR=/x\nWORKDIR $DIR/y",
        "FROM a\nARG D\nCOPY $D /",
        "FROM scratch\nENV A=1\nCOPY $A $PATH /",
        "ARG X=1\nFROM a:$X\nARG PUBLIC_KEY MONKEY",
        "FROM --platform=$BUILDPLATFORM a",
        "FROM --platform=linux/arm64 a AS build-arm64",
        "FROM A/b:c@sha256:" + "0" * 64,
        "ARG R=localhost:5000/x_y/z-w\nFROM $R",
        "FROM a AS b\nCMD []\nFROM b\nCMD []",
        "# b is a stage\nFROM a AS b",
        "FROM scratch\nWORKDIR $PATH",
    ],
)
def test_silent_where_docker_is(text: str) -> None:
    assert found(text) == []


def test_base_image_names_decide_undefined_variables() -> None:
    text = "FROM a\nCOPY $JAVA_HOME $NOWHERE /"
    assert found(text, ("JAVA_HOME=/j",)) == [
        ("UndefinedVar", 2, "Usage of undefined variable '$NOWHERE'")
    ]


def test_ignored_sources_are_reported_when_asked() -> None:
    text = "# check=experimental=CopyIgnoredFile\nFROM a\nCOPY x.o y /\nADD https://h/x.o /\nCOPY --from=b x.o /\n"
    rules = ignore.parse("*.o")
    assert found(text, rules=rules) == [
        ("CopyIgnoredFile", 3, 'Attempting to Copy file "x.o" that is excluded by .dockerignore')
    ]
    assert found(text.partition("\n")[2], rules=rules) == []


def test_check_directive() -> None:
    assert found("# check=skip=StageNameCasing,FromAsCasing\nFROM a as B\nENV A b") == [
        ("LegacyKeyValueFormat", 3, '"ENV key=value" should be used instead of legacy "ENV key value" format')
    ]
    assert found("# check=skip=all\nFROM a as B") == []
    assert lint.read_settings("skip=A;error=true").error
    with pytest.raises(InvalidInput, match="invalid check option"):
        lint.read_settings("nope")


def test_an_error_ends_the_warnings_after_it() -> None:
    findings = look("FROM a AS One\nCMD x\nENV B=${\nCMD y\nMAINTAINER z")
    assert [(one.rule, one.span.line) for one in findings.kept()] == [
        ("StageNameCasing", 1), ("JSONArgsRecommended", 2), ("MaintainerDeprecated", 5)
    ]  # fmt: skip
    assert findings.error is not None
    assert findings.error.span is not None
    assert findings.error.span.line == 3


def test_an_excerpt_of_a_very_long_instruction_is_cut() -> None:
    content = ("FROM a\nRUN x \\\n" + "y \\\n" * 1000 + "z").encode()
    shown = Excerpts(content).show(SourceSpan("Dockerfile", 2, 1003)).split("\n")
    assert shown[3] == "   2 | >>> RUN x \\"
    assert shown[-2] == "     | ... 803 more lines"
    assert len(shown) == ROWS + 4


def test_values_of_the_build_count() -> None:
    text = "FROM a\nARG DIR\nWORKDIR $DIR"
    assert [one.rule for one in look(text).kept()] == ["WorkdirRelativePath"]
    assert look(text, DIR="/x").kept() == []


def test_all_rules_have_docker_s_page() -> None:
    assert len(lint.RULES) == 22
    assert lint.url("JSONArgsRecommended") == "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/"
    assert lint.url("FromAsCasing").endswith("/from-as-casing/")
    assert lint.url("SecretsUsedInArgOrEnv").endswith("/secrets-used-in-arg-or-env/")
