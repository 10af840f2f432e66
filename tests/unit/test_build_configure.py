"""What the instructions that only change an image's configuration make of it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pylayers.build.configure import configure, cover_arguments, merge_environment, read_ports
from pylayers.build.state import StageState
from pylayers.build.words import describe
from pylayers.dockerfile import instructions as df
from pylayers.dockerfile.parse import parse_instruction
from pylayers.errors import InvalidInput
from pylayers.oci.config import Healthcheck, RunConfig
from pylayers.oci.platform import Platform

START = StageState(Platform("linux", "amd64"), config=RunConfig(env=("PATH=/bin",), cmd=("base",)))


def apply(*texts: str, state: StageState = START, given: Mapping[str, str] | None = None, **known: str) -> StageState:
    for text in texts:
        instruction = parse_instruction(text)
        if not isinstance(instruction, df.Arg):
            instruction = instruction.expand(state.environment())
        state = configure(state, instruction, given or {}, known)
    return state


def test_variables_keep_their_place() -> None:
    config = apply("ENV A=1 B=2", "ENV PATH=/x:$PATH A=3", "ENV C d e").config
    assert config.env == ("PATH=/x:/bin", "A=3", "B=2", "C=d e")
    assert merge_environment(("A=1", "AB=2"), [("A", "x"), ("A", "y")]) == ("A=y", "AB=2")


def test_labels_replace_each_other() -> None:
    assert apply("LABEL a=1 b=2", "LABEL a=3").config.labels == {"a": "3", "b": "2"}


def test_arguments_come_from_the_command_line_the_default_or_the_global_ones() -> None:
    state = apply("ARG A=1 B C D=$A", given={"A": "x"}, C="global")
    assert state.arguments == (("A", "x"), ("B", None), ("C", "global"), ("D", "x"))
    assert state.environment() == {"PATH": "/bin", "A": "x", "C": "global", "D": "x"}


def test_of_an_argument_and_a_variable_the_later_counts() -> None:
    assert apply("ARG A=arg", "ENV A=env").environment()["A"] == "env"
    assert apply("ENV A=env", "ARG A=arg").environment()["A"] == "arg"
    assert apply("ENV A=env", "ARG A").environment()["A"] == "env"
    assert cover_arguments((("A", "1"), ("B", None)), [("B", "2")]) == (("A", "1"), ("B", "2"))


def test_commands_go_through_the_shell_unless_they_are_json() -> None:
    assert apply("CMD echo  $A").config.cmd == ("/bin/sh", "-c", "echo  $A")
    assert apply('CMD ["echo", "$A"]').config.cmd == ("echo", "$A")
    assert apply("CMD []").config.cmd is None
    assert apply("CMD").config.cmd == ("/bin/sh", "-c", "")
    assert apply('SHELL ["/bin/x", "-y"]', "CMD z").config.cmd == ("/bin/x", "-y", "z")
    assert apply('SHELL ["/bin/x", "-y"]').config.shell == ("/bin/x", "-y")


def test_an_entrypoint_clears_an_inherited_command_only() -> None:
    assert apply('ENTRYPOINT ["e"]').config.cmd is None
    assert apply('CMD ["c"]', 'ENTRYPOINT ["e"]').config.cmd == ("c",)
    assert apply('ENTRYPOINT ["e"]', "ENTRYPOINT []").config.entrypoint is None


def test_volumes_ports_user_and_signal() -> None:
    config = apply("VOLUME /b /a", 'VOLUME ["/c d"]', "EXPOSE 80 90/UDP", "USER a:b", "STOPSIGNAL SIGRTMIN+3").config
    assert config.volumes == ("/a", "/b", "/c d")
    assert config.exposed_ports == ("80/tcp", "90/udp")
    assert (config.user, config.stop_signal) == ("a:b", "SIGRTMIN+3")


def test_healthchecks() -> None:
    flags = "--interval=1m --timeout=2s --start-period=3s --start-interval=4s --retries=5"
    config = apply(f"HEALTHCHECK {flags} CMD x y").config
    second = 10**9
    assert config.healthcheck == Healthcheck(
        test=("CMD-SHELL", "x y"), interval_ns=60 * second, timeout_ns=2 * second, start_period_ns=3 * second,
        start_interval_ns=4 * second, retries=5,
    )  # fmt: skip
    assert apply("HEALTHCHECK NONE").config.healthcheck == Healthcheck(test=("NONE",))


def test_triggers_and_the_author_are_kept_as_written() -> None:
    state = apply("ONBUILD RUN echo $A", "ONBUILD COPY a /b", "MAINTAINER some one")
    assert state.config.on_build == ("RUN echo $A", "COPY a /b")
    assert state.author == "some one"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("80", ["80/tcp"]),
        ("80/tcp 80", ["80/tcp"]),
        ("80/TCP", ["80/tcp"]),
        ("8-10/udp", ["8/udp", "9/udp", "10/udp"]),
        ("90 80", ["80/tcp", "90/tcp"]),  # words in the order of their text, as docker has them
        ("8080:80", ["80/tcp"]),
        ("127.0.0.1:8080:80/sctp", ["80/sctp"]),
        ("127.0.0.1::80", ["80/tcp"]),
        ("[::1]:8080:80", ["80/tcp"]),
        (":80", ["80/tcp"]),
        ("8080-8081:80-81", ["80/tcp", "81/tcp"]),
        ("8080-8089:80", ["80/tcp"]),
        ("0", ["0/tcp"]),
        ("65535", ["65535/tcp"]),
    ],
)
def test_ports(words: str, expected: list[str]) -> None:
    instruction = parse_instruction(f"EXPOSE {words}")
    assert isinstance(instruction, df.Expose)
    assert read_ports(instruction) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EXPOSE abc", "invalid containerPort: abc"),
        ("EXPOSE 65536", "invalid containerPort: 65536"),
        ("EXPOSE 90-80", "invalid containerPort: 90-80"),
        ("EXPOSE 80-", "invalid containerPort: 80-"),
        ("EXPOSE 80/XYZ", 'invalid port: "80/XYZ": invalid proto: XYZ'),
        ("EXPOSE /tcp", "no port specified"),
        ("EXPOSE abc:80", "invalid hostPort: abc"),
        ("EXPOSE 1.2.3.x:80:90", "invalid IP address: 1.2.3.x"),
        ("EXPOSE 1:2:3:4", "invalid IP address: 1:2"),
        ("EXPOSE 80-83:90-91", "invalid ranges specified for container and host Ports: 90-91 and 80-83"),
        ("EXPOSE " + " ".join(f"{n}-65535" for n in range(1, 20)), "more than 1000000 ports"),
        ("VOLUME $UNSET", "VOLUME specified can not be an empty string"),
        ("STOPSIGNAL NOPE", "invalid signal: NOPE"),
        ("STOPSIGNAL SIGTREM", "(did you mean SIGTERM?)"),
        ("STOPSIGNAL 0", "invalid signal: 0"),
        ("STOPSIGNAL SIGRTMIN+16", "invalid signal"),
        ("RUN x", "RUN cannot be used here"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        apply(text)
    assert message in caught.value.message
    assert caught.value.span is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ENV A=1 B='x y'", "ENV A=1 B=x y"),
        ("LABEL a=1", "LABEL a=1"),
        ("ARG A=1", "ARG A=1"),
        ("ARG A", "ARG A"),
        ('CMD ["a", "b\\"c"]', 'CMD ["a" "b\\"c"]'),
        ("CMD a", 'CMD ["/bin/sh" "-c" "a"]'),
        ("EXPOSE 90 80", "EXPOSE [80/tcp 90/tcp]"),
        ("VOLUME /b /a", "VOLUME [/b /a]"),
        ("USER a", "USER a"),
        ("STOPSIGNAL 9", "STOPSIGNAL 9"),
        ('SHELL ["/x", "-y"]', "SHELL [/x -y]"),
        ("MAINTAINER a b", "MAINTAINER a b"),
        ("HEALTHCHECK --interval=90s --retries=3 CMD x",
         'HEALTHCHECK &{["CMD-SHELL" "x"] "1m30s" "0s" "0s" "0s" \'\\x03\'}'),
        ("HEALTHCHECK NONE", "HEALTHCHECK &{[\"NONE\"] \"0s\" \"0s\" \"0s\" \"0s\" '\\x00'}"),
    ],
)  # fmt: skip
def test_the_history_has_docker_s_words(text: str, expected: str) -> None:
    state = apply(text)
    assert describe(state, parse_instruction(text).expand(START.environment())) == expected
