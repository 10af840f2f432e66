"""`pylayers build`, once its command line is read (see buildline)."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

from pylayers.cli.session import Session
from pylayers.errors import InvalidInput, translate_os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pylayers.build.event import BuildResult
    from pylayers.build.keyword import BuildRequest

STANDARD_INPUT = Path("/dev/stdin")


def build(
    session: Session,
    /,
    context: str,
    dockerfile: str | None,
    progress: str,
    quiet: bool,
    iidfile: str | None,
    metadata_file: str | None,
    check: bool,
    sbom: str | None,
    provenance: str | None,
    **given: Any,
) -> int:
    """Build an image from a Dockerfile; return the exit code.

    CONTEXT is a directory, a Dockerfile (its directory is the context then), or - for a Dockerfile on stdin.
    """
    if not given["no_cache"]:
        from pylayers.build.source.ahead import begin

        begin(session.root, context, dockerfile)  # before the imports that it is to run beside
    from pylayers.cli.progress import open_progress

    given["attestations"] = (*given["attestations"], *read_short("sbom", sbom), *read_short("provenance", provenance))
    request = read_request(given)
    mode = "quiet" if quiet else progress
    with ExitStack() as stack:
        if context == "-":
            if dockerfile is not None:
                import click

                raise click.UsageError("-f cannot be given with a Dockerfile on stdin")
            import tempfile

            context, dockerfile = stack.enter_context(tempfile.TemporaryDirectory(prefix="pylayers-")), "-"
        request["dockerfile"] = STANDARD_INPUT if dockerfile == "-" else dockerfile
        engine = stack.enter_context(session.open())
        if check:
            from pylayers.cli.check import show_check

            return show_check(engine.check(context, **request))
        shown = open_progress(mode)
        result: BuildResult | None = None
        try:
            result = engine.build(context, subscriber=shown.take, **request)
        finally:
            shown.close(result)
    if iidfile is not None:
        write_result(iidfile, result.config_digest)
    if metadata_file is not None:
        write_result(metadata_file, describe(result))
    if mode == "quiet":
        sys.stdout.write(result.config_digest + "\n")
    return 0


def read_request(given: Any) -> BuildRequest:
    """Return what the options ask of the engine."""
    from pylayers.cli.option import read_pairs

    given["arguments"] = read_arguments(given["arguments"])
    given["contexts"] = read_contexts(given["contexts"])
    given["labels"] = read_pairs(given["labels"])
    for name in ("platforms", "no_cache_filter"):
        given[name] = tuple(part for entry in given[name] for part in entry.split(",") if part)
    request: BuildRequest = given
    return request


def read_short(kind: str, value: str | None) -> tuple[str, ...]:
    """Return what --sbom or --provenance stands for; nothing where it wasn't given, or is off."""
    if value is None:
        return ()
    from pylayers.build.output.attest import expand_short

    return (expand_short(kind, value),)


def read_arguments(given: tuple[str, ...]) -> dict[str, str]:
    """Read --build-arg; a name alone takes the value from this process's environment, and nothing where it has none."""
    found: dict[str, str] = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not name:
            raise InvalidInput(f"invalid --build-arg {entry!r}: the name is empty", hint="give NAME=VALUE")
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def read_contexts(given: tuple[str, ...]) -> dict[str, str]:
    """Read --build-context."""
    found: dict[str, str] = {}
    for entry in given:
        name, _, place = entry.partition("=")
        if not name or not place:
            raise InvalidInput(f"invalid --build-context {entry!r}", hint="give NAME=DIRECTORY or NAME=docker-image://REF")
        found[name] = place
    return found


def describe(result: BuildResult) -> str:
    """Return the result as BuildKit's metadata file has it, with what only this engine knows."""
    import json

    return json.dumps(
        {
            "containerimage.config.digest": result.config_digest,
            "containerimage.digest": result.image_digest,
            "image.name": ",".join(result.references),
            "pylayers.diff_ids": list(result.diff_ids),
            "pylayers.cache_hits": result.cache_hits,
            "pylayers.steps": [
                {"step": one.step.label, "status": one.status.value, "seconds": round(one.seconds, 6),
                 "size_bytes": one.size_bytes, "diff_id": one.diff_id}
                for one in result.steps
            ],
            "pylayers.seconds": round(result.seconds, 6),
        },
        indent=2,
    )  # fmt: skip


def write_result(path: str, content: str) -> None:
    """Write a result file."""
    try:
        Path(path).write_text(content)
    except OSError as error:
        raise translate_os_error(error, f"write {path}") from error
