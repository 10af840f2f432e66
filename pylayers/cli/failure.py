"""Turn whatever ends a command into lines on stderr and an exit code; the only place that does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from pylayers.cli import INTERRUPT_EXIT_CODE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

    from click import UsageError

    from pylayers.cli.session import Session
    from pylayers.errors import BuildError

PROGRAM = "pylayers"
USAGE_EXIT_CODE = 2
BROKEN_PIPE_EXIT_CODE = 141
COMPLETE_VARIABLE = "_PYLAYERS_COMPLETE"


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; every failure has been told on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name may hold bytes that are no text
    try:
        code = perform(list(arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        discard(sys.stdout)
        discard(sys.stderr)
        return BROKEN_PIPE_EXIT_CODE
    except KeyboardInterrupt:
        return INTERRUPT_EXIT_CODE
    except Exception as error:
        click = sys.modules.get("click")  # not imported for a plain `build`, whose errors are none of click's
        if click is not None and isinstance(error, click.Abort):
            return INTERRUPT_EXIT_CODE
        try:
            return report(error, debug=wants_debug(arguments))
        except BrokenPipeError:
            discard(sys.stderr)
            return BROKEN_PIPE_EXIT_CODE


def perform(arguments: list[str]) -> int:
    """Find the verb and run it."""
    if COMPLETE_VARIABLE not in os.environ:
        code = perform_plain(arguments)
        if code is not None:
            return code
    import click

    from pylayers.cli.group import root

    if COMPLETE_VARIABLE in os.environ:
        root.main(args=arguments, prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE)
    try:
        with root.make_context(PROGRAM, arguments) as context:
            code = root.invoke(context)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USAGE_EXIT_CODE
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    return code if isinstance(code, int) else 0


def perform_plain(arguments: list[str]) -> int | None:
    """Run a plain line of a verb that is over before click would be imported; None for any other line."""
    if "build" in arguments:
        from pylayers.cli import buildline

        plain = buildline.read_line(arguments)
        if plain is not None:
            from pylayers.cli.build import build

            return build(open_session(plain[0]), **plain[1])
    if "run" in arguments:
        from pylayers.cli import runline

        plain = runline.read_line(arguments)
        if plain is not None:
            from pylayers.container import grace

            grace.begin(grace.EARLY_NS)  # as early as can be: what is loaded from here on takes as long
            from pylayers.cli.run import run as perform_run

            return perform_run(open_session(plain[0]), **plain[1])
    if "commit" in arguments:
        from pylayers.cli import commit

        plain = commit.read_line(arguments)
        if plain is not None:
            commit.commit(open_session(plain[0]), **plain[1])
            return 0
    return None


def open_session(given: Mapping[str, str]) -> Session:
    """Return what the options before the verb say."""
    from pylayers.cli.session import Session

    return Session(given.get("root"), given.get("driver"), given.get("runtime"))


def wants_debug(arguments: Iterable[str]) -> bool:
    """Tell whether --debug stands before the verb."""
    from pylayers.cli.option import GLOBALS

    words = iter(arguments)
    for word in words:
        if word in ("--debug", "-D"):
            return True
        if not word.startswith("-"):
            return False
        if word in GLOBALS:
            next(words, None)
    return False


def report(error: Exception, *, debug: bool = False) -> int:
    """Tell an error and return its exit code; with debug the traceback comes first."""
    from pylayers.errors import BuildError, PylayersError, translate_os_error

    if debug:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    click = sys.modules.get("click")
    if click is not None and isinstance(error, click.UsageError):
        return report_usage(error)
    if click is not None and isinstance(error, click.ClickException):
        say(error.format_message(), None)
        return int(error.exit_code)
    if isinstance(error, OSError):
        error = translate_os_error(error, "unexpected failure")
    if isinstance(error, UnicodeEncodeError):
        say("an argument is not valid UTF-8", None)
        return USAGE_EXIT_CODE
    if isinstance(error, BuildError):
        show_tail(error)
    if isinstance(error, PylayersError):
        if error.excerpt:
            sys.stderr.write(f"{error.excerpt}\n")
        say(error.message, error.hint)
        return error.exit_code
    hint = None if debug else f"run it again with {PROGRAM} --debug to see where, and report it as a bug"
    say(f"internal error: {type(error).__name__}: {error}", hint)
    return 1


def report_usage(error: UsageError) -> int:
    """Tell a wrong command line in one line."""
    context = error.ctx
    path = PROGRAM if context is None else context.command_path
    say(error.format_message(), f"see {path} --help")
    return USAGE_EXIT_CODE if context is None else getattr(context.command, "usage_exit_code", USAGE_EXIT_CODE)


def say(message: str, hint: str | None) -> None:
    """Print an error, and the next command where one exists."""
    sys.stdout.flush()
    text = f"{PROGRAM}: error: {printable(message)}\n"
    sys.stderr.write(text if hint is None else f"{text}hint: {printable(hint)}\n")
    sys.stderr.flush()


def warn(message: str) -> None:
    """Print a warning."""
    sys.stderr.write(f"{PROGRAM}: warning: {printable(message)}\n")


def printable(text: str) -> str:
    """Replace what would steer a terminal; line ends become blanks."""
    joined = " ".join(text.splitlines())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in joined)


def show_tail(error: BuildError) -> None:
    """Print the last lines of a failed step between rules, as BuildKit does."""
    if not error.step and not error.log_tail:
        return
    rule = "------"
    lines = [rule, f" > {printable(error.step)}:", *error.log_tail, rule]
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def perform_each(names: Iterable[str], action: Callable[[str], object]) -> int:
    """Do something with each name; one failure doesn't keep it from the rest. Return the first failure's exit code."""
    from pylayers.errors import PylayersError

    code = 0
    for name in names:
        try:
            action(name)
        except PylayersError as error:
            failed = report(error)
            code = code or failed
    return code


def discard(stream: TextIO) -> None:
    """Point a stream whose reader is gone at nothing, so that the interpreter's last flush is quiet."""
    try:
        target = stream.fileno()
    except (OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, target)
    os.close(null)
