"""The command line itself: verbs, wrong ones, errors, exit codes; no engine is needed for these."""

from __future__ import annotations

import errno
import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pylayers.cli import failure, group
from pylayers.cli.run import read_environment_file, read_options, read_security, resolve_environment
from pylayers.cli.runcommand import run as run_command
from pylayers.cli.version import VERSION
from pylayers.errors import BuildError, ContainerError, InvalidInput, NotFound, PylayersError, Unsupported

TABLES = (group.ROOT, group.IMAGE, group.CONTAINER, group.VOLUME, group.SYSTEM, group.DRIVER)
Streams = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("words", "path"),
    [(words, " ".join(words)) for words in (
        *([name] for name in group.ROOT),
        *([name, inner] for name, table in zip(
            ("image", "container", "volume", "system", "driver"), TABLES[1:], strict=True) for inner in table),
    )],
)  # fmt: skip
def test_every_verb_has_help(words: list[str], path: str) -> None:
    result = CliRunner().invoke(group.root, [*words, "--help"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"Usage: pylayers {path} ")


def test_help_lists_every_verb(capsys: Streams) -> None:
    assert failure.run(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, verb in group.ROOT.items():
        assert f"  {name} " in shown
        assert verb.help in shown


def test_version_is_the_project_s(capsys: Streams) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["version"] == VERSION
    assert failure.run(["version"]) == failure.run(["--version"]) == 0
    assert capsys.readouterr().out == f"pylayers {VERSION}\n" * 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["rnu"], 2),
        (["image", "nope"], 2),
        (["--nope"], 2),
        (["build", "--nope"], 2),
        (["build", "a", "b"], 2),
        (["build", "--progress", "fancy", "."], 2),
        (["build", "--cache-key", "x", "."], 2),
        (["import"], 2),
        (["tag", "one"], 2),
        (["stop", "-t", "soon", "x"], 2),
        (["exec", "x"], 2),
        (["run"], 125),
        (["run", "--nope", "image"], 125),
        (["run", "--cpus", "many", "image"], 125),
        (["create", "--stop-timeout", "-1", "image"], 125),
        (["run", "--memory", "lots", "image"], 125),
        (["run", "--network", "bridge", "image"], 125),
        (["run", "--env-file", "/nonexistent", "image"], 125),
        (["container", "run", "--ulimit", "x", "image"], 125),
    ],
)
def test_wrong_command_line_is_told_in_one_line(arguments: list[str], code: int, capsys: Streams) -> None:
    assert failure.run(arguments) == code
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[0].startswith("pylayers: error: ")
    assert [line.split(":")[0] for line in lines[1:]] in ([], ["hint"])


def test_near_verb_is_offered(capsys: Streams) -> None:
    failure.run(["volume", "prnue"])
    assert "did you mean 'prune'?" in capsys.readouterr().err


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    def run(error: BaseException, *options: str) -> int:
        @click.command()
        def broken() -> None:
            raise error

        monkeypatch.setattr(group.VerbGroup, "get_command", lambda *_: broken)
        return failure.run([*options, "broken"])

    return run


def test_our_error_has_its_code_and_hint(fail: Callable[..., int], capsys: Streams) -> None:
    assert fail(NotFound("no such thing\nat all \x1b[31m", hint="look elsewhere")) == 3
    assert capsys.readouterr().err == "pylayers: error: no such thing at all \ufffd[31m\nhint: look elsewhere\n"


def test_build_error_shows_its_step_and_last_lines(fail: Callable[..., int], capsys: Streams) -> None:
    assert fail(BuildError("it failed", step="RUN x", exit_status=4, log_tail=("one", "two"))) == 10
    assert capsys.readouterr().err == "------\n > RUN x:\none\ntwo\n------\npylayers: error: it failed\n"


def test_operating_system_error_is_translated(fail: Callable[..., int], capsys: Streams) -> None:
    assert fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x")) == 11
    assert "No space left" in capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("--debug",)])
def test_only_debug_shows_a_traceback(options: tuple[str, ...], fail: Callable[..., int], capsys: Streams) -> None:
    assert fail(KeyError("bug"), *options) == 1
    shown = capsys.readouterr().err
    assert ("Traceback" in shown) is bool(options)
    assert ("--debug" in shown) is not options
    assert "internal error: KeyError: 'bug'" in shown


def test_debug_after_the_verb_is_the_verb_s() -> None:
    assert failure.wants_debug(["--root", "x", "-D", "build"])
    assert not failure.wants_debug(["run", "image", "--debug"])
    assert not failure.wants_debug(["--root", "--debug", "build"])


def test_interrupt(fail: Callable[..., int], capsys: Streams) -> None:
    assert fail(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


def test_one_failure_does_not_keep_the_rest(capsys: Streams) -> None:
    done = []

    def act(name: str) -> None:
        if name == "bad":
            raise InvalidInput("bad name")
        if name == "worse":
            raise NotFound("nothing")
        done.append(name)

    assert failure.perform_each(["a", "bad", "worse", "b"], act) == 2
    assert done == ["a", "b"]
    assert capsys.readouterr().err.count("pylayers: error:") == 2


def parse(*arguments: str) -> dict[str, object]:
    return dict(run_command.make_context("run", list(arguments)).params)


def test_options_end_at_the_image() -> None:
    given = parse("--rm", "-e", "A=1", "image", "-x", "--rm", "--", "-v", "a b", "")
    assert given["image"] == "image"
    assert given["command"] == ("-x", "--rm", "--", "-v", "a b", "")
    assert given["volumes"] == ()
    assert given["environment"] == ("A=1",)


def test_every_option_reaches_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "env"
    file.write_text("FROM_FILE=1\n")
    monkeypatch.setenv("MINE", "here")
    options = read_options(
        parse(
            "--name", "n", "-e", "MINE", "-e", "X=", "--env-file", str(file), "-v", "/a:/b:ro", "--mount",
            "type=tmpfs,dst=/t", "--tmpfs", "/s", "-w", "/w", "-u", "1:2", "--entrypoint", "sh", "--rm", "-it",
            "--network", "none", "-h", "host", "--read-only", "--privileged", "--cap-add", "NET_RAW", "--cap-drop",
            "ALL", "--add-host", "db:10.0.0.7", "--shm-size", "1m", "--ulimit", "nofile=10:20", "-m", "64m", "--cpus",
            "1.5", "--pids-limit", "7", "-l", "a=b", "--stop-signal", "INT", "--stop-timeout", "3", "--security-opt",
            "no-new-privileges", "--device", "/dev/null", "i",
        )
    )  # fmt: skip
    isolation = options.isolation
    assert (options.name, options.environment) == ("n", ("FROM_FILE=1", "MINE=here", "X="))
    assert (options.volumes, options.mounts, options.tmpfs) == (("/a:/b:ro",), ("type=tmpfs,dst=/t",), ("/s",))
    assert (options.working_dir, options.user, options.entrypoint) == ("/w", "1:2", ("sh",))
    assert (options.remove, options.interactive, options.terminal) == (True, True, True)
    assert (options.network, options.hostname, options.labels) == ("none", "host", {"a": "b"})
    assert (options.stop_signal, options.stop_timeout_s) == ("INT", 3)
    assert (isolation.readonly, isolation.privileged, isolation.no_new_privileges) == (True, True, True)
    assert (isolation.capabilities_added, isolation.capabilities_dropped) == (("NET_RAW",), ("ALL",))
    assert (isolation.extra_hosts, isolation.shm_size_bytes) == (("db:10.0.0.7",), 1 << 20)
    assert (isolation.memory_bytes, isolation.cpus, isolation.pids) == (64 << 20, 1.5, 7)
    assert (isolation.limits[0].soft, isolation.limits[0].hard, isolation.devices[0].source) == (10, 20, "/dev/null")


def test_empty_entrypoint_clears_the_image_s() -> None:
    assert read_options(parse("--entrypoint", "", "i")).entrypoint == ()
    assert read_options(parse("i")).entrypoint is None


def test_environment_without_a_value_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "1")
    monkeypatch.delenv("NOBODYS", raising=False)
    assert resolve_environment(["A=b=c", "MINE", "NOBODYS"]) == ["A=b=c", "MINE=1"]
    with pytest.raises(InvalidInput):
        resolve_environment(["=x"])


def test_environment_file(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_bytes("\ufeff# comment\n\nA=1 2 \r\n  B='q'\nC\nD==\n".encode())
    assert read_environment_file(str(file)) == ["A=1 2 ", "B='q'", "C", "D=="]


@pytest.mark.parametrize("content", [b"A B=1\n", b"=x\n", b"A=\xff\n", b"A=\0\n"])
def test_environment_file_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match="env"):
        read_environment_file(str(file))


def test_security_options() -> None:
    assert read_security([]) == (False, "default")
    assert read_security(["no-new-privileges:true", "seccomp=unconfined"]) == (True, "unconfined")
    assert read_security(["no-new-privileges=false", "apparmor=unconfined"]) == (False, "default")
    for wrong in ("seccomp", "label=type:x", "no-new-privileges=maybe", "x"):
        with pytest.raises(Unsupported):
            read_security([wrong])


@pytest.mark.parametrize(("error", "code"), [(NotFound("x"), 125), (ContainerError("x", exit_code=127), 127)])
def test_failure_of_run_is_not_the_command_s(error: PylayersError, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("pylayers.cli.run.read_options", refuse)
    assert failure.run(["run", "image"]) == code
